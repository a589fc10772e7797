"""The page as a program: what it answers over HTTP, and what it leaves behind."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from doctest import DocTestParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import promptreid.demo.app as app
from promptreid import save_prompts
from promptreid.demo.app import require_gradio
from promptreid.errors import DatasetError, MissingExtraError, ServingError


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


def ask_about_upload(url: str, path: str) -> dict[str, Any]:
    """Ask for images like the one that is said to have been uploaded to `path`; the queue's last message."""
    config = json.loads(request(f"{url}config")[2])
    upload_id = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "upload")
    call = next(call for call in config["dependencies"] if [upload_id, "change"] in call["targets"])
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "crop.png"}
    question = {"data": [None, file, [], -1, 3], "fn_index": call["id"], "session_hash": "abc"}
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
    files += list(folder_page.scratch.rglob("reid_raw.json"))
    assert len(files) == 12
    for file in files:
        quoted = urllib.request.quote(str(file))
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
    assert [len(column) for column in crops] == [3, 3]


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


def test_page_keeps_its_copies_to_its_user_and_deletes_them_at_the_end(
    serve: Callable[..., Any], hostile_folder: Path
) -> None:
    page = serve(str(hostile_folder))  # one of its own, because it is stopped
    (scratch,) = page.scratch.glob("promptreid-demo-*")
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert [path for path in page.scratch.rglob("*") if path.is_file()]
    page.stop()
    assert page.process.returncode == 0
    assert not [path for path in page.scratch.rglob("*") if path.is_file()]


def test_launch_without_gradio_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        app.launch()


def test_start_without_folder_says_so_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(DatasetError, match="there is no folder"):
        app.start(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_start_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        assert os.environ["GRADIO_TEMP_DIR"].startswith(str(tmp_path))
        assert "GRADIO_ALLOWED_PATHS" not in os.environ
        raise OSError("port 1 is taken")

    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    monkeypatch.setattr(app, "_serve", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    for _ in range(2):
        with pytest.raises(OSError, match="port 1 is taken"):
            app.start()
    assert list(tmp_path.iterdir()) == []
    assert os.environ["GRADIO_ALLOWED_PATHS"] == "/"
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_start_twice_in_one_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    page = SimpleNamespace(local_url="http://127.0.0.1:1/", close=lambda verbose: closed.append(verbose))
    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    monkeypatch.setattr(app, "_serve", lambda *arguments: page)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with app.start() as running:
        assert running.url == "http://127.0.0.1:1/"
        with pytest.raises(RuntimeError, match="already serving a demo; close it first"):
            app.start()
    assert closed == [False]
    app.start().close()


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ({"port": 80_000}, ValueError, "the port is 80000, expected 1 to 65535"),
        ({"port": 0}, ValueError, "the port is 0, expected 1 to 65535"),
        (
            {"host": "no-such-host.invalid"},
            ServingError,
            "the host no-such-host.invalid is no address of this computer",
        ),
        ({"host": "a" * 70}, ServingError, "is no address of this computer"),
        ({"host": "192.0.2.1"}, ServingError, "the host 192.0.2.1 is no address of this computer"),
    ],
)
def test_start_at_an_impossible_address_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: dict[str, Any], error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(error, match=words):
        app.start(**address)
    assert list(tmp_path.iterdir()) == []


def test_start_at_a_port_in_use_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} of 127.0.0.1 cannot be used .* give another, or none"):
            app.start(port=port)


@pytest.mark.slow
def test_page_is_served_whatever_proxy_is_set(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    page = serve()
    own = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with own.open(page.url, timeout=60) as answer:
        assert answer.status == 200
    page.stop()


def test_question_to_an_unknown_function_is_refused(folder_page: Any) -> None:
    for number in (9999, -1, None, "x"):
        question = {"data": [], "fn_index": number, "session_hash": "abc"}
        headers = {"Content-Type": "application/json"}
        for path in ("queue/join", "cancel"):
            status, _, _ = request(
                f"{folder_page.url}gradio_api/{path}", body=json.dumps(question).encode(), headers=headers
            )
            assert 400 <= status < 500


def test_importing_the_demo_does_not_import_gradio() -> None:
    code = "import sys, promptreid.demo.app; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_page_is_served_as_its_documentation_says(model: Any, hostile_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```pycon\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    source = "".join(example.source for example in DocTestParser().get_examples(block))
    (tmp_path / "crops").symlink_to(hostile_folder)
    save_prompts(model, tmp_path / "my-prompts")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-u", "-c", source],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        written = ""
        while not written.endswith("end it "):
            letter = process.stdout.read(1)
            assert letter, f"the page did not open: {written!r}"
            written += letter
        url = re.search(r"http://127\.0\.0\.1:\d+/", written)
        assert url is not None
        assert request(url[0])[0] == 200
        process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_require_gradio_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r'the demo needs gradio: pip install "promptreid\[demo\]"'):
        require_gradio()


def test_require_gradio_turns_its_telemetry_off_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "untouched")
    monkeypatch.setitem(sys.modules, "gradio", sys)
    assert require_gradio() is sys
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_RUN_HISTORY"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
