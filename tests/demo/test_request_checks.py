import asyncio
import io
import json
import os
import struct
import zlib
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptreid.demo import request_checks
from promptreid.demo.request_checks import RequestFilter, read_upload

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
    more: list[tuple[bytes, bytes]] | None = None,
    functions: set[int] | None = None,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of the answer."""
    scope = {
        "type": "http",
        "path": path,
        "method": "GET" if body is None else "POST",
        "headers": [(b"host", host.encode()), *(headers or {}).items(), *(more or [])],
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

    asyncio.run(RequestFilter(app, shown, private=private, functions=functions)(scope, receive, send))  # pyright: ignore
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index.js", "/static/js/a.js", "/gradio_api/queue/data",
     "/gradio_api/upload_progress", "/gradio_api/heartbeat/abc", "/gradio_api/file=/scratch/shown/ab/image.png"],
)  # fmt: skip
def test_request_filter_lets_the_page_through_with_its_headers(path: str) -> None:
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
def test_request_filter_knows_no_other_address(path: str) -> None:
    assert ask(path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "192.168.0.7:7860"]
)
def test_request_filter_of_a_private_page_refuses_other_hosts(host: str) -> None:
    assert ask("/", host=host)[0] == 421
    assert ask("/", host=host, private=False)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "127.0.0.1"])
def test_request_filter_of_a_private_page_answers_this_computer(host: str) -> None:
    assert ask("/", host=host)[0] == 200


@pytest.mark.parametrize("pieces", [1, 3])
def test_request_filter_passes_a_question_on_unchanged(pieces: int) -> None:
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
def test_request_filter_refuses_to_fetch_from_elsewhere(question: object) -> None:
    assert ask("/gradio_api/queue/join", body=json.dumps(question).encode())[0] == 403


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_request_filter_refuses_a_question_it_cannot_read(body: bytes) -> None:
    assert ask("/gradio_api/queue/join", body=body)[0] == 403


def test_request_filter_refuses_a_question_that_is_too_long() -> None:
    assert ask("/gradio_api/queue/join", body=b" " * 1_000_001, pieces=4)[0] == 413


def test_request_filter_refuses_websockets() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    asyncio.run(RequestFilter(app, SHOWN, private=True)(scope, send, send))  # pyright: ignore
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_request_filter_bounds_how_many_requests_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "_MAX_OPEN", 3)
    statuses: list[int] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.2)
        await app(scope, receive, send)

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    checks = RequestFilter(endless, SHOWN, private=True)  # pyright: ignore
    scope = {"type": "http", "path": "/", "method": "GET", "headers": [(b"host", b"127.0.0.1")]}

    async def many() -> None:
        await asyncio.gather(*(checks(scope, send, send) for _ in range(5)))

    asyncio.run(many())
    assert sorted(statuses) == [200, 200, 200, 503, 503]
    asyncio.run(many())  # those that ended make room
    assert sorted(statuses) == [200] * 6 + [503] * 4


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://127.0.0.1:9999", "http://localhost:7860", "null", "http://127.0.0.1:78600"],
)
def test_request_filter_of_a_private_page_answers_no_other_page(origin: str) -> None:
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
def test_request_filter_answers_its_own_page(origin: str, host: str) -> None:
    assert ask("/gradio_api/queue/join", host=host, body=b"null", headers={b"origin": origin.encode()})[0] == 200


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("name", [b"origin", b"host", b"Origin"])
def test_request_filter_refuses_a_second_origin_or_host(name: bytes, private: bool) -> None:
    own = b"127.0.0.1:7860" if name == b"host" else b"http://127.0.0.1:7860"
    foreign = (name, b"http://evil.example")
    for more in ([foreign, (name, own)], [(name, own), foreign]):
        assert ask("/gradio_api/queue/join", body=b"null", more=more, private=private)[0] == 400


@pytest.mark.parametrize(
    ("question", "status"),
    [({"fn_index": 3}, 200), ({"fn_index": 4}, 400), ({"fn_index": -1}, 400), ({"fn_index": "3"}, 400), ({}, 400),
     ({"fn_index": None}, 400), ({"fn_index": [3]}, 400), ([3], 400), (None, 400), ({"fn_index": 10**400}, 400),
     ({"fn_index": True}, 400), ({"fn_index": 3, "session_hash": "a" * 64}, 200),
     ({"fn_index": 3, "session_hash": "a" * 65}, 400), ({"fn_index": 3, "session_hash": ["a"]}, 400)],
)  # fmt: skip
def test_request_filter_knows_the_functions_of_the_page_only(question: object, status: int) -> None:
    assert ask("/gradio_api/queue/join", body=json.dumps(question).encode(), functions={1, 3})[0] == status


def test_request_filter_bounds_time_and_number_of_bodies_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "_MAX_READING_SECONDS", 0.2)
    checks = RequestFilter(app, SHOWN, private=True)  # pyright: ignore
    scope = {"type": "http", "path": "/gradio_api/upload", "method": "POST", "headers": [(b"host", b"127.0.0.1")]}

    async def stalled() -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        await checks(scope, receive, send)
        return sent[0]["status"]

    async def many() -> list[int]:
        return await asyncio.gather(*(stalled() for _ in range(20)))

    assert sorted(asyncio.run(many())) == [408] * 16 + [503] * 4
    assert asyncio.run(stalled()) == 408  # those that were given up make room


def test_request_filter_lets_only_a_page_for_others_be_framed() -> None:
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
def test_request_filter_takes_uploads_of_at_most_ten_megabytes(
    size: int, status: int, pieces: int, private: bool
) -> None:
    assert upload((FILE, size), private=private, pieces=pieces) == status


@pytest.mark.parametrize(
    "parts",
    [[], [(FILE, 5), (FILE, 5)], [('name="x"; filename="a.png"', 5)], [('name="files"', 5)],
     [('filename="a.png"', 5)], [(FILE, 5), ('name="x"', 5)]],
)  # fmt: skip
def test_request_filter_takes_one_file_at_a_time(parts: list[tuple[str, int]]) -> None:
    assert upload(*parts) == 400


@pytest.mark.parametrize(
    "content_type", [b"", b"text/plain", b"multipart/form-data", b"multipart/form-data; boundary="]
)
def test_request_filter_takes_only_forms(content_type: bytes) -> None:
    body = b"--line\r\nContent-Disposition: form-data; " + FILE.encode() + b"\r\n\r\nx\r\n--line--\r\n"
    assert ask("/gradio_api/upload", body=body, headers={b"content-type": content_type})[0] == 400


@pytest.mark.parametrize("path", ["/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/queue/data", "/"])
def test_request_filter_bounds_every_question(path: str) -> None:
    assert ask(path, body=bytes(1_000_000))[0] == 200
    assert ask(path, body=bytes(1_000_001), pieces=5)[0] == 413


def test_request_filter_of_a_page_for_others_keeps_a_bounded_amount(tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    assert upload((FILE, 5), private=False, shown=tmp_path) == 200
    with (tmp_path / "one.png").open("wb") as file:
        file.truncate(500 * 2**20)  # takes no room on the disk
    (tmp_path / "empty.png").touch()  # takes a block
    assert upload((FILE, 5), private=False, shown=tmp_path) == 507
    assert upload((FILE, 5), private=True, shown=tmp_path) == 200


def random_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 4, 3), dtype=np.uint8))


@pytest.mark.parametrize(("ending", "kind"), [(".png", "PNG"), (".bmp", "BMP"), (".webp", "WEBP"), (".jpg", "JPEG")])
def test_read_upload_of_each_format_gives_rgb(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"crop{ending}"
    random_image().save(path, kind)
    image = read_upload(path)
    assert (image.mode, image.size) == ("RGB", (4, 8))


@pytest.mark.posix
def test_read_upload_of_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "crop.png")
    for name in ("crop.png", "gone.png", "."):
        with pytest.raises(ValueError, match="no longer exists, or is not a regular file"):
            read_upload(tmp_path / name)


def test_read_upload_named_wrongly_goes_by_content(tmp_path: Path) -> None:
    path = tmp_path / "crop.jpg"
    random_image().save(path, "PNG")
    assert read_upload(path).size == (4, 8)


def test_read_upload_turned_by_exif_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    random_image().save(tmp_path / "crop.jpg", exif=exif)
    assert read_upload(tmp_path / "crop.jpg").size == (8, 4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_read_upload_of_any_mode_gives_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("crop.jpg" if mode == "CMYK" else "crop.png")
    Image.new(mode, (4, 8)).save(path)
    assert read_upload(path).mode == "RGB"


def test_read_upload_larger_than_needed_is_shrunk(tmp_path: Path) -> None:
    Image.new("RGB", (600, 3000)).save(tmp_path / "crop.png")
    assert read_upload(tmp_path / "crop.png").size == (102, 512)  # 600 / 3000 * 512 = 102.4


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "EPS", "ICO", "PDF"])
def test_read_upload_of_another_format_is_refused_whatever_its_name(tmp_path: Path, kind: str) -> None:
    random_image().save(tmp_path / "crop.png", kind)
    with pytest.raises(ValueError, match="not a readable image; upload a JPEG, PNG, WebP or BMP"):
        read_upload(tmp_path / "crop.png")


@pytest.mark.parametrize("content", [b"", b"<svg onload='alert(1)'/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" * 9])
def test_read_upload_of_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "crop.png").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable image"):
        read_upload(tmp_path / "crop.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_read_upload_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    image.save(tmp_path / "whole", kind)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable image"):
        read_upload(tmp_path / "half")


def with_exif(tag: int, kind: int, value: bytes) -> bytes:
    """A JPEG turned a quarter, with an EXIF entry of any kind."""
    entries = struct.pack("<HHHIIHHI4s", 2, 0x0112, 3, 1, 6, tag, kind, len(value), value.ljust(4, b"\0"))
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries + bytes(4)
    stream = io.BytesIO()
    random_image().save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PALETTE = struct.pack(">IIBBBBB", 4, 8, 8, 3, 0, 0, 0)  # the header of an image of 4 x 8


def test_read_upload_of_a_damaged_image_speaks_in_our_words(tmp_path: Path) -> None:
    content = png((b"IHDR", PALETTE), (b"PLTE", bytes(771)), (b"IDAT", zlib.compress(bytes(40))))
    (tmp_path / "crop").write_bytes(content)
    with pytest.raises(ValueError, match=r"^this file is not a readable image; upload a JPEG") as caught:
        read_upload(tmp_path / "crop")
    assert type(caught.value.__cause__) is ValueError  # Pillow's


@pytest.mark.parametrize("tag", [0x011A, 0x0100], ids=["resolution", "width"])
def test_read_upload_with_damaged_exif_is_turned_all_the_same(tmp_path: Path, tag: int) -> None:
    (tmp_path / "crop").write_bytes(with_exif(tag, 2, b"ab"))  # letters where a number belongs
    assert read_upload(tmp_path / "crop").size == random_image().size[::-1]


def test_read_upload_of_a_large_file_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_checks, "MAX_UPLOAD_BYTES", 2**20)
    (tmp_path / "crop.png").write_bytes(bytes(3 * 2**19))
    with pytest.raises(ValueError, match=r"has 1\.5 MB, at most 1 MB"):
        read_upload(tmp_path / "crop.png")


@pytest.mark.parametrize(("width", "height"), [(5001, 5000), (10_000, 10_000), (60_000, 60_000)])
def test_read_upload_with_too_many_pixels_is_refused_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(png((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")))
    with pytest.raises(ValueError, match=r"^the image (has|is) .* pixels, at most 25,000,000 are allowed"):
        read_upload(tmp_path / "bomb.png")


def test_images_of_the_page_are_found_on_windows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptreid.files._IS_WINDOWS", True)
    shown: Any = PureWindowsPath("C:\\scratch\\shown")
    assert ask("/gradio_api/file=C:\\scratch\\shown\\ab\\image.png", shown=shown)[0] == 200
    assert ask("/gradio_api/file=C:/scratch/shown/ab/image.png", shown=shown)[0] == 200
    assert ask("/gradio_api/file=C:\\scratch\\shown\\..\\drawn\\a.jpg", shown=shown)[0] == 404


def log_in(checks: Any, address: str) -> int:
    """Status of the answer to a login from an address."""
    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "http", "path": "/login", "method": "POST", "headers": headers, "client": (address, 50_000)}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"username=a&password=b", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(checks(scope, receive, send))
    return sent[0]["status"]


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answers every password as a wrong one."""
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_request_filter_bounds_wrong_passwords_by_address_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = RequestFilter(refuse, SHOWN, private=True, has_login=True)  # pyright: ignore
    assert [log_in(checks, "10.0.0.1") for _ in range(12)] == [400] * 10 + [429] * 2
    assert log_in(checks, "10.0.0.2") == 400
    others = [log_in(checks, f"10.0.1.{number}") for number in range(100)]
    assert others == [400] * 89 + [429] * 11  # 10 + 1 + 89 = 100 in all
    monkeypatch.setattr(request_checks, "_FAILED_LOGIN_SECONDS", 0.0)
    assert log_in(checks, "10.0.0.1") == 400


def test_request_filter_knows_no_login_where_there_is_none() -> None:
    for path in ("/login", "/logout"):
        assert ask(path, body=b"")[0] == 404
    checks = RequestFilter(app, SHOWN, private=True, has_login=True)  # pyright: ignore
    assert [log_in(checks, "10.0.0.1") for _ in range(20)] == [200] * 20
