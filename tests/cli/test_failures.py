"""Failures, odd names and odd terminals: one line for people, one JSON object for scripts, a code for each kind."""

import ast
import gc
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import EntryNotFoundError

import promptreid
from promptreid import Gallery
from promptreid.cli import evaluate_model, index_crops, search_gallery, serve_demo, train_model
from promptreid.cli.main import _FIRST_NAMES, _IN_A_SHELL, _in_a_shell, build_parser, main
from promptreid.cli.output import Output
from promptreid.errors import HubError, WeightsError


def caused(error, cause):
    error.__cause__ = cause
    return error


def fail_with(monkeypatch, error, module="promptreid.data.reader"):
    """Let `evaluate` fail as if a module raised the error, or as its code does."""
    code = error if isinstance(error, str) else "raise error"
    names = {"__name__": module, "error": error}
    exec(compile(f"def fail():\n    {code}", "module.py", "exec"), names)

    def run(console, /, **settings):
        console.record(scores={"rank1": 0.5})
        names["fail"]()

    monkeypatch.setattr(evaluate_model, "run", run)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (WeightsError("the weights do not fit:\n\tMissing key\n\tend"), 2, "the weights do not fit: Missing key end"),
        (KeyError("the gallery has no image 'a.jpg'"), 2, "the gallery has no image 'a.jpg'"),
        (MemoryError("3 GB"), 5, "out of memory (3 GB); a smaller --batch-size needs less"),
        (
            HubError("not reached; or pass local_files_only=True to use"),
            2,
            "not reached; or set HF_HUB_OFFLINE=1 to use",
        ),
        (ValueError("batch_size is 9, expected 1 to 8"), 2, "--batch-size is 9, expected 1 to 8"),
        (TypeError("k is '5'"), 2, "k is '5'"),
        (FileNotFoundError(2, "No such file or directory", "a"), 2, "[Errno 2] No such file or directory: 'a'"),
        (OSError(28, "No space left on device", "a"), 5, "[Errno 28] No space left on device: 'a'"),
        (TimeoutError("another process is at work"), 5, "another process is at work"),
        (caused(OSError("cannot write the gallery"), OSError(5, "Input/output error")), 5, "cannot write the gallery"),
        (caused(HubError("the Hub cannot be reached"), OSError("no route")), 5, "the Hub cannot be reached"),
        (caused(HubError("no such file"), EntryNotFoundError("404")), 2, "no such file"),
        ("int('x')", 4, "unexpected ValueError: invalid literal for int() with base 10: 'x'; please report"),
        ("None + 1", 4, "unexpected TypeError: unsupported operand type(s) for +"),
        ("__import__('io').BytesIO().fileno()", 4, "unexpected UnsupportedOperation: fileno; please report"),
        ("{}['weight']", 4, "unexpected KeyError: weight; please report"),
        ("None.x", 4, "unexpected AttributeError: 'NoneType' object has no attribute 'x'; please report"),
        ("open('nothere')", 2, "[Errno 2] No such file or directory: 'nothere'"),
    ],
)
def test_every_failure_is_one_line_one_object_and_a_code(call, drawn, monkeypatch, error, code, words):
    fail_with(monkeypatch, error)
    found, text, notes = call("evaluate", drawn)
    assert (found, text, notes.count("\n")) == (code, "", 1)
    assert notes.startswith(f"error: {words}")
    found, answer, notes = call("evaluate", drawn, "--json")
    assert (found, answer["exit_code"]) == (code, code)
    assert notes == f"error: {answer['error']}\n"
    assert answer["scores"] == {"rank1": 0.5}  # what was found before is not lost


@pytest.mark.parametrize(
    ("error", "module", "code"),
    [
        (RuntimeError("the SHA256 checksum does not match"), "open_clip.pretrained", 2),
        (RuntimeError("size mismatch"), "torch.nn", 4),
        (ValueError("odd"), "timm.models", 4),
    ],
)
def test_what_other_packages_raise_is_unexpected_unless_open_clip_does(call, drawn, monkeypatch, error, module, code):
    fail_with(monkeypatch, error, module)
    assert call("evaluate", drawn)[0] == code


def test_an_image_that_a_loading_process_cannot_read_is_one_line(call, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # waited for where a process failed
    broken = shutil.copytree(drawn, tmp_path / "broken")
    record = next(entry for entry in json.loads((broken / "reid_raw.json").read_text()) if entry["split"] == "test")
    (broken / "imgs" / record["file_path"]).write_bytes(b"no image")
    code, _, notes = call("evaluate", broken, "--num-workers", "1", "--batch-size", "4")
    assert (code, notes.count("\n")) == (2, 1)
    assert notes.startswith(f"error: cannot read the image {broken / 'imgs' / record['file_path']} (")
    gc.collect()


def test_traceback_is_printed_to_those_who_ask(call, drawn, monkeypatch):
    fail_with(monkeypatch, "1 / 0")
    code, answer, notes = call("evaluate", drawn, "--json", "--traceback")
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
    output.record(scores={"mAP": float("nan")})
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


@pytest.mark.parametrize("words", [["-k", "3", "--", "-gal", "-a"], ["-k", "3", "--", "--json", "-a"]])
def test_first_argument_that_begins_with_a_dash_stands_behind_two(words):
    settings = build_parser().parse_args(["search", *words])
    assert (str(settings.index), settings.sentence, settings.k, settings.json) == (words[3], "-a", 3, False)


@pytest.mark.parametrize("option", ["--remove", "--restore"])
def test_two_dashes_end_an_option_of_several_values(option, tmp_path):
    settings = build_parser().parse_args(["index", "--output", "g", option, "a.jpg", "b.jpg", "--", str(tmp_path)])
    assert (settings.folder, getattr(settings, option[2:])) == (tmp_path, ["a.jpg", "b.jpg"])
    settings = build_parser().parse_args(["train", "--output", "r", "--seeds", "0", "1", "--", str(tmp_path)])
    assert (settings.root, settings.seeds) == (tmp_path, [0, 1])
    assert "\0" not in "".join(vars(settings))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder to work in, with one of everything that an argument may wrongly name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "prompt_config.json").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "-dash").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "gallery.json").touch()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")


# Work that an argument must not wait for.
WORK = [
    "promptreid.data.reader.load_dataset",
    "promptreid.data.check.check_dataset",
    "promptreid.towers.loading.load_clip",
    "promptreid.model.prompted_clip.load_prompts",
    "promptreid.model.publishing.push_prompts",
    "promptreid.retrieval.gallery.Gallery.load",
    "promptreid.demo.app.launch",
]


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a man in red", 'put the sentence in quotation marks: promptreid try "a man in red"'),
        ("serach gallery", "did you mean search?"),
        ("evaluate data --split tests", "did you mean test?"),
        ("train data --output out --batch_size 8", "--batch_size 8; did you mean --batch-size?; see promptreid train"),
        ("train data --output out --Batch-Size=8", "--Batch-Size=8; did you mean --batch-size?; see"),
        ("train data --output out --lr 1 1", "--lr 1 1; did you mean --learning-rates?; see"),
        ("search -- gallery 'a man' --json", "unrecognized arguments: --json; options stand before --; see promptr"),
        ("search --picture -- gallery 'a man'", "argument --picture: expected one argument"),
        ("search gallery 'a man' --top-k 3", "--top-k 3; did you mean -k?; see promptreid search"),
        ("check data --top-k 3", "unrecognized arguments: --top-k 3; see promptreid check"),
        ("index -dash --output out", "unrecognized arguments: -dash; did you mean ./-dash?; see promptreid index"),
        ("index -dish --output out", "unrecognized arguments: -dish; see promptreid index"),
        ("train data --output out --epochs 2", "argument --epochs: expected 2 arguments: --epochs ONE TWO; see"),
        ("train data --output out --image-size 384x128", "expected 2 arguments: --image-size H W; see promptreid tr"),
        ("train data --output", "argument --output: expected one argument; see promptreid train --help"),
        ("search gallery a b", 'put the sentence in quotation marks: "a b"; see promptreid search --help'),
        ("check nowhere", "argument root is nowhere, but there is no folder of that name"),
        ("check ''", "argument root is empty; give a path"),
        # Names that would be arguments of Python in other messages.
        ("check output_dir", "argument root is output_dir, but there is no folder"),
        ("check 'my output_dir'", "argument root is my output_dir, but there is no folder"),
        ("check output_dir/none", "argument root is output_dir/none, but there is no folder"),
        ("check revision=3", "argument root is revision=3, but there is no folder"),
        ("check image_size", "argument root is image_size, but there is no folder"),
        ("check '5: is x'", "argument root is 5: is x, but there is no folder"),
        ("evaluate data --split 'x: is y'", "argument --split: invalid choice: 'x: is y' (choose from"),
        (
            r"evaluate ..\\data",
            "argument root is ..\\data, but there is no folder of that name; between folders write /",
        ),
        ("check file", "argument root is file, but that is a file; give its folder"),
        ("check kept --layout folder", "--layout would do nothing here: kept is an index"),
        ("check kept --on-bad skip", "--on-bad would do nothing here: kept is an index"),
        ("check kept --split 80/10/10", "--split would do nothing here: kept is an index"),
        ("check kept --table a.csv", "--table would do nothing here: kept is an index"),
        ("check kept --no-images", "--no-images would do nothing here: kept is an index"),
        ("check data --limit -1", "argument --limit is -1, expected at least 0"),
        ("check data --tokenizer ViT-B-61", "open_clip has no model named 'ViT-B-61'"),
        ("train nowhere --output out", "argument root is nowhere, but there is no folder"),
        ("train data --output file/run", "argument --output is file/run, but file is a file"),
        ("train data --output ''", "argument --output is empty"),
        ("train data --output out --cache-images file", "argument --cache-images is file, but file is"),
        ("train data --output out --epochs -1 1", "argument --epochs is -1, expected at least 0"),
        ("train data --output out --epochs 0 0", "--epochs is 0 0, so there is nothing to train"),
        ("train data --output out --learning-rates 1 nan", "argument --learning-rates is nan, expect"),
        ("train data --output out --learning-rates 0 1", "--learning-rates is 0, expected a number abo"),
        ("train data --output out --learning-rates x 1", "--learning-rates: invalid number value: 'x'"),
        ("train data --output out --batch-size 1", "is 1, expected at least 2: pairs are compared"),
        ("train data --output out --seed -1", "argument --seed is -1, expected 0 to"),
        ("train data --output out --seed 18446744073709551616", "argument --seed is 18446744073709551616, expected"),
        ("train data --output out --num-workers -1", "argument --num-workers is -1, expected at least 0"),
        ("train data --output out --prompt-length 0", "--prompt-length is 0, expected at least 1: stage 1"),
        ("train data --output out --image-size 0 9", "argument --image-size is 0, expected 1 to 2048"),
        ("train data --output out --model vit_b_16 --pretrained openai", "Did you mean ViT-B-16,"),
        ("train data --output out --model ViT-B-16 --pretrained opnai", "no pretrained weights tagged"),
        ("train data --output out --model ViT-B-16", "--model ViT-B-16 needs --pretrained TAG"),
        ("train data --output out --device cuda:99", "--device cuda:99 cannot be used here"),
        ("train data --output out --project mine", "--project would do nothing here: it goes with --tracker NAME"),
        (
            "train data --output out --epochs 0 1 --average-prompts --self-consistency 1",
            "--self-consistency and --average-prompts would do nothing here: they are of stage 1, which has no epochs",
        ),
        (
            "train data --output out --epochs 0 1 --prompt-length 0 --prompt-depth 3",
            "--prompt-depth would do nothing here: --prompt-length is 0, so there are no prompts",
        ),
        ("train data --output out --algorithm sgd --epsilon 1", "--epsilon would do nothing here: sgd has no denom"),
        ("train data --output out --split 80,10,10", "--split is '80,10,10', expected percent of the persons"),
        ("evaluate nowhere", "argument root is nowhere, but there is no folder"),
        ("evaluate data --batch-size 0", "argument --batch-size is 0, expected at least 1"),
        ("evaluate data --batch-size 2.5", "argument --batch-size: invalid int value: '2.5'"),
        ("evaluate data --num-workers -1", "argument --num-workers is -1, expected at least 0"),
        ("evaluate data --image-size 0 48", "argument --image-size is 0, expected 1 to 2048"),
        ("evaluate data --output file", "argument --output is file, but file is a file; give a folder"),
        ("evaluate data --model run", "argument --model is run, a whole run; the model in it is run/model"),
        ("evaluate data --model ViT-b-16 --pretrained openai", "Did you mean ViT-B-16,"),
        ("evaluate data --model ViT-B-16 --pretrained ./a.pt", "there is no file of that name"),
        ("evaluate data --pretrained openai", "go with an open_clip name; promptreid-tiny-adapted brings its own"),
        ("evaluate data --revision main", "--revision goes with a Hub repository, and promptreid-tiny-adapted is not"),
        ("evaluate data --device cudda", "--device cudda cannot be used here"),
        ("index nowhere", "argument folder is nowhere, but there is no folder"),
        ("index file", "argument folder is file, but that is a file; give its folder"),
        ("index data", "data has no images"),
        ("index data --output file", "argument --output is file, but file is a file"),
        ("index data --threads 0", "argument --threads is 0, expected at least 1"),
        ("index data --export a.csv", "--export is a.csv, which ends in .csv, expected .parquet or .npz"),
        ("index data --export new/a.npz", "--export is new/a.npz, but there is no folder new; make it first"),
        ("index --export a.npz --prune", "--prune would do nothing here: give it with a folder"),
        ("index --export a.npz --model a/b --device cpu", "--model and --device would do nothing here"),
        ("search '' 'a man'", "argument index is empty"),
        ("search gallery '  '", "the query is empty; describe the person"),
        ("search gallery a.jpg", "is the name of an image, and text is always a sentence"),
        ("search gallery 'a man' --threshold high", "argument --threshold is 'high', expected a number in"),
        ("search gallery 'a man' --threshold nan", "argument --threshold is 'nan', expected a number in"),
        ("search gallery 'a man' --threshold 2", "argument --threshold is '2', expected a number in [-1, 1]"),
        ("search gallery 'a man' --where folder", "argument --where is 'folder', expected KEY=VALUE"),
        ("search gallery 'a man' -k 0", "argument -k is 0, expected at least 1"),
        ("search gallery --image nothere.jpg", "--image is nothere.jpg, but there is no such file"),
        ("search gallery --image pipe", "--image is pipe, but that is a folder or a device"),
        ("search gallery --image text.jpg", "cannot read the image text.jpg"),
        ("search gallery 'a man' --picture data", "argument --picture is data, which is a folder"),
        ("search gallery 'a man' --picture a.jpg", "--picture is a.jpg, which ends in .jpg, expected .png"),
        ("search gallery 'a man' --picture new/a.png", "but there is no folder new; make it first"),
        ("search gallery 'a man' --picture pipe.png", "--picture is pipe.png, which is not a regular file"),
        ("search gallery 'a man' --image-size 9 9", "--image-size would do nothing here: gallery goes with"),
        ("search gallery 'a man' --pretrained openai", "--pretrained would do nothing here"),
        ("demo --device cudda", "--device cudda cannot be used here"),
        ("demo --revision main", "--revision goes with a Hub repository, and promptreid-tiny-adapted is not"),
        ("demo --port 80000", "argument --port is 80000, expected 1 to 65535"),
        ("demo nowhere", "argument gallery is nowhere, but there is no folder"),
        ("demo --auth secret", "--auth is not USER:PASSWORD in line 1; write both"),
        ("demo --model run", "argument --model is run, a whole run; the model in it is run/model"),
        ("demo --model a/b --host nowhere.invalid", "the host nowhere.invalid is not an address of this computer"),
        ("push run a/b", "argument folder is run, a whole run; the model in it is run/model: give that"),
        ("push nowhere a/b", "argument folder is nowhere, but there is no folder"),
        ("push data a/b --metrics none.json", "--metrics is none.json, but there is no such file"),
        ("push data a/b --metrics file", "file is not a metrics.json"),
        ("push data 'not an id'", "argument repository is 'not an id', which is not the id of a Hub"),
    ],
)
def test_every_argument_is_checked_before_any_work(call, monkeypatch, words, message):
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda package: package)
    monkeypatch.setattr("promptreid.cli.search_gallery.check_gallery_folder", lambda folder, command, second: None)
    for name in WORK:
        monkeypatch.setattr(name, lambda *given, **settings: pytest.fail("it began to work"))
    code, _, notes = call(*shlex.split(words))
    assert code == 2
    assert message in notes


def test_a_folder_that_may_not_be_written_is_found_before_any_work(call, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for words in (
        ["index", drawn, "--output", tmp_path / "own"],
        ["search", "x", "y", "--picture", tmp_path / "a.png"],
    ):
        code, _, notes = call(*words)
        assert (code, "but you may not write into" in notes) == (2, True)


def texts_of(path):
    """Every text of a module, but not its docstrings; an f-string is one text, with `{}` for its values."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_advice_that_is_rewritten_for_the_shell_is_in_a_message():
    # A message that is reworded would silently lose its shell form, and so would one whose advice ends differently.
    package = Path(promptreid.__file__).parent
    texts = [text for path in package.rglob("*.py") if path.name != "main.py" for text in texts_of(path)]
    assert len(_IN_A_SHELL) > 10
    assert [advice for advice in _IN_A_SHELL if not any(advice in text for text in texts)] == []
    in_python = re.compile("|".join(map(re.escape, [*_IN_A_SHELL, "another output_dir", "by revision="])))
    assert [text for text in texts if in_python.search(_in_a_shell(text))] == []


@pytest.mark.parametrize(
    ("message", "in_the_shell"),
    [
        ("text_length is 99999, expected at most 4096", "--prompt-length is 99999, expected at most 4096"),
        ("depth is 99, but this tower has 4 blocks", "--prompt-depth is 99, but this tower has 4 blocks"),
        ("image_dir is 'd/cuhk', but", "--image-dir is 'd/cuhk', but"),
        ("layout is 'csv', expected one of", "--layout is 'csv', expected one of"),
        ("split is '80,10,10', expected", "--split is '80,10,10', expected"),
        ("layout is a file; give its folder", "layout is a file; give its folder"),
        ("t.csv, line 2: split is 'Train', expected one of", "t.csv, line 2: split is 'Train', expected one of"),
        ("layouts is 'a'", "layouts is 'a'"),
    ],
)
def test_python_names_at_the_beginning_of_a_message_are_options(message, in_the_shell):
    assert _in_a_shell(message) == in_the_shell


def test_options_that_python_names_become_are_those_of_train(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert set(re.findall(r"--[\w-]+", capsys.readouterr().out)) >= set(_FIRST_NAMES.values())


@pytest.mark.parametrize(
    ("command", "module", "words", "package", "extra"),
    [
        ("train", train_model, ["data", "--output", "run"], "accelerate", "train"),
        ("train", train_model, ["data", "--output", "run"], "matplotlib", "viz"),
        ("evaluate", evaluate_model, ["data", "--output", "run"], "matplotlib", "viz"),
        ("search", search_gallery, ["gallery", "a man", "--picture", "a.png"], "matplotlib", "viz"),
        ("index", index_crops, ["data", "--export", "a.parquet"], "pyarrow", "parquet"),
        ("demo", serve_demo, [], "gradio", "demo"),
    ],
)
def test_a_missing_extra_is_found_before_any_work(call, places, monkeypatch, command, module, words, package, extra):
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
def test_output_onto_a_full_disk_is_one_line(fork, drawn, json_too):
    script = (
        "import os, sys\n"
        "from promptreid.cli.main import main\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        f"sys.exit(main(['check', {str(drawn)!r}, '--no-images', *sys.argv[1:]]))\n"
    )
    process = fork(script, *json_too)
    _, errors = process.communicate()
    assert (process.returncode, errors.count("\n")) == (5, 1)
    assert errors.startswith("error: standard output cannot be written ([Errno 28] No space left on device)")


def test_output_that_is_closed_is_one_line(drawn):
    done = run_into(None, "check", str(drawn), "--no-images", preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: standard output cannot be written (it is closed)")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["search", "--help"]])
def test_help_onto_a_full_disk_is_one_line(words):
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = run_into(full, *words)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert done.stderr.startswith("error: standard output cannot be written ([Errno 28] No space left on device)")


@pytest.mark.parametrize("closed", [True, False])
def test_errors_that_nobody_can_be_told_keep_their_code(tmp_path, closed):
    command = [sys.executable, "-W", "ignore", "-m", "promptreid", "search", str(tmp_path), "a man", "--threshold", "x"]
    where = "2>&-" if closed else "2>/dev/full"
    done = subprocess.run(["sh", "-c", f"{shlex.join(command)} {where}"], timeout=200)
    assert done.returncode == 2


def test_a_folder_of_a_model_that_is_not_there_is_named_beside_the_hub(call, drawn, monkeypatch):
    def unreachable(name, **settings):
        raise HubError("the Hub cannot be reached") from OSError("no route")

    monkeypatch.setattr("promptreid.hub.transfer.download_prompts", unreachable)
    code, _, notes = call("evaluate", drawn, "--model", "runs/model")
    assert (code, notes) == (5, "error: the Hub cannot be reached; there is no folder runs/model here either\n")


def test_the_hubs_own_lines_about_trying_again_are_not_printed(call):
    call("search", "nowhere", "a man")
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_a_command_in_this_process_leaves_standard_output_as_it_was(capsys):
    assert main(["search"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_in_one_json_object_and_a_code_of_its_own(monkeypatch, capsys, name, code):
    number = signal.Signals[name]

    def run(console, /, **settings):
        console.record(images=3)
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)  # the signal comes at once
        finally:
            os.kill(os.getpid(), number)  # once more, while things are put in order
            console.record(tidied=True)

    monkeypatch.setattr(index_crops, "run", run)
    before = signal.signal(number, signal.SIG_DFL)  # a test suite in the background may ignore it
    try:
        assert main(["index", ".", "--json"]) == code
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["exit_code"], answer["images"], answer["tidied"]) == (code, 3, True)
    assert answer["error"] == f"stopped by {name}; what was finished is kept, and the same command resumes"


@pytest.mark.posix
def test_sigterm_to_the_demo_promises_nothing(monkeypatch, capsys):
    monkeypatch.setattr(serve_demo, "run", lambda console, /, **settings: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda package: package)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["demo"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: stopped by SIGTERM\n"


@pytest.mark.posix
def test_sigterm_that_somebody_else_takes_care_of_is_left_to_them(monkeypatch):
    def handler(*_):
        pass

    monkeypatch.setattr(index_crops, "run", lambda console, /, **settings: signal.getsignal(signal.SIGTERM) is handler)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert main(["index", "."]) == 1
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow  # a process that imports torch
@pytest.mark.posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_real_index_with_a_gallery_that_is_whole(call, drawn, signalled, tmp_path, name, code):
    crops = sorted((drawn / "imgs").rglob("*.*g"))
    some, more, gallery = tmp_path / "some", tmp_path / "more", tmp_path / "gallery"
    for folder, times in ((some, 1), (more, 20)):
        folder.mkdir()
        for index, path in enumerate(crops * times):
            shutil.copy(path, folder / f"{index}{path.suffix}")
    assert call("index", some, "--output", gallery)[0] == 0
    before = {path: path.read_bytes() for path in gallery.rglob("*") if path.is_file() and path.suffix != ".lock"}

    def reads_crops(process):
        with suppress(OSError):  # files are closed meanwhile
            return any(os.readlink(link).startswith(str(more)) for link in Path(f"/proc/{process.pid}/fd").iterdir())

    words = ["index", more, "--output", gallery, "--json", "--batch-size", 4]
    found, out, errors = signalled(words, signal.Signals[name], ready=reads_crops)
    answer = json.loads(out)  # one object and nothing else
    assert (found, answer["exit_code"]) == (code, code), errors
    assert answer["error"].startswith(f"stopped by {name}; what was finished is kept")
    assert "Traceback" not in errors
    kept = {path: content for path, content in before.items() if path.name != "gallery.json"}
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(Gallery.load(gallery)) >= len(crops)  # and what was encoded by then
    assert call("index", some, "--output", gallery, "--json")[1]["exit_code"] == 0
