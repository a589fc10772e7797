"""Failures, odd names and odd terminals: one line for people, one JSON object for scripts, a code for each kind."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from promptreid.cli import evaluate_model, search_gallery, train_model
from promptreid.cli.main import build_parser, main
from promptreid.cli.output import Output
from promptreid.errors import HubError, WeightsError


def fail_with(monkeypatch, error):
    def run(console, /, **settings):
        console.record(scores={"rank1": 0.5})
        raise error

    monkeypatch.setattr(evaluate_model, "run", run)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (WeightsError("the weights do not fit:\n\tMissing key\n\tend"), 2, "the weights do not fit: Missing key end"),
        (KeyError("the gallery has no image 'a.jpg'"), 2, "the gallery has no image 'a.jpg'"),
        (MemoryError("3 GB"), 2, "out of memory (3 GB); a smaller --batch-size needs less"),
        (
            HubError("not reached; or pass local_files_only=True to use"),
            2,
            "not reached; or set HF_HUB_OFFLINE=1 to use",
        ),
        (RuntimeError("odd"), 4, "unexpected RuntimeError: odd; please report it with what the same command prints"),
        (KeyError("weight"), 4, "unexpected KeyError: weight; please report"),
        (AttributeError("no x"), 4, "unexpected AttributeError: no x; please report"),
        (RecursionError("deep"), 4, "unexpected RecursionError: deep; please report"),
    ],
)
def test_every_failure_is_one_line_one_object_and_a_code(call, monkeypatch, error, code, words):
    fail_with(monkeypatch, error)
    found, text, notes = call("evaluate", "data")
    assert (found, text, notes.count("\n")) == (code, "", 1)
    assert notes.startswith(f"error: {words}")
    found, answer, notes = call("evaluate", "data", "--json")
    assert (found, answer["exit_code"]) == (code, code)
    assert notes == f"error: {answer['error']}\n"
    assert answer["scores"] == {"rank1": 0.5}  # what was found before is not lost


def test_a_refusal_of_open_clip_is_no_unexpected_failure(call, monkeypatch):
    fail = compile("def fail(): raise RuntimeError('the SHA256 checksum does not not match')", "pretrained.py", "exec")
    names = {"__name__": "open_clip.pretrained"}
    exec(fail, names)
    monkeypatch.setattr(evaluate_model, "run", lambda console, /, **settings: names["fail"]())
    assert call("evaluate", "data")[::2] == (2, "error: the SHA256 checksum does not not match\n")


def test_traceback_is_printed_to_those_who_ask(call, monkeypatch):
    fail_with(monkeypatch, RuntimeError("odd"))
    code, answer, notes = call("evaluate", "data", "--json", "--traceback")
    assert (code, answer["exit_code"]) == (4, 4)
    assert notes.startswith("Traceback")
    assert "in run" in notes


ODD = os.fsdecode(b"bad\xffname \x1b[31m\n\xe2\x80\xae.jpg")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_odd_names_are_escaped_for_people_and_whole_for_scripts(monkeypatch, encoding):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding))
    Output(as_json=False).say(f"1  {ODD}", "größer")
    lines = stream.getvalue().decode(encoding).splitlines()
    assert lines[0] == r"1  bad\udcffname \x1b[31m\n\u202e.jpg"
    assert lines[1] == ("gr\\xf6\\xdfer" if encoding == "ascii" else "größer")
    stream.truncate(0)
    stream.seek(0)
    output = Output(as_json=True)
    output.record(path=ODD)
    output.finish(0)
    found = json.loads(stream.getvalue().decode(encoding))["path"]
    assert os.fsencode(found) == os.fsencode(ODD)


def test_odd_names_in_errors_and_warnings_do_not_reach_the_terminal(capsys):
    Output(as_json=False).fail(f"there is no {ODD}", 2)
    Output(as_json=False).note(ODD)
    assert "\x1b" not in (notes := capsys.readouterr().err)
    assert r"\x1b[31m" in notes


@pytest.mark.parametrize(
    "words",
    [
        ["gallery", "a woman", "-k", "3"],
        ["gallery", "-k", "3", "a woman"],
        ["-k", "3", "gallery", "a woman"],
        ["-k", "3", "gallery", "--json", "a woman"],
    ],
)
def test_sentence_may_stand_behind_options(words):
    settings = build_parser().parse_args(["search", *words])
    assert (str(settings.index), settings.sentence, settings.k) == ("gallery", "a woman", 3)


def test_sentence_that_begins_with_a_dash_stands_behind_two(call):
    settings = build_parser().parse_args(["search", "gallery", "-k", "3", "--", "-a woman"])
    assert (settings.sentence, settings.k) == ("-a woman", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serach", "gallery"], "did you mean search?"),
        (["evaluate", "data", "--split", "tests"], "did you mean test?"),
        (["search", "gallery", "a", "b"], "unrecognized arguments: b; see promptreid search --help"),
        (["evaluate", "data", "--batch-size", "0"], "argument --batch-size is 0, expected at least 1"),
        (["evaluate", "data", "--batch-size", "2.5"], "argument --batch-size: invalid int value: '2.5'"),
        (["evaluate", "data", "--num-workers", "-1"], "argument --num-workers is -1, expected at least 0"),
        (["evaluate", "data", "--image-size", "0", "48"], "argument --image-size is 0, expected 1 to 2048"),
        (["evaluate", "data", "--output", "file"], "argument --output is file, but file is a file; give a folder"),
        (["train", "data", "--output", "file/run"], "argument --output is file/run, but file is a file"),
        (["index", "crops", "--output", "file"], "argument --output is file, but file is a file"),
        (["index", "crops", "--threads", "0"], "argument --threads is 0, expected at least 1"),
        (
            ["search", "gallery", "--image", "nothere.jpg"],
            "--image is nothere.jpg, but there is no such file",
        ),
        (
            ["search", "gallery", "--image", "pipe"],
            "--image is pipe, but that is a folder or a device",
        ),
        (["search", "gallery", "a man", "--picture", "run"], "argument --picture is run, which is a folder"),
        (["demo", "--port", "80000"], "argument --port is 80000, expected 1 to 65535"),
        (["check", "data", "--limit", "-1"], "argument --limit is -1, expected at least 0"),
        (["evaluate", "data", "--model", "run"], "argument --model is run, a whole run; the model in it is run/model"),
        (["demo", "--model", "run"], "argument --model is run, a whole run; the model in it is run/model"),
        (["push", "run", "a/b"], "argument folder is run, a whole run; the model in it is run/model: give that"),
        (["push", "elsewhere", "a/b", "--metrics", "none.json"], "--metrics is none.json, but there is no such file"),
    ],
)
def test_every_argument_is_checked_before_any_work(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "prompt_config.json").touch()
    os.mkfifo(tmp_path / "pipe")
    code, _, notes = call(*words)
    assert code == 2
    assert message in notes


@pytest.mark.parametrize(
    ("command", "module", "words", "package", "extra"),
    [
        ("train", train_model, ["data", "--output", "run"], "accelerate", "train"),
        ("train", train_model, ["data", "--output", "run"], "matplotlib", "viz"),
        ("evaluate", evaluate_model, ["data", "--output", "run"], "matplotlib", "viz"),
        ("search", search_gallery, ["gallery", "a man", "--picture", "a.png"], "matplotlib", "viz"),
    ],
)
def test_a_missing_extra_is_found_before_any_work(call, monkeypatch, command, module, words, package, extra):
    monkeypatch.setattr(module, "run", lambda console, /, **settings: pytest.fail("it began to work"))
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda name: None if name == package else SimpleNamespace())
    code, answer, _ = call(command, *words, "--json")
    assert code == answer["exit_code"] == 3
    assert answer["error"].startswith(f"promptreid {command}")
    assert f'needs {package}: pip install "promptreid[{extra}]"' in answer["error"]


def run_into(stdout, *words, **settings):
    command = [sys.executable, "-W", "ignore", "-m", "promptreid", *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=200, **settings)


@pytest.mark.parametrize("json_too", [[], pytest.param(["--json"], marks=pytest.mark.slow)])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_onto_a_full_disk_is_one_line(drawn, json_too):
    with open("/dev/full", "w") as full:
        done = run_into(full, "check", str(drawn), "--no-images", *json_too)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: standard output cannot be written ([Errno 28] No space left on device)")


def test_output_that_is_closed_is_one_line(drawn):
    done = run_into(None, "check", str(drawn), "--no-images", preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: standard output cannot be written (it is closed)")


def test_a_command_in_this_process_leaves_standard_output_as_it_was(capsys):
    assert main(["search"]) == 2
    assert capsys.readouterr().out == ""
