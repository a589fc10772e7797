"""The page over HTTP: what it answers, what it refuses, and what it leaves behind."""

import json
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from promptreid.demo import app, request_checks

if find_spec("gradio") is None:  # imported by those tests alone that run
    pytest.skip("gradio is not installed", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # gradio's loops and sockets


def request(
    url: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""
    asked = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def upload(url: str, content: bytes, name: str = "crop.png") -> tuple[int, bytes]:
    """Upload a file as the page does."""
    body = (
        f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + content + b"\r\n--edge--\r\n"  # fmt: skip
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    status, _, answer = request(f"{url}gradio_api/upload", body=body, headers=headers)
    return status, answer


def ask(url: str, part: str, event: str, value: Any) -> dict[str, Any]:
    """Search as an event of a part of the page does, by that part's value; the queue's last message."""
    config = json.loads(request(f"{url}config")[2])
    parts = {each["props"].get("elem_id"): each for each in config["components"]}
    lowest = parts["threshold"]["props"]["value"]
    call = next(call for call in config["dependencies"] if [parts[part]["id"], event] in call["targets"])
    question = {"data": [None, value, [], [], lowest, 3, False], "fn_index": call["id"], "session_hash": "abc"}
    status, _, answer = request(
        f"{url}gradio_api/queue/join",
        body=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert status == 200, answer
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash=abc", timeout=60) as stream:
        for line in stream:
            message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the queue ended without an answer")


def ask_about_upload(url: str, path: str) -> dict[str, Any]:
    """Ask for images like the one that is said to have been uploaded to `path`."""
    return ask(url, "upload", "change", {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "crop.png"})


def test_page_listens_to_this_computer_only(folder_page: Any) -> None:
    assert folder_page.url.startswith("http://127.0.0.1:")
    port = int(folder_page.url.split(":")[2].strip("/"))
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_page_forbids_other_hosts_in_its_headers(folder_page: Any) -> None:
    status, headers, _ = request(folder_page.url)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]


def test_page_names_no_other_host_to_load_from(folder_page: Any) -> None:
    page = request(folder_page.url)[2].decode()
    style = request(f"{folder_page.url}theme.css")[2].decode()
    for attribute in ('src="http', "src='http", 'href="http', "href='http", "url(http", "@import"):
        assert attribute not in page
        assert attribute not in style


def test_page_asked_under_a_strangers_name_refuses(folder_page: Any) -> None:
    assert request(folder_page.url, headers={"Host": "evil.example"})[0] == 421


def test_page_serves_no_file(folder_page: Any, hostile_folder: Path) -> None:
    files = [hostile_folder / "secret.txt", *hostile_folder.rglob("*.png"), Path("/etc/passwd"), Path(app.__file__)]
    assert len(files) == 11
    for file in files:
        quoted = urllib.parse.quote(str(file))
        assert request(f"{folder_page.url}gradio_api/file={quoted}")[0] == 404, file


def test_page_offers_no_programming_interface(folder_page: Any) -> None:
    for path in ("gradio_api/info", "gradio_api/openapi.json", "docs", "gradio_api/runs", "monitoring"):
        assert request(f"{folder_page.url}{path}")[0] == 404
    status, _, _ = request(f"{folder_page.url}gradio_api/run/ask", body=b"{}")
    assert status == 404


def test_upload_of_more_than_ten_megabytes_is_refused(folder_page: Any) -> None:
    assert upload(folder_page.url, bytes(10 * 2**20 + 1))[0] == 413
    assert not [path for path in folder_page.scratch.rglob("*") if path.is_file() and path.stat().st_size > 2**20]


def test_upload_is_answered_with_images(folder_page: Any, hostile_folder: Path) -> None:
    status, answer = upload(folder_page.url, (hostile_folder / "yard" / "red.png").read_bytes())
    assert status == 200
    message = ask_about_upload(folder_page.url, json.loads(answer)[0])
    assert message["success"], message
    crops = [value for value in message["output"]["data"] if isinstance(value, list)]
    assert [len(column) for column in crops] == [3, 0]


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"<svg onload='alert(1)'/>", "crop.png"), (b"", "crop.png"), (b"%!PS\nquit", "crop.jpg")],
)
def test_upload_of_no_image_is_answered_with_the_reason(folder_page: Any, content: bytes, name: str) -> None:
    status, answer = upload(folder_page.url, content, name)
    assert status == 200
    message = ask_about_upload(folder_page.url, json.loads(answer)[0])
    assert "not a readable image" in json.dumps(message["output"]["data"])


def test_upload_of_a_type_that_is_not_taken_is_refused(folder_page: Any) -> None:
    answer = upload(folder_page.url, b"#!/bin/sh", "crop.sh")[1]
    assert not ask_about_upload(folder_page.url, json.loads(answer)[0])["success"]


def test_question_about_a_file_that_was_not_uploaded_fails(folder_page: Any, hostile_folder: Path) -> None:
    for path in ("/etc/passwd", str(hostile_folder / "yard" / "red.png")):
        assert not ask_about_upload(folder_page.url, path)["success"]


def test_question_to_an_unknown_function_is_refused(folder_page: Any) -> None:
    for number in (9999, -1, None, "x"):
        question = {"data": [], "fn_index": number, "session_hash": "abc"}
        headers = {"Content-Type": "application/json"}
        for path in ("queue/join", "cancel"):
            status, _, _ = request(
                f"{folder_page.url}gradio_api/{path}", body=json.dumps(question).encode(), headers=headers
            )
            assert 400 <= status < 500


def test_copies_for_the_browser_are_the_files_that_forgetting_deletes(folder_page: Any, hostile_folder: Path) -> None:
    status, answer = upload(folder_page.url, (hostile_folder / "yard" / "red.png").read_bytes())
    assert status == 200
    message = ask_about_upload(folder_page.url, json.loads(answer)[0])
    shown = [
        part["image"]["path"]
        for part in next(filter(None, (v for v in message["output"]["data"] if isinstance(v, list))))
    ]
    (scratch,) = folder_page.scratch.glob("promptreid-demo-*")
    assert {Path(path).parent for path in shown} == {scratch / "shown" / "crops"}
    for path in shown:
        assert request(f"{folder_page.url}gradio_api/file={path}")[0] == 200
        Path(path).unlink()
        assert request(f"{folder_page.url}gradio_api/file={path}")[0] in (403, 404)


def test_page_in_this_process_deletes_its_copies_when_it_is_closed(folder_page: Any) -> None:
    (scratch,) = folder_page.scratch.glob("promptreid-demo-*")
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert (scratch / "shown").stat().st_mode & 0o777 == 0o700


def connect(url: str) -> socket.socket:
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(20)
    return connection


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    with connection, suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_headers_that_never_end_are_given_up(folder_page: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(request_checks, "_MAX_HEADER_SECONDS", 0.4)
    connection = connect(folder_page.url)
    connection.sendall(sent)
    assert 0.2 < seconds_until_closed(connection) < 10


def test_headers_that_drip_are_given_up_and_so_are_those_of_a_second_request(
    folder_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_checks, "_MAX_HEADER_SECONDS", 0.5)
    connection = connect(folder_page.url)
    began = time.monotonic()
    with suppress(ConnectionError), connection:
        for letter in b"GET / HTTP/1.1" + b"x" * 200:
            connection.sendall(bytes([letter]))
            time.sleep(0.05)
    assert time.monotonic() - began < 8
    connection = connect(folder_page.url)
    connection.sendall(b"GET /robots.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 ")
    connection.sendall(b"GET /")
    assert seconds_until_closed(connection) < 3  # and not after the five seconds of a connection that is kept


def test_answer_that_nobody_reads_is_given_up(folder_page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "_MAX_STUCK_SECONDS", 0.3)
    names = re.findall(rb'(?:src|href)="(?:\./)?/?(assets/[^"]+\.js)"', request(folder_page.url)[2])
    path = f"/{names[0].decode()}"
    length, asked = len(request(f"{folder_page.url.rstrip('/')}{path}")[2]), 400
    connection = connect(folder_page.url)
    question = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    got = 0
    with suppress(ConnectionError), connection:
        connection.sendall(question * asked)  # more than the system's own buffers hold
        time.sleep(1.5)
        while block := connection.recv(65536):
            got += len(block)
    assert got < asked * length
    assert request(folder_page.url)[0] == 200


def test_answer_that_takes_longer_than_headers_may_is_not_cut(
    folder_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_checks, "_MAX_HEADER_SECONDS", 0.2)
    connection = connect(folder_page.url)
    connection.sendall(b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(0.6)
    connection.settimeout(0.3)
    with pytest.raises(TimeoutError):
        seconds_until_closed(connection)


def test_connections_beyond_the_most_are_closed(folder_page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_checks, "_MAX_CONNECTIONS", 3)
    held = [connect(folder_page.url) for _ in range(3)]
    assert seconds_until_closed(connect(folder_page.url)) < 5
    for connection in held:
        connection.close()
    time.sleep(0.2)
    assert request(folder_page.url)[0] == 200


@pytest.mark.slow  # a process of its own takes ten seconds of processor time to start
def test_page_keeps_its_copies_to_its_user_and_deletes_them_at_the_end(
    serve: Callable[..., Any], hostile_folder: Path
) -> None:
    page = serve(str(hostile_folder))  # one of its own, because it is stopped
    (scratch,) = page.scratch.glob("promptreid-demo-*")
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert ask(page.url, "sentence", "submit", "a person in red")["success"]
    assert [path for path in scratch.rglob("*") if path.is_file()]
    page.stop()
    assert page.process.returncode == 0
    assert not scratch.exists()
    assert not [path for path in page.scratch.rglob("*") if path.is_file()]
