"""Stands before the page's server: what it lets in, and what it tells the browser to refuse."""

import json
import posixpath
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from promptreid.demo.uploads import MAX_BYTES

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost")
_API = "/gradio_api"
# gradio has many more addresses: a proxy for other sites, a record of what was asked, editing of the page …
_PAGES = ("/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt")
_QUEUE = ("queue/join", "queue/data", "upload", "upload_progress", "cancel", "reset", "reset/", "startup-events")
_FOLDERS = ("/assets/", "/static/", f"{_API}/heartbeat/")
_FILES = f"{_API}/file="
_JOIN = f"{_API}/queue/join"
_UPLOAD = f"{_API}/upload"
_READING = ("GET", "HEAD")
_MAX_QUESTION_BYTES = 1_000_000
_MAX_UPLOAD_BYTES = MAX_BYTES + 64 * 2**10  # a form wraps the file in some lines
_MAX_KEPT_BYTES = 500 * 2**20
_HEADERS = {
    # The browser itself refuses whatever would go to another host.
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Gatekeeper:
    """ASGI middleware: answers only what the page itself asks.

    Refused are addresses that the page does not use, files outside the folder of shown copies, questions that would
    make the server fetch something from elsewhere, uploads without a size, beyond 10 MB, or when 500 MB are kept
    already, and, on a private page, what comes from a stranger's page: requests that name another host than this
    computer, its name having been made to point at 127.0.0.1 (DNS rebinding), and what its forms and scripts send.

    Args:
        app: The application behind.
        shown: The folder of copies made for the browser.
        private: Whether only this computer may ask.
    """

    def __init__(self, app: Callable[[Any, _Receive, _Send], Awaitable[None]], shown: Path, *, private: bool) -> None:
        self.app = app
        self.shown = shown
        self.private = private

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal:
            await _refuse(send, *refusal)
        elif scope["path"] == _JOIN:
            await self._ask(scope, receive, send)
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: _Message) -> tuple[int, str] | None:
        """Status and reason, if a request is not let in."""
        if scope["type"] != "http" or (self.private and _header(scope, b"host").rsplit(":", 1)[0] not in LOOPBACK):
            return 421, "this page answers to 127.0.0.1 only"
        if self.private and _is_from_another_page(scope):
            return 403, "this page takes nothing that another page sends"
        if not self._is_known_path(scope["path"]):
            return 404, "there is nothing here"
        return self._upload_refusal(scope) if scope["path"] == _UPLOAD else None

    def _upload_refusal(self, scope: _Message) -> tuple[int, str] | None:
        size = _header(scope, b"content-length")
        if not size.isdecimal():
            return 411, "say how long the upload is"
        if int(size) > _MAX_UPLOAD_BYTES:
            return 413, f"at most {MAX_BYTES // 2**20} MB are taken"
        if _bytes_in(self.shown) > _MAX_KEPT_BYTES:
            return 507, "this page keeps as many pictures as it may; try again in an hour"
        return None

    def _is_known_path(self, path: str) -> bool:
        if path.startswith(_FILES):
            file = posixpath.normpath(unquote(path.removeprefix(_FILES)))
            return file.startswith(f"{self.shown.as_posix()}/")
        return path in _PAGES or path.startswith(_FOLDERS) or path in [f"{_API}/{name}" for name in _QUEUE]

    async def _ask(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        body = b""
        more = True
        while more and len(body) <= _MAX_QUESTION_BYTES:
            message = await receive()
            body += message.get("body", b"")
            more = bool(message.get("more_body", False))
        if len(body) > _MAX_QUESTION_BYTES:
            await _refuse(send, 413, "the question is too long")
            return
        try:
            foreign = _names_another_site(json.loads(body or b"null"))
        except (ValueError, RecursionError):
            foreign = True
        if foreign:
            await _refuse(send, 403, "a question may only speak of files that were uploaded here")
            return
        replayed = False

        async def receive_again() -> _Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_again, _with_headers(send))


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # old copies are deleted at any time
            total += file.stat().st_size if file.is_file() else 0
    return total


def _header(scope: _Message, name: bytes) -> str:
    return dict(scope["headers"]).get(name, b"").decode("latin-1")


def _is_from_another_page(scope: _Message) -> bool:
    """Whether a page at another address sends this; browsers name it as the origin of all that is not mere reading."""
    origin = _header(scope, b"origin")
    return scope["method"] not in _READING and bool(origin) and origin != f"http://{_header(scope, b'host')}"


def _names_another_site(value: object) -> bool:
    """Whether a file in the question is an address to fetch."""
    if isinstance(value, dict):
        entries = cast("dict[str, object]", value)
        path = entries.get("path")
        return (isinstance(path, str) and "://" in path) or any(map(_names_another_site, entries.values()))
    return isinstance(value, list) and any(map(_names_another_site, cast("list[object]", value)))


def _with_headers(send: _Send) -> _Send:
    async def send_with_headers(message: _Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", []) if name.lower() not in _HEADERS]
            message["headers"] = [*kept, *_HEADERS.items()]
        await send(message)

    return send_with_headers


async def _refuse(send: _Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
