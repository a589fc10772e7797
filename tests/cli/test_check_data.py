"""`promptreid check` of your own folder, and what `train` and `evaluate` do with the same options."""

import errno
import os

import pytest
from PIL import Image

ROWS = ["a.jpg,a man,1", "b.jpg,a woman,2", "c.jpg,a boy,3", "d.jpg,a girl,4"]


@pytest.fixture
def own(tmp_path):
    """A folder of four images, and a function that writes a table into it."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in "abcd":
        Image.new("RGB", (16, 32)).save(folder / f"{name}.jpg")

    def write(rows, *, splits=(), name="people.csv"):
        columns = "image,caption,person_id"
        lines = [f"{columns},split" if splits else columns]
        lines += [f"{row},{split}" for row, split in zip(rows, splits, strict=True)] if splits else rows
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


SPLITS = ("train", "train", "test", "test")


def test_check_train_and_evaluate_take_the_table_that_is_named(call, own, tmp_path, monkeypatch):
    root = own(ROWS, splits=SPLITS)
    own(ROWS[:1], splits=SPLITS[:1], name="draft.csv")
    for command in (["check", root], ["evaluate", root], ["train", root, "--output", tmp_path / "run"]):
        code, _, notes = call(*command)
        assert (code, "name one of them: table= (on the command line --table)" in notes) == (2, True)
    code, report, _ = call("check", root, "--table", "people.csv", "--json")
    assert (code, report["ok"], report["num_records"]) == (0, True, 4)
    code, answer, _ = call("evaluate", root, "--table", "people.csv", "--json")
    assert (code, answer["split"]) == (0, "test")
    trained = []
    monkeypatch.setattr("promptreid.cli.training_runs.Training.run", lambda training, _: trained.append(training))
    assert call("train", root, "--table", "people.csv", "--output", tmp_path / "run")[0] == 0
    assert len(trained) == 1


def test_check_divides_the_persons_as_train_does(call, own, tmp_path, monkeypatch):
    root = own(ROWS)
    code, text, _ = call("check", root)
    assert (code, "of 4 images have no split" in text) == (1, True)
    code, report, _ = call("check", root, "--split", "50/0/50", "--split-seed", "1", "--json")
    assert (code, report["ok"]) == (0, True)
    trained = []
    monkeypatch.setattr("promptreid.cli.training_runs.Training.run", lambda training, _: trained.append(training))
    code, text, _ = call("train", root, "--split", "50/0/50", "--split-seed", "1", "--output", tmp_path / "run")
    assert (code, report["summary"] in text) == (0, True)
    code, _, notes = call("train", root, "--split", "25/0/75", "--output", tmp_path / "other")
    assert code == 2
    assert notes.strip().endswith(f"promptreid check {root} --split 25/0/75 says what is in it")
    assert call("check", root, "--split", "25/0/75")[0] == 1
    for words in (("check", root), ("train", root, "--output", tmp_path / "other")):
        code, _, notes = call(*words, "--split-seed", "1")
        assert (code, "--split-seed would do nothing here" in notes) == (2, True)


def test_check_of_an_index_refuses_what_is_only_for_data(call, tmp_path, monkeypatch):
    (tmp_path / "gallery.json").write_text("{}", encoding="utf-8")
    for words in (["--tokenizer", "RN50"], ["--tokenizer", "ViT-B-16"], ["--limit", "3"], ["--limit", "0"]):
        code, _, notes = call("check", tmp_path, *words)
        assert (code, f"{words[0]} would do nothing here: {tmp_path} is an index" in notes) == (2, True)


@pytest.mark.parametrize("words", [(), ("--table", "people.csv"), ("--layout", "folder")])
def test_table_of_images_beside_an_index_is_checked(call, tmp_path, words):
    (tmp_path / "gallery.json").write_text("{}", encoding="utf-8")
    (tmp_path / "people.csv").write_text("image,caption,person_id,split\na.jpg,a man,1,train\n")
    code, text, notes = call("check", tmp_path, *words)
    assert (code, "images missing" in text) == (1, True)
    assert f"note: {tmp_path} holds a gallery too" in notes


def test_check_of_a_folder_that_cannot_be_read_names_it(call, tmp_path, monkeypatch):
    """The superuser may read every folder, so it is only said that it cannot be."""
    look = os.stat

    def refuse(path, *more, **options):
        if str(path).startswith(f"{tmp_path}{os.sep}"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *more, **options)

    monkeypatch.setattr(os, "stat", refuse)
    code, _, notes = call("check", tmp_path)
    assert (code, f"the folder {tmp_path} cannot be read (Permission denied: " in notes) == (2, True), notes
