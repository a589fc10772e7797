"""The page as a program: how it starts, and what it leaves behind."""

import ast
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from doctest import DocTestParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import promptreid.demo.app as app
from promptreid import Gallery, PromptedCLIP, save_prompts
from promptreid.demo.app import require_gradio
from promptreid.demo.sources import Opened
from promptreid.errors import CheckpointError, DatasetError, MissingExtraError, ServingError, StoreError


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


@pytest.mark.parametrize("place", ["s3://bucket/people", "folder"])
def test_start_opens_a_store_by_its_address_or_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder" / "images.lance" / "_versions").mkdir(parents=True)
    url = place if "://" in place else str(tmp_path / place)
    asked: list[str] = []

    def load(where: str | Path, model: PromptedCLIP | None) -> None:
        asked.append(str(where))
        raise StoreError("cannot be reached")

    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    monkeypatch.setattr(app.StoredGallery, "load", load)
    with pytest.raises(StoreError, match="cannot be reached"):
        app.start(url)
    assert asked == [url]


def test_start_that_fails_leaves_nothing_behind(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            app.start(opened.gallery)
    assert list(tmp_path.iterdir()) == []
    assert os.environ["GRADIO_ALLOWED_PATHS"] == "/"
    assert "GRADIO_TEMP_DIR" not in os.environ


@pytest.fixture
def stood_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Instead of gradio's page: what `_serve` is given, and at the end whether it was closed."""
    seen: list[Any] = []
    page = SimpleNamespace(local_url="http://127.0.0.1:1/", close=lambda verbose: seen.append("closed"))

    def serve(*arguments: Any) -> Any:
        seen.append(arguments)
        return page

    monkeypatch.setattr(app, "require_gradio", lambda: SimpleNamespace())
    monkeypatch.setattr(app, "_serve", serve)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return seen


def test_start_twice_in_one_process_is_refused(opened: Opened, stood_in: list[Any]) -> None:
    with app.start(opened.gallery) as running:
        assert running.url == "http://127.0.0.1:1/"
        with pytest.raises(RuntimeError, match="already serving a demo; close it first"):
            app.start(opened.gallery)
    assert stood_in[1:] == ["closed"]
    app.start(opened.gallery).close()


def test_start_takes_a_folder_with_a_gallery_and_encodes_nothing(
    indexed: Opened, model: PromptedCLIP, stood_in: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PromptedCLIP, "encode_image", None)  # whoever encodes an image fails
    assert indexed.gallery.directory is not None
    app.start(indexed.gallery.directory, model=model).close()
    answers = stood_in[0][1]
    assert (answers.opened.name, len(answers.gallery)) == ("index", 8)
    with pytest.raises(CheckpointError, match="was encoded by another model"):
        app.start(indexed.gallery.directory)  # the shipped one


def test_start_without_images_is_refused(model: PromptedCLIP, stood_in: list[Any]) -> None:
    with pytest.raises(DatasetError, match="the gallery is empty; add images first"):
        app.start(Gallery(model, [], torch.empty(0, model.embed_dim)))
    assert stood_in == []


def test_start_of_an_empty_gallery_names_its_folder(model: PromptedCLIP, tmp_path: Path, stood_in: list[Any]) -> None:
    gallery = Gallery(model, [], torch.empty(0, model.embed_dim))
    gallery.save(tmp_path / "empty")
    with pytest.raises(DatasetError, match=re.escape(f"{tmp_path / 'empty'} is empty; add images first")):
        app.start(gallery)
    assert stood_in == []


@pytest.mark.parametrize(
    ("host", "auth", "trusted"),
    [
        ("127.0.0.1", None, True),
        ("0.0.0.0", None, False),
        ("0.0.0.0", ("anna", "secret"), True),
        ("0.0.0.0", [("anna", "secret"), ("bob", "secret")], True),
    ],
)
def test_start_trusts_this_computer_and_who_knows_a_password(
    opened: Opened, stood_in: list[Any], host: str, auth: Any, trusted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app.start(opened.gallery, host=host, auth=auth).close()
    answers, pairs = stood_in[0][1], stood_in[0][5]
    assert answers.is_trusted == trusted
    assert pairs == ([] if auth is None else [auth] if isinstance(auth, tuple) else auth)
    who = {"127.0.0.1": "", "0.0.0.0": "a password can" if auth else "reaches this computer can"}[host]
    assert who in caplog.text


@pytest.mark.parametrize("auth", [("anna", ""), ("", "secret"), ("anna",), [("anna", " ")], "anna:secret"])
def test_start_with_an_empty_password_is_refused(opened: Opened, stood_in: list[Any], auth: Any) -> None:
    with pytest.raises(ValueError, match="auth holds an empty user or password; give a pair"):
        app.start(opened.gallery, auth=auth)
    assert stood_in == []


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ({"port": 80_000}, ValueError, "the port is 80000, expected 1 to 65535"),
        ({"port": 0}, ValueError, "the port is 0, expected 1 to 65535"),
        (
            {"host": "no-such-host.invalid"},
            ServingError,
            "the host no-such-host.invalid is not an address of this computer",
        ),
        ({"host": "a" * 70}, ServingError, "is not an address of this computer"),
        ({"host": "192.0.2.1"}, ServingError, "the host 192.0.2.1 is not an address of this computer"),
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


@pytest.mark.parametrize("file", sorted(Path(app.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_no_module_of_the_demo_imports_gradio_or_what_it_brings(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.partition(".")[0] in ("gradio", "starlette", "fastapi", "uvicorn")]


@pytest.mark.slow
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
        while not written.endswith("close it "):
            letter = process.stdout.read(1)
            assert letter, f"the page did not open: {written!r}"
            written += letter
        url = re.search(r"http://127\.0\.0\.1:\d+/", written)
        assert url is not None
        assert urllib.request.urlopen(url[0], timeout=60).status == 200
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
