import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from promptreid.demo.gatekeeper import Gatekeeper

SHOWN = Path("/scratch/shown")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it got, and with headers of its own."""
    body = (await receive())["body"] if scope["method"] == "POST" else b"page"
    headers = [(b"x-own", b"1"), (b"Content-Security-Policy", b"default-src *")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def ask(
    path: str,
    *,
    host: str = "127.0.0.1:7860",
    body: bytes | None = None,
    private: bool = True,
    pieces: int = 1,
    shown: Path = SHOWN,
    headers: dict[bytes, bytes] | None = None,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the answer."""
    scope = {
        "type": "http",
        "path": path,
        "method": "GET" if body is None else "POST",
        "headers": [(b"host", host.encode()), *(headers or {}).items()],
    }
    content = body or b""
    size = -(-len(content) // pieces) or 1
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    waiting = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Gatekeeper(app, shown, private=private)(scope, receive, send))  # pyright: ignore
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index.js", "/static/js/a.js", "/gradio_api/queue/data",
     "/gradio_api/upload_progress", "/gradio_api/heartbeat/abc", "/gradio_api/file=/scratch/shown/ab/image.png"],
)  # fmt: skip
def test_gatekeeper_lets_the_page_through_with_its_headers(path: str) -> None:
    status, headers, body = ask(path)
    assert (status, body) == (200, b"page")
    assert headers[b"x-own"] == b"1"
    assert b"Content-Security-Policy" not in headers
    assert headers[b"content-security-policy"].startswith(b"default-src 'self';")
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    "path",
    ["/docs", "/openapi.json", "/gradio_api/info", "/gradio_api/runs", "/gradio_api/vibe-edit", "/gradio_api/run/ask",
     "/gradio_api/call/ask", "/gradio_api/proxy=http://example.org/", "/gradio_api/file=http://example.org/a.png",
     "/gradio_api/file=/etc/passwd", "/gradio_api/file=/scratch/drawn/reid_raw.json", "/gradio_api/file=/scratch/shown",
     "/gradio_api/file=/scratch/shown/../drawn/a.jpg", "/gradio_api/file=/scratch/shown/%2e%2e/drawn/a.jpg",
     "/gradio_api/file=scratch/shown/a.png", "/gradio_api/file=/scratch/shown-too/a.png", "/gradio_api/file/a.png"],
)  # fmt: skip
def test_gatekeeper_knows_no_other_address(path: str) -> None:
    assert ask(path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "192.168.0.7:7860"]
)
def test_gatekeeper_of_a_private_page_refuses_other_hosts(host: str) -> None:
    assert ask("/", host=host)[0] == 421
    assert ask("/", host=host, private=False)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "127.0.0.1"])
def test_gatekeeper_of_a_private_page_answers_this_computer(host: str) -> None:
    assert ask("/", host=host)[0] == 200


@pytest.mark.parametrize("pieces", [1, 3])
def test_gatekeeper_passes_a_question_on_unchanged(pieces: int) -> None:
    body = json.dumps(
        {"data": ["see http://example.org", {"path": "/scratch/shown/a.png", "url": "http://x/"}]}
    ).encode()
    assert ask("/gradio_api/queue/join", body=body, pieces=pieces)[::2] == (200, body)


@pytest.mark.parametrize(
    "question",
    [
        {"data": [{"path": "http://example.org/a.png"}]},
        {"data": [[{"a": {"path": "https://example.org/a.png"}}]]},
        {"data": {"path": " HTTP://example.org"}},
    ],
)
def test_gatekeeper_refuses_to_fetch_from_elsewhere(question: object) -> None:
    assert ask("/gradio_api/queue/join", body=json.dumps(question).encode())[0] == 403


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_gatekeeper_refuses_a_question_it_cannot_read(body: bytes) -> None:
    assert ask("/gradio_api/queue/join", body=body)[0] == 403


def test_gatekeeper_refuses_a_question_that_is_too_long() -> None:
    assert ask("/gradio_api/queue/join", body=b" " * 1_000_001, pieces=4)[0] == 413


def test_gatekeeper_refuses_websockets() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    asyncio.run(Gatekeeper(app, SHOWN, private=True)(scope, send, send))  # pyright: ignore
    assert sent[0]["status"] == 421


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://127.0.0.1:9999", "http://localhost:7860", "null", "http://127.0.0.1:78600"],
)
def test_gatekeeper_of_a_private_page_answers_no_other_page(origin: str) -> None:
    headers = {b"origin": origin.encode()}
    for path in ("/gradio_api/queue/join", "/gradio_api/cancel"):
        assert ask(path, body=b"null", headers=headers)[0] == 403
        assert ask(path, body=b"null", headers=headers, private=False)[0] == 200
    assert ask("/", headers=headers)[0] == 403
    assert ask("/", headers=headers, private=False)[0] == 200


@pytest.mark.parametrize(
    ("origin", "host"),
    [("http://127.0.0.1:7860", "127.0.0.1:7860"), ("http://localhost:8000", "localhost:8000"),
     ("https://localhost", "localhost")],
)  # fmt: skip
def test_gatekeeper_answers_its_own_page(origin: str, host: str) -> None:
    assert ask("/gradio_api/queue/join", host=host, body=b"null", headers={b"origin": origin.encode()})[0] == 200


def test_gatekeeper_lets_only_a_page_for_others_be_framed() -> None:
    assert b"frame-ancestors 'none'" in ask("/")[1][b"content-security-policy"]
    assert b"frame-ancestors" not in ask("/", private=False)[1][b"content-security-policy"]


def upload(*parts: tuple[str, int], private: bool = True, shown: Path = SHOWN, pieces: int = 1) -> int:
    """Status of the answer to a form with parts of so many bytes."""
    body = b""
    for head, size in parts:
        body += b"--line\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + bytes(size) + b"\r\n"
    headers = {b"content-type": b"multipart/form-data; boundary=line"}
    status, _, answer = ask(
        "/gradio_api/upload", body=body + b"--line--\r\n", headers=headers, private=private, shown=shown, pieces=pieces
    )
    assert status != 200 or len(answer) > sum(size for _, size in parts), "all of the body arrives"
    return status


FILE = 'name="files"; filename="a.png"'


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize(("size", "status"), [(0, 200), (10 * 2**20, 200), (10 * 2**20 + 2**16, 413)])
def test_gatekeeper_takes_uploads_of_at_most_ten_megabytes(size: int, status: int, pieces: int, private: bool) -> None:
    assert upload((FILE, size), private=private, pieces=pieces) == status


@pytest.mark.parametrize(
    "parts",
    [[], [(FILE, 5), (FILE, 5)], [('name="x"; filename="a.png"', 5)], [('name="files"', 5)],
     [('filename="a.png"', 5)], [(FILE, 5), ('name="x"', 5)]],
)  # fmt: skip
def test_gatekeeper_takes_one_file_at_a_time(parts: list[tuple[str, int]]) -> None:
    assert upload(*parts) == 400


@pytest.mark.parametrize(
    "content_type", [b"", b"text/plain", b"multipart/form-data", b"multipart/form-data; boundary="]
)
def test_gatekeeper_takes_only_forms(content_type: bytes) -> None:
    body = b"--line\r\nContent-Disposition: form-data; " + FILE.encode() + b"\r\n\r\nx\r\n--line--\r\n"
    assert ask("/gradio_api/upload", body=body, headers={b"content-type": content_type})[0] == 400


@pytest.mark.parametrize("path", ["/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/queue/data", "/"])
def test_gatekeeper_bounds_every_question(path: str) -> None:
    assert ask(path, body=bytes(1_000_000))[0] == 200
    assert ask(path, body=bytes(1_000_001), pieces=5)[0] == 413


def test_gatekeeper_of_a_page_for_others_keeps_a_bounded_amount(tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    assert upload((FILE, 5), private=False, shown=tmp_path) == 200
    with (tmp_path / "one.png").open("wb") as file:
        file.truncate(500 * 2**20)  # takes no room on the disk
    (tmp_path / "empty.png").touch()  # takes a block
    assert upload((FILE, 5), private=False, shown=tmp_path) == 507
    assert upload((FILE, 5), private=True, shown=tmp_path) == 200
