import json
import os
import signal

import pytest

from promptreid import Gallery
from promptreid.cli.serve_demo import AUTH_VARIABLE, read_auth


@pytest.fixture
def launched(monkeypatch):
    """What the page is started with; nothing is served, and gradio need not be installed."""
    given = {}
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda package: package)
    monkeypatch.setattr(
        "promptreid.demo.app.launch", lambda gallery, **options: given.update(gallery=gallery, **options)
    )
    return given


def test_demo_without_anything_searches_drawn_people_with_the_shipped_model(call, launched):
    assert call("demo", "--port", 7861)[0] == 0
    model = launched.pop("model")
    launched.pop("announce")
    assert model.source.name == "promptreid-tiny"
    assert model.config.text_length > 0
    assert launched == {
        "gallery": None, "host": "127.0.0.1", "port": 7861, "auth": None, "open_browser": False, "progress": False,
    }  # fmt: skip


def test_demo_tells_its_address_to_people_on_standard_output_and_to_scripts_in_the_object(call, monkeypatch):
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda package: package)
    monkeypatch.setattr("promptreid.demo.app.launch", lambda gallery, *, announce, **options: announce("http://a/"))
    assert call("demo")[:2] == (0, "The demo is at http://a/ (Ctrl-C ends it)\n")
    code, answer, notes = call("demo", "--json")
    assert (code, answer["url"]) == (0, "http://a/")
    assert notes == "The demo is at http://a/ (Ctrl-C ends it)\n"


def test_demo_loads_models_as_every_command_does(call, launched, monkeypatch):
    monkeypatch.setattr(
        "promptreid.model.prompted_clip.load_prompts", lambda model, revision, device: (model, revision, device)
    )
    assert call("demo", "--model", "someone/prompts", "--revision", "v1", "--device", "cpu")[0] == 0
    assert launched["model"] == ("someone/prompts", "v1", "cpu")
    bare = ["--model", "promptreid-tiny", "--pretrained", "generated", "--image-size", 96, 48]
    assert call("demo", *bare)[0] == 0
    assert (launched["model"].image_size, launched["model"].config.text_length) == ((96, 48), 0)
    code, answer, _ = call("demo", "--model", "someone/prompts", "--pretrained", "openai", "--json")
    assert (code, "brings its own" in answer["error"]) == (2, True)


def test_demo_of_an_index_opens_it_with_the_model_that_made_it(call, launched, drawn, tmp_path, monkeypatch):
    assert call("index", drawn / "imgs", "--output", tmp_path / "gallery")[0] == 0
    monkeypatch.setattr("promptreid.model.prompted_clip.PromptedCLIP.encode_image", None)  # nothing is encoded again
    code, _, notes = call("demo", tmp_path / "gallery")
    assert (code, notes) == (0, "")
    assert isinstance(launched["gallery"], Gallery)
    assert launched["gallery"].directory == tmp_path / "gallery"
    assert launched["gallery"].model is not None
    assert "model" not in launched
    code, answer, _ = call("demo", tmp_path / "gallery", "--pretrained", "openai", "--json")
    assert (code, "--pretrained would do nothing here" in answer["error"]) == (2, True)


def test_demo_of_crops_says_how_to_open_them_at_once(call, launched, drawn):
    code, _, notes = call("demo", drawn / "imgs")
    assert (code, launched["gallery"]) == (0, drawn / "imgs")
    assert f"promptreid index {drawn / 'imgs'} --output gallery and then promptreid demo gallery" in notes


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("anna:secret", [("anna", "secret")]),
        ("anna:with:colons and spaces ", [("anna", "with:colons and spaces")]),
        (" anna : secret\n\nbob:other\n", [("anna", " secret"), ("bob", "other")]),
        ("anna:one\x0btwo\u2028:three\r\nbob:other", [("anna", "one\x0btwo\u2028:three"), ("bob", "other")]),
    ],
)
def test_read_auth_of_argument_file_and_environment_says_the_same(tmp_path, text, pairs):
    file = tmp_path / "users"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    assert read_auth(text, {}) == pairs
    assert read_auth(f"@{file}", {AUTH_VARIABLE: "other:one"}) == pairs
    assert read_auth(None, {AUTH_VARIABLE: text}) == pairs
    assert read_auth(None, {AUTH_VARIABLE: f"@{file}"}) == pairs
    assert read_auth(None, {}) is None


@pytest.mark.parametrize("text", ["", "anna", "anna:", ":secret", "anna:  ", "anna:good\nverysecret"])
def test_read_auth_of_another_form_is_refused_without_a_word_of_it(text):
    with pytest.raises(ValueError, match="USER:PASSWORD") as refused:
        read_auth(text, {})
    assert "verysecret" not in str(refused.value)
    with pytest.raises(ValueError, match=AUTH_VARIABLE):
        read_auth(None, {AUTH_VARIABLE: text})


def test_read_auth_of_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--auth @.*nowhere cannot be read .*; give a file with one USER:PASSWORD"):
        read_auth(f"@{tmp_path / 'nowhere'}", {})


@pytest.mark.posix
def test_read_auth_of_a_pipe_or_a_file_that_others_can_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="cannot be read"):
        read_auth(f"@{tmp_path / 'pipe'}", {})
    (tmp_path / "users").write_text("anna:secret", encoding="utf-8")
    (tmp_path / "users").chmod(0o644)
    with pytest.warns(UserWarning, match="others on this computer can read .*users; chmod 600"):
        assert read_auth(f"@{tmp_path / 'users'}", {}) == [("anna", "secret")]


def test_demo_with_a_password_hands_it_over_and_never_prints_it(call, launched):
    code, _, notes = call("demo", "--auth", "anna:verysecret")
    assert (code, launched["auth"]) == (0, [("anna", "verysecret")])
    assert "verysecret" not in notes
    code, answer, notes = call("demo", "--auth", "verysecret", "--json")
    assert code == 2
    assert "verysecret" not in f"{answer}{notes}"


@pytest.mark.slow  # a process that imports torch and gradio
@pytest.mark.posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_real_page_with_one_object_and_leaves_no_copies(call, drawn, signalled, tmp_path, name, code):
    pytest.importorskip("gradio")
    gallery, scratch = tmp_path / "gallery", tmp_path / "scratch"
    scratch.mkdir()
    assert call("index", drawn / "imgs", "--output", gallery)[0] == 0
    before = {path: path.read_bytes() for path in gallery.rglob("*") if path.is_file() and path.suffix != ".lock"}
    lines = []

    def told(process):
        lines.append(process.stderr.readline())
        return "The demo is at http://127.0.0.1:" in lines[-1] and any(scratch.iterdir())

    found, out, errors = signalled(
        ["demo", gallery, "--json"], signal.Signals[name], ready=told, environment={"TMPDIR": str(scratch)}
    )
    answer = json.loads(out)  # one object and nothing else
    assert (found, answer["exit_code"]) == (code, code), (lines, errors)
    assert answer["url"] in lines[-1]
    assert answer["error"] == f"stopped by {name}"
    assert "Traceback" not in errors
    assert not [path for path in scratch.rglob("*") if path.is_file()]
    assert {path: path.read_bytes() for path in gallery.rglob("*") if path.is_file() and path in before} == before
