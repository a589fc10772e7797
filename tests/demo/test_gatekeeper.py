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
def test_gatekeeper_of_a_private_page_takes_nothing_from_another_page(origin: str) -> None:
    headers = {b"origin": origin.encode(), b"content-length": b"4"}
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel"):
        assert ask(path, body=b"null", headers=headers)[0] == 403
        assert ask(path, body=b"null", headers=headers, private=False)[0] == 200
    assert ask("/", headers=headers)[0] == 200


def test_gatekeeper_takes_what_its_own_page_sends() -> None:
    headers = {b"origin": b"http://127.0.0.1:7860", b"content-length": b"4"}
    assert ask("/gradio_api/upload", body=b"file", headers=headers)[0] == 200


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"10485760", 200), (b"10551296", 200), (b"10551297", 413), (b"", 411), (b"-1", 411), (b"ten", 411)],
)
@pytest.mark.parametrize("private", [True, False])
def test_gatekeeper_takes_uploads_of_at_most_ten_megabytes(length: bytes, status: int, private: bool) -> None:
    headers = {b"content-length": length} if length else {}
    assert ask("/gradio_api/upload", body=b"file", headers=headers, private=private)[0] == status


def test_gatekeeper_keeps_a_bounded_amount(tmp_path: Path) -> None:
    headers = {b"content-length": b"4"}
    (tmp_path / "one").mkdir()
    with (tmp_path / "one" / "image.png").open("wb") as file:
        file.truncate(500 * 2**20)  # takes no room on the disk
    assert ask("/gradio_api/upload", body=b"file", headers=headers, shown=tmp_path)[0] == 200
    (tmp_path / "two.png").write_bytes(b"1")
    assert ask("/gradio_api/upload", body=b"file", headers=headers, shown=tmp_path)[0] == 507
