"""Many sentences to one gallery, tables, patterns, and what is said of scores."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from promptreid import Gallery
from promptreid.cli.options import ModelChoice


@pytest.fixture(scope="module")
def index(drawn, tmp_path_factory):
    from promptreid.cli.main import main

    folder = tmp_path_factory.mktemp("searched") / "gallery"
    assert main(["index", str(drawn / "imgs"), "--output", str(folder)]) == 0
    return folder


def typed(monkeypatch, text, *, at_terminal):
    stream = io.StringIO(text)
    stream.isatty = lambda: at_terminal
    monkeypatch.setattr(sys, "stdin", stream)


def test_a_pipe_is_answered_line_by_line(call, index, monkeypatch):
    typed(monkeypatch, "a man\n\na woman in a red coat\n", at_terminal=False)
    code, text, notes = call("search", index, "-k", 2)
    assert (code, notes) == (0, "")
    lines = text.splitlines()
    assert (lines[0], lines[4], len(lines)) == ("a man", "a woman in a red coat", 8)
    assert all("for people who are not there" in line for line in lines[3::4])
    typed(monkeypatch, "a man\na woman in a red coat\n", at_terminal=False)
    answer = call("search", index, "-k", 2, "--json")[1]
    assert [result["query"] for result in answer["results"]] == ["a man", "a woman in a red coat"]
    assert answer["results"][0]["best_score"] == answer["results"][0]["hits"][0]["score"]


class Pipe(io.RawIOBase):
    """Gives a line at a time, and calls `last` after them."""

    def __init__(self, lines, last):
        self.lines, self.last = iter(lines), last

    def readable(self):
        return True

    def readinto(self, buffer):
        line = next(self.lines, b"")
        if not line and self.last is not None:
            self.last()
        buffer[: len(line)] = line
        return len(line)


def piped(monkeypatch, *lines, last=None, encoding="latin-1"):
    """Bytes on standard input, in a locale of another encoding."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(lines, last)), encoding))


def test_a_pipe_is_utf_8_whatever_the_locale_is(call, index, monkeypatch):
    piped(monkeypatch, b"\xef\xbb\xbfa man\r\n", "ein größerer Mann\n".encode())
    answer = call("search", index, "--json")[1]
    assert [result["query"] for result in answer["results"]] == ["a man", "ein größerer Mann"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"un \xe9l\n", "line 2 of standard input is not UTF-8 text ('utf-8' codec can't decode byte 0xe9"),
        (b"x.jpg\n", "the query 'x.jpg' is the name of an image"),
    ],
)
def test_a_mistake_in_a_pipe_stands_beside_what_was_found_before(call, index, monkeypatch, line, words):
    piped(monkeypatch, b"a man\n", line, b"a woman\n", encoding="utf-8")
    code, answer, _ = call("search", index, "--json")
    assert (code, answer["error"].startswith(words)) == (2, True)
    assert [(result["query"], len(result["hits"])) for result in answer["results"]] == [("a man", 10)]


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.posix
@pytest.mark.parametrize(
    ("last", "code"), [(interrupt, 130), (lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(10), 143)]
)
def test_an_interrupted_pipe_keeps_its_answers(call, index, monkeypatch, last, code):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a test suite in the background may ignore it
    try:
        piped(monkeypatch, b"a man\n", last=last)
        found, answer, _ = call("search", index, "--json")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (found, [result["query"] for result in answer["results"]]) == (code, ["a man"])


def test_bytes_that_are_not_text_are_no_sentence(call, index, monkeypatch):
    words = r"the query is 'un \udce9l', which holds half of a character (a lone surrogate); write it in UTF-8"
    code, _, notes = call("search", index, "un \udce9l")  # as Python reads the bytes of an argument
    assert (code, notes) == (2, f"error: {words}\n")
    typed(monkeypatch, "un \udce9l\na man\n", at_terminal=True)
    code, text, notes = call("search", index, "-k", 1)
    assert (code, f"error: {words}\n" in notes, text.count("  1   0.")) == (0, True, 1)
    stream = io.TextIOWrapper(io.BytesIO(b"un \xe9l\n"), "utf-8")
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stream)
    code, _, notes = call("search", index)
    assert (code, f"error: {words}\n" in notes) == (1, True)


@pytest.mark.parametrize("command", ["search", "calibrate"])
def test_a_file_of_sentences_is_checked_before_the_model_is_loaded(call, index, tmp_path, monkeypatch, command):
    monkeypatch.setattr(Gallery, "load", lambda *given: pytest.fail("it began to load"))
    queries = tmp_path / "queries.txt"
    queries.write_text("a man\n\nx.jpg\n")
    code, _, notes = call(command, index, "--queries", queries)
    assert (code, notes.startswith(f"error: line 3 of {queries} 'x.jpg' is the name of an image")) == (2, True)


def test_a_prompt_stays_loaded_and_outlives_a_mistake(call, index, monkeypatch):
    loads = []
    from promptreid.model import prompted_clip

    load = prompted_clip.load_prompts
    monkeypatch.setattr(prompted_clip, "load_prompts", lambda *given, **more: loads.append(1) or load(*given, **more))
    typed(monkeypatch, "a man\na.jpg\na woman\n", at_terminal=True)
    code, text, notes = call("search", index, "-k", 1)
    assert (code, len(loads)) == (0, 1)
    assert notes.startswith("32 images; describe someone, or press Ctrl-D to end\n")
    assert "error: the query 'a.jpg' is the name of an image" in notes
    assert text.count("  1   0.") == 2


def test_nothing_in_a_pipe_is_a_mistake(call, index, monkeypatch):
    typed(monkeypatch, "", at_terminal=False)
    code, _, notes = call("search", index)
    assert (code, notes.startswith("error: no sentence came on standard input; give one")) == (2, True)


def test_a_file_of_sentences_is_a_table_of_hits(call, index, tmp_path):
    (tmp_path / "queries.txt").write_text("a man, tall\na woman\n")
    code, text, _ = call("search", index, "--queries", tmp_path / "queries.txt", "-k", 3, "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["query"] for row in rows] == ["a man, tall"] * 3 + ["a woman"] * 3
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert {"score", "id", "path", "folder"} < set(rows[0])
    assert {row["missing"] for row in rows} == {"false"}
    picture = tmp_path / "found.png"
    assert call("search", index, "--queries", tmp_path / "queries.txt", "-k", 3, "--picture", picture)[0] == 0
    with Image.open(picture) as drawing:
        assert drawing.height > 600  # a row a sentence


@pytest.mark.posix
def test_a_table_of_odd_names_is_read_as_it_was_written(call, index, tmp_path):
    gallery = Gallery.load(shutil.copytree(index, tmp_path / "index"))
    keys = ["s3://b/two\nlines", "s3://b/a\rreturn", 's3://b/"quoted", yes']
    gallery.add_features(gallery.features[:3], keys, metadata=[{"folder": "odd"}] * 3)
    words = ["search", gallery.directory, "a man\r in\nred", "--csv", "--where", "folder=odd"]
    rows = list(csv.DictReader(io.StringIO(call(*words)[1], newline="")))
    assert [row["query"] for row in rows] == ["a man\r in\nred"] * 3
    assert {row["path"] for row in rows} == set(keys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a man", "--queries", "q.txt"], "give one of a sentence, --image FILE and --queries FILE"),
        (["a man", "--csv", "--json"], "give --csv or --json, not both"),
        (["--queries", "none.txt"], "--queries is none.txt, but there is no such file"),
        (["--queries", "empty.txt"], "--queries is empty.txt, which holds no sentence; write one per line"),
        (["--queries", "latin.txt"], "--queries is latin.txt, which is not UTF-8 text"),
        (["a man", "--where", "folder=x*"], "no image of the gallery has folder x*; known are: "),
        (["a", "woman", "in", "red"], 'put the sentence in quotation marks: "a woman in red"; see'),
    ],
)
def test_search_that_cannot_be_done_is_refused(call, index, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    code, _, notes = call("search", index, *arguments)
    assert code == 2
    assert words in notes


def test_the_best_score_is_named_where_nothing_reaches_the_threshold(call, index):
    code, text, _ = call("search", index, "a man", "--threshold", "0.999")
    assert code == 1
    assert text.startswith("no good match: the best of 32 images scores 0.")
    assert text.endswith(", below 0.999\n")
    answer = call("search", index, "a man", "--threshold", "0.999", "--json")[1]
    assert answer["hits"] == []
    assert 0 < answer["best_score"] < 0.999
    assert (answer["threshold"], answer["model"]) == (0.999, "promptreid-tiny-adapted")


def test_the_default_model_has_the_shipped_prompts_and_a_name_of_its_own(call, drawn, index, tmp_path):
    import shutil

    assert ModelChoice("promptreid-tiny-adapted").is_saved
    evaluated = call("evaluate", drawn, "--json")[1]
    assert evaluated["model"]["model"] == "promptreid-tiny-adapted"
    _, text, notes = call("evaluate", drawn)
    assert text.startswith("model: promptreid-tiny-adapted\n")
    assert "knows only drawn pedestrians" not in notes  # these are drawn
    shutil.copytree(drawn / "imgs", tmp_path / "photographs")
    assert "knows only drawn pedestrians" in call("index", tmp_path / "photographs", "--output", tmp_path / "own")[2]


def test_files_that_are_gone_are_said_to_be_in_every_output(call, drawn, tmp_path):
    crops = tmp_path / "crops"
    shutil.copytree(drawn / "imgs", crops)
    assert call("index", crops, "--output", tmp_path / "gallery")[0] == 0
    gone = Path(call("search", tmp_path / "gallery", "a man", "--json")[1]["hits"][1]["path"])
    gone.unlink()
    answer = call("search", tmp_path / "gallery", "a man", "--json")[1]
    assert [hit["path"] for hit in answer["hits"] if hit["missing"]] == [str(gone)]
    assert answer["hits"][0]["missing"] is False
    code, text, _ = call("search", tmp_path / "gallery", "a man", "--picture", tmp_path / "found.png")
    assert code == 0
    assert [line for line in text.splitlines() if line.endswith("  (no file there)")] == [text.splitlines()[1]]
    text = call("search", tmp_path / "gallery", "a man", "--csv")[1]
    assert [row["path"] for row in csv.DictReader(io.StringIO(text)) if row["missing"] == "true"] == [str(gone)]


def test_an_address_is_whole_in_every_output(call, index, tmp_path):
    gallery, key = Gallery.load(shutil.copytree(index, tmp_path / "index")), "s3://bucket/b.jpg"
    gallery.add_features(gallery.features[:1], [key], metadata=[{"folder": "far"}])
    words = ["search", gallery.directory, "a man", "--where", "folder=far"]
    assert call(*words, "--json")[1]["hits"][0]["path"] == key
    assert call(*words)[1].split()[2] == key
    assert [row["path"] for row in csv.DictReader(io.StringIO(call(*words, "--csv")[1]))] == [key]


def test_a_sentence_without_a_gallery_is_told_where_the_gallery_goes(call):
    code, _, notes = call("search", "a man in a green jacket")
    assert (code, notes) == (2, 'error: name the gallery first: promptreid search gallery "a man in a green jacket"\n')


def test_a_gallery_that_is_not_there_is_guessed(call, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(index, tmp_path / "gallery")
    (tmp_path / "galleries").mkdir()  # nearer by name, and without a gallery
    code, _, notes = call("search", "galery", "a man")
    assert (code, notes) == (2, "error: there is no gallery in galery; did you mean gallery?\n")
    code, _, notes = call("search", tmp_path / "galery", "a man")
    assert notes.endswith(f"did you mean {tmp_path / 'gallery'}?\n")
    for sentence in ("a woman in a red coat", "a tall man " * 40):
        code, _, notes = call("search", sentence.strip(), "gallery")
        assert (code, notes) == (
            2,
            f"error: the gallery comes first: promptreid search gallery '{sentence.strip()}'\n",
        )
    assert "name the gallery first" in call("search", "a tall man " * 40)[2]
    (tmp_path / "data").mkdir()
    code, _, notes = call("calibrate", "data", "gallery")
    assert (code, notes) == (2, "error: the gallery comes first: promptreid calibrate gallery data\n")


def test_what_is_searched_and_is_no_gallery_says_what_it_is(call, drawn, index, tmp_path, monkeypatch):
    image = next((drawn / "imgs").rglob("*.jpg"))
    code, _, notes = call("search", image, "a man")
    assert (code, notes) == (2, f"error: {image} is a file; give the gallery's folder, which promptreid index makes\n")
    Image.new("L", (20_000, 8)).save(tmp_path / "wide.png")
    code, _, notes = call("search", index, "--image", tmp_path / "wide.png")
    assert (code, "is not a crop of a person; give another image\n" in notes, "record" in notes) == (2, True, False)
    empty = Gallery.load(shutil.copytree(index, tmp_path / "my index"))
    empty.remove(list(empty.paths))
    more = f"is empty; add images first: promptreid index CROPS --output '{empty.directory}'"
    assert call("calibrate", empty.directory, drawn, "--split", "test")[0] == 0  # which asks only the labelled images
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda name: name)
    for words in (["search", empty.directory, "a man"], ["calibrate", empty.directory], ["demo", empty.directory]):
        code, _, notes = call(*words)
        assert (code, more in notes) == (2, True), notes
    real = os.stat

    def stat(path, *given, **options):
        if os.fspath(path) == str(index / "gallery.json"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **options)

    monkeypatch.setattr(os, "stat", stat)
    code, _, notes = call("search", index, "a man")
    assert (code, f"error: the gallery {index} cannot be read (Permission denied); ask" in notes) == (2, True), notes
    code, _, notes = call("index", "--output", index, "--compact")
    assert (code, f"{index / 'gallery.json'} cannot be read (Permission denied); ask" in notes) == (2, True), notes


def test_a_gallery_of_another_model_names_the_command(call, drawn, index, tmp_path):
    expected = (
        "leave --model out to use promptreid-tiny-adapted, or make another gallery: promptreid index CROPS --output "
        "OTHER --model promptreid-tiny\n"
    )
    for words in (["search", index, "a man"], ["index", drawn / "imgs", "--output", index]):
        code, _, notes = call(*words, "--model", "promptreid-tiny")
        assert (code, notes.partition("; ")[2].partition("; ")[2]) == (2, expected), notes
    own = shutil.copytree(index, tmp_path / "own")
    Gallery.load(own)._store.change(header={"notes": {"model": {"model": "promptreid-tiny"}}})  # as if trained again
    code, _, notes = call("search", own, "a man")
    assert code == 2
    assert notes.endswith(
        "promptreid-tiny has changed since; make another gallery: promptreid index CROPS --output OTHER --model "
        "promptreid-tiny\n"
    )


def test_paths_below_the_working_folder_begin_there(call, index, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(drawn)
    assert call("search", index, "a man", "-k", 1)[1].split()[2].startswith("imgs/")
    assert call("search", index, "a man", "-k", 1, "--json")[1]["hits"][0]["path"].startswith(str(drawn))
    monkeypatch.chdir(tmp_path)
    assert call("search", index, "a man", "-k", 1)[1].split()[2].startswith(str(drawn))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "INDEX", " "], "error: the query is empty; describe the person"),
        (
            ["search", "INDEX", "--image", "x", "--threshold", "calibrated"],
            "error: --threshold calibrated was measured",
        ),
        (["index", "empty"], "error: empty has no images, nor any other file, in it; give"),
    ],
)
def test_a_mistake_that_needs_no_model_is_refused_before_torch_is_imported(index, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    words = [str(index) if word == "INDEX" else word for word in words]
    code = f"import sys; from promptreid.cli.main import main; main({words}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr.startswith(message)) == ("False\n", True), done.stderr
