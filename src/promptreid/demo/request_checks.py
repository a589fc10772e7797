"""Checks everything that browsers send to the page: addresses, senders, sizes, uploaded files."""

import asyncio
import json
import os
import posixpath
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from PIL import Image

from promptreid.data.images import to_rgb
from promptreid.files import open_file, portable

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Refusal = tuple[int, str]  # status and reason

MAX_UPLOAD_BYTES = 10 * 2**20
UPLOAD_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MAX_UPLOAD_PIXELS = 25_000_000
_MAX_KEPT_SIDE = 512  # no tower takes more of a crop, and each visitor's is kept

LOOPBACK = ("127.0.0.1", "localhost")
_API = "/gradio_api"
# gradio has many more addresses: a proxy for other sites, a record of what was asked, editing of the page …
_PATHS = frozenset(
    ["/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"]
    + [f"{_API}/queue/{name}" for name in ("join", "data")]
    + [f"{_API}/{name}" for name in ("upload", "upload_progress", "cancel", "reset", "reset/", "startup-events")]
)
_FOLDERS = ("/assets/", "/static/", f"{_API}/heartbeat/")
_LOGIN = "/login"
_LOGIN_PATHS = frozenset([_LOGIN, "/logout"])
_FILES = f"{_API}/file="
_JOIN = f"{_API}/queue/join"
_UPLOAD = f"{_API}/upload"
_MAX_BODY_BYTES = 1_000_000
_MAX_FORM_BYTES = MAX_UPLOAD_BYTES + 64 * 2**10  # a form wraps the file in some lines
_MAX_KEPT_BYTES = 500 * 2**20
_MAX_SESSION_LETTERS = 64  # of the name that a browser gives its session; gradio's has eleven
_MAX_OPEN = 512  # requests at the same time: each visitor's browser keeps two open
_MAX_READING = 16  # bodies that arrive at the same time
_MAX_READING_SECONDS = 60.0
_MAX_CONNECTIONS = 768  # with a request or without; a process may have 1,024 open files by default
_MAX_HEADER_SECONDS = 30.0
_MAX_STUCK_SECONDS = 60.0  # in which the client must have read some of the response
_MAX_FAILED_LOGINS = 10  # of one address within the time
_MAX_FAILED_LOGINS_IN_ALL = 100
_FAILED_LOGIN_SECONDS = 60.0
_LEAST_FILE_BYTES = 4096  # what even an empty file takes on a disk
_POLICY = b"content-security-policy"
_HEADERS = {
    # The browser itself refuses every request to another host.
    _POLICY: (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}


class RequestFilter:
    """ASGI middleware that answers only what the page itself asks.

    It refuses addresses that the page does not use, files outside the folder of shown copies, requests that would make
    the server fetch something from elsewhere, and uploads of more than one file or of more than 10 MB. A page only for
    this computer also refuses anything that another site's page sends: requests for another host name, which may have
    been made to point at 127.0.0.1 (DNS rebinding), and those whose origin is another page. A page for others accepts
    no upload while it holds copies of more than 500 MB. At most 512 requests are open and 16 bodies arrive at a time,
    each within a minute. After ten wrong passwords within a minute an address must wait.

    Args:
        app: The application behind.
        shown: The folder of copies made for the browser.
        private: Whether only this computer may send requests.
        functions: Numbers of the page's functions; others are refused. `None` for any.
        has_login: Whether visitors log in.
    """

    def __init__(
        self,
        app: Callable[[Any, _Receive, _Send], Awaitable[None]],
        shown: Path,
        *,
        private: bool,
        functions: Collection[int] | None = None,
        has_login: bool = False,
    ) -> None:
        self.app = app
        self.shown = shown
        self.private = private
        self.functions = functions
        self.has_login = has_login
        self._open = 0
        self._reading = 0
        self._failed_logins: list[tuple[float, str]] = []  # when, and from which address

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        self._open += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._open -= 1

    async def _answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        send_page = _with_headers(send, framed=not self.private)
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST":
            body, refusal = await self._read_in_time(scope, receive)
            receive = _replay(body, receive)
        if refusal is None:
            watched = self._watch_login(scope, send_page) if scope["path"] == _LOGIN else send_page
            await self.app(scope, receive, watched)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send, *refusal)

    def _refusal(self, scope: _Message) -> _Refusal | None:
        """The reason to refuse a request, from its address and sender."""
        if self._open > _MAX_OPEN:
            return 503, "too many visitors at once; try again in a minute"
        if any(len(_headers(scope, name)) > 1 for name in (b"host", b"origin")):
            return 400, "a request comes from one page and goes to one host"
        if scope["type"] != "http" or (self.private and _header(scope, b"host").rsplit(":", 1)[0] not in LOOPBACK):
            return 421, "this page only answers requests for 127.0.0.1"
        if self.private and _is_from_another_page(scope):
            return 403, "this page does not answer requests from other pages"
        if not self._is_known_path(scope["path"]):
            return 404, "there is nothing here"
        if scope["path"] == _LOGIN and self._fails_too_often(_address(scope)):
            return 429, "too many wrong passwords; wait a minute"
        return None

    def _fails_too_often(self, address: str) -> bool:
        since = time.monotonic() - _FAILED_LOGIN_SECONDS
        self._failed_logins = [one for one in self._failed_logins if one[0] > since]
        own = sum(failed == address for _, failed in self._failed_logins)
        return own >= _MAX_FAILED_LOGINS or len(self._failed_logins) >= _MAX_FAILED_LOGINS_IN_ALL

    def _watch_login(self, scope: _Message, send: _Send) -> _Send:
        """Sends on, and counts what is answered as a wrong password."""

        async def watch(message: _Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._failed_logins.append((time.monotonic(), _address(scope)))
            await send(message)

        return watch

    def _is_known_path(self, path: str) -> bool:
        if path.startswith(_FILES):
            file = posixpath.normpath(portable(unquote(path.removeprefix(_FILES))))
            return file.startswith(f"{self.shown.as_posix()}/")
        return path in _PATHS or path.startswith(_FOLDERS) or (self.has_login and path in _LOGIN_PATHS)

    async def _read_in_time(self, scope: _Message, receive: _Receive) -> tuple[bytes, _Refusal | None]:
        if self._reading >= _MAX_READING:
            return b"", (503, "too many requests arrive at once; try again in a minute")
        self._reading += 1
        try:
            return await asyncio.wait_for(self._read(scope, receive), _MAX_READING_SECONDS)
        except asyncio.TimeoutError:
            return b"", (408, f"the request did not arrive within {_MAX_READING_SECONDS:.0f} seconds")
        finally:
            self._reading -= 1

    async def _read(self, scope: _Message, receive: _Receive) -> tuple[bytes, _Refusal | None]:
        """The whole body of a request, so that no half of it is left over, and why it is refused."""
        is_upload = scope["path"] == _UPLOAD
        most = _MAX_FORM_BYTES if is_upload else _MAX_BODY_BYTES
        body = bytearray()
        more = True
        while more and len(body) <= most:
            message = await receive()
            body += message.get("body", b"")
            more = bool(message.get("more_body", False))
        if len(body) > most:
            return b"", (413, f"at most {MAX_UPLOAD_BYTES // 2**20} MB" if is_upload else "the request is too long")
        content = bytes(body)
        if is_upload:
            return content, await self._upload_refusal(_header(scope, b"content-type"), content)
        return content, _question_refusal(content, self.functions) if scope["path"] == _JOIN else None

    async def _upload_refusal(self, content_type: str, body: bytes) -> _Refusal | None:
        if not _is_one_file(content_type, body):
            return 400, "an upload is one file"
        if not self.private and await asyncio.to_thread(_bytes_in, self.shown) > _MAX_KEPT_BYTES:
            return 507, "this page holds as many images as it may; try again in an hour"
        return None


class TimedConnection(asyncio.Protocol):
    """Comes before uvicorn's own class of a connection, and ends what waits for a visitor who does nothing.

    The headers of each request must arrive within half a minute, and some of an answer be read within each minute;
    uvicorn itself waits for both for ever. Beyond 768 connections new ones are closed.
    """

    cycle: Any  # uvicorn's request and response
    connections: Collection[object]
    _headers_due: asyncio.TimerHandle | None = None
    _read_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the headers of the first request."""
        super().connection_made(transport)
        self._end = cast(asyncio.Transport, transport).abort
        if len(self.connections) > _MAX_CONNECTIONS:
            self._end()
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all deadlines."""
        super().connection_lost(exc)
        self._headers_due, self._read_due = _stopped(self._headers_due), _stopped(self._read_due)

    def data_received(self, data: bytes) -> None:
        """Stop waiting once the headers are complete; partial headers do not extend the deadline."""
        super().data_received(data)
        self._await_headers()

    def on_response_complete(self) -> None:
        """Wait for the headers of the next request."""
        cast(Any, super()).on_response_complete()
        self._await_headers()

    def pause_writing(self) -> None:
        """Wait until the client has read some of the response."""
        super().pause_writing()
        self._read_due = asyncio.get_running_loop().call_later(_MAX_STUCK_SECONDS, self._end)

    def resume_writing(self) -> None:
        """Continue with the response."""
        super().resume_writing()
        self._read_due = _stopped(self._read_due)

    def _await_headers(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._headers_due = _stopped(self._headers_due)
        elif self._headers_due is None:
            self._headers_due = asyncio.get_running_loop().call_later(_MAX_HEADER_SECONDS, self._end)


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _replay(body: bytes, receive: _Receive) -> _Receive:
    """Receives a body that was already read, then what comes after it."""
    waiting: list[_Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> _Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # old copies are deleted at any time
            total += max(file.stat().st_size, _LEAST_FILE_BYTES)
    return total


def _headers(scope: _Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _header(scope: _Message, name: bytes) -> str:
    return next(iter(_headers(scope, name)), "")


def _address(scope: _Message) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _is_from_another_page(scope: _Message) -> bool:
    """Whether a script or form of a page at another address sent this: browsers name that page as the origin."""
    origin = _header(scope, b"origin")
    return bool(origin) and origin.partition("://")[2] != _header(scope, b"host")


def _is_one_file(content_type: str, body: bytes) -> bool:
    """Whether a form holds one file, under the name that gradio keeps and deletes; others it would never delete."""
    boundary = re.search(r'boundary="?([^";,\s]+)', content_type)
    if boundary is None:
        return False
    parts = body.split(b"--" + boundary[1].encode("latin-1"))
    head = parts[1].partition(b"\r\n\r\n")[0] if len(parts) == 3 else b""
    return b'; name="files"' in head and b"; filename=" in head


def _question_refusal(body: bytes, functions: Collection[int] | None) -> _Refusal | None:
    try:
        question = json.loads(body or b"null")
        foreign = _names_another_site(question)
    except (ValueError, RecursionError):
        question, foreign = None, True
    if foreign:
        return 403, "a request may only name files that were uploaded here"
    asked = cast("dict[str, object]", question) if isinstance(question, dict) else {}
    called, session = asked.get("fn_index"), asked.get("session_hash", "")
    if not isinstance(session, str) or len(session) > _MAX_SESSION_LETTERS:
        return 400, "this is not a browser session"
    if functions is not None and (type(called) is not int or called not in functions):
        return 400, "the page has no such function"
    return None


def _names_another_site(value: object) -> bool:
    """Whether a file named in the request is an address to fetch."""
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        path = entries.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_names_another_site, entries.values()))
    return isinstance(value, list) and any(map(_names_another_site, cast("list[object]", value)))


def _with_headers(send: _Send, *, framed: bool) -> _Send:
    own = dict(_HEADERS)
    if not framed:  # no other page may show this one in a frame and lead clicks to it
        own[_POLICY] += b"; frame-ancestors 'none'"

    async def send_with_headers(message: _Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in own]
            message["headers"] = [*kept, *own.items()]
        await send(message)

    return send_with_headers


async def _refuse(send: _Send, status: int, reason: str) -> None:
    # The rest of a body that was not read to its end is not read as the next request.
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *_HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})


def read_upload(path: str | Path) -> Image.Image:
    """Decode an uploaded image.

    Only the decoders of four formats are ever tried, for any file name, and the size is read from the header
    before any pixel is.

    Args:
        path: The uploaded file.

    Returns:
        The image as RGB, turned as its EXIF data says, at most 512 pixels a side.

    Raises:
        ValueError: The file is too large, of another format, has too many pixels, or is broken.
    """
    try:
        opened = open_file(path)
    except OSError as error:
        raise ValueError("the upload no longer exists, or is not a regular file; upload it again") from error
    try:
        with opened as stream:
            upright = _decode_upload(stream)
            upright.thumbnail((_MAX_KEPT_SIDE, _MAX_KEPT_SIDE))
            return upright
    except _UploadError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"the image has too many pixels, at most {_MAX_UPLOAD_PIXELS:,} are allowed; cut the person out of it"
        ) from error
    # As in `open_image`, a broken file may raise any error, and its words say nothing to a visitor.
    except Exception as error:
        raise ValueError("this file is not a readable image; upload a JPEG, PNG, WebP or BMP file") from error


class _UploadError(ValueError):
    """An upload that is refused in words of our own."""


def _decode_upload(stream: BinaryIO) -> Image.Image:
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_UPLOAD_BYTES:
        most = MAX_UPLOAD_BYTES // 2**20
        raise _UploadError(f"the image has {size / 2**20:.1f} MB, at most {most} MB are allowed; shrink it")
    with Image.open(stream, formats=_UPLOAD_FORMATS) as image:
        width, height = image.size
        if width * height > _MAX_UPLOAD_PIXELS:
            raise _UploadError(
                f"the image is {width} x {height} pixels, at most {_MAX_UPLOAD_PIXELS:,} are allowed; "
                "cut the person out of it"
            )
        return to_rgb(image)
