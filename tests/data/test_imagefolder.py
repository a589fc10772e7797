"""Hugging Face's imagefolder, and its datasets written as one."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from promptreid.data.check import check_dataset
from promptreid.data.imagefolder_writer import write_imagefolder
from promptreid.data.images import open_image, to_rgb
from promptreid.data.reader import load_dataset, load_folder
from promptreid.errors import DatasetError

ROWS = [("train", 7, "a man"), ("train", 9, "a woman"), ("test", 12, "a boy in red")]


def image_file(colour: str = "red", form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 32), colour).save(stream, format=form)
    return stream.getvalue()


def rows() -> Iterator[dict[str, Any]]:
    for split, person, text in ROWS:
        yield {"image": {"bytes": image_file(), "path": None}, "text": text, "person_id": person, "split": split}


def write_table(path: Path, entries: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        image = path.parent / entry["file_name"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(image_file())
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = [",".join(entries[0]), *(",".join(map(str, entry.values())) for entry in entries)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(entries), path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_imagefolder_with_a_table_for_each_split_is_read(tmp_path: Path, ending: str) -> None:
    for folder, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        entries = [
            {"file_name": f"{person}.jpg", "text": text, "person_id": person}
            for part, person, text in [*ROWS, ("val", 1, "a girl")]
            if part == split
        ]
        write_table(tmp_path / "people" / folder / f"metadata.{ending}", entries)
    data = load_dataset(tmp_path / "people")
    assert data.summary() == (
        "people: train 2 persons, 2 images, 2 captions; val 1 persons, 1 images, 1 captions; "
        "test 1 persons, 1 images, 1 captions"
    )
    assert data.test.records[0].path == tmp_path / "people" / "test" / "12.jpg"
    assert check_dataset(tmp_path / "people", progress=False).ok


def test_imagefolder_problem_names_the_table_and_the_line(tmp_path: Path) -> None:
    write_table(tmp_path / "train" / "metadata.jsonl", [{"file_name": "a.jpg", "text": "a man", "person_id": 1}])
    entries = [{"file_name": name, "text": text, "person_id": 2} for name, text in (("b.jpg", "x"), ("c.jpg", " "))]
    write_table(tmp_path / "test" / "metadata.jsonl", entries)
    with pytest.raises(DatasetError, match=r"test/metadata\.jsonl, line 2: caption is ' ', expected a sentence"):
        load_dataset(tmp_path)
    (tmp_path / "test" / "b.jpg").unlink()
    report = check_dataset(tmp_path, progress=False)
    assert any("test/metadata.jsonl, line 1: there is no image" in problem.message for problem in report.errors)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_imagefolder_bad_line_far_down_in_one_table_costs_no_record_of_the_next(tmp_path: Path, ending: str) -> None:
    """Tables are read in the order of their folders: test, then train."""
    entries = [{"file_name": f"{shot}.jpg", "text": f"a man {shot}", "person_id": shot} for shot in range(4)]
    write_table(tmp_path / "test" / f"metadata.{ending}", entries[:3])
    bad = {"jsonl": json.dumps({**entries[3], "text": ""}), "csv": '3.jpg,"' + "\n" * 12 + '",3'}[ending]
    with (tmp_path / "test" / f"metadata.{ending}").open("a", encoding="utf-8") as stream:
        stream.write("\n" * 20 + bad + "\n")
    people = [{"file_name": f"{shot}.jpg", "text": "a man", "person_id": 100 + shot} for shot in range(60)]
    write_table(tmp_path / "train" / f"metadata.{ending}", people)
    with pytest.warns(UserWarning, match=rf"^1 of 64 lines .*test/metadata\.{ending}, line \d\d: caption is"):
        data = load_dataset(tmp_path, on_bad="skip")
    assert [record.person_id for record in data.train.records] == list(range(100, 160))
    assert len(data.test) == 3


@pytest.mark.parametrize(
    ("others", "names"),
    [
        (["people.csv"], "metadata.csv, people.csv"),
        (["people.jsonl"], "metadata.csv, people.jsonl"),
        (["metadata.jsonl"], "metadata.csv, metadata.jsonl"),
        (["metadata.parquet"], "metadata.csv, metadata.parquet"),
        (["train/metadata.csv"], "metadata.csv, train/metadata.csv"),
        (["test/metadata.jsonl", "people.csv"], "metadata.csv, test/metadata.jsonl, people.csv"),
    ],
)
def test_imagefolder_with_other_tables_of_images_wants_one_named(tmp_path: Path, others: list[str], names: str) -> None:
    tables = ["metadata.csv", *others]
    for person, table in enumerate(tables):
        entry = {"file_name": f"{person}.jpg", "text": "a man", "person_id": person, "split": "test"}
        write_table(tmp_path / table, [entry])
    words = re.escape(
        f"has {len(tables)} tables ({names}); name one of them: table= (on the command line --table), or move"
    )
    for call in (load_dataset, check_dataset):
        with pytest.raises(DatasetError, match=words):
            call(tmp_path)
    for person, table in enumerate(tables):
        assert load_dataset(tmp_path, table=table).test.records[0].person_id == person


def test_imagefolder_with_two_tables_for_a_split_wants_one_named(tmp_path: Path) -> None:
    for table in ("train/metadata.csv", "train/metadata.jsonl", "test/metadata.csv"):
        write_table(tmp_path / table, [{"file_name": "a.jpg", "text": "a man", "person_id": len(table)}])
    with pytest.raises(
        DatasetError, match=r"3 tables \(test/metadata\.csv, train/metadata\.csv, train/metadata\.jsonl\)"
    ):
        load_dataset(tmp_path)


def test_imagefolder_table_beside_those_of_the_splits_is_ignored_with_a_warning(tmp_path: Path) -> None:
    for table, person in (("train/metadata.csv", 1), ("test/metadata.csv", 2), ("captions.csv", 3)):
        write_table(tmp_path / table, [{"file_name": "a.jpg", "text": "a man", "person_id": person}])
    for call in (load_dataset, load_folder):
        with pytest.warns(
            UserWarning, match=r"captions\.csv in .* is ignored: .*; to read another one, name it"
        ) as caught:
            data = call(tmp_path)
        assert [warning.filename for warning in caught] == [__file__]
    assert [split.records[0].person_id for split in data.splits] == [1, 2]
    with pytest.warns(UserWarning, match=r"captions\.csv in .* is ignored") as caught:
        check_dataset(tmp_path, progress=False)
    assert len(caught) == 1


@pytest.mark.posix
@pytest.mark.parametrize("root", ["", ".", "link", "train/..", "aside/link/.."])
@pytest.mark.parametrize("table", ["train/metadata.csv", "train/../train/metadata.csv", "{}/train/metadata.csv"])
def test_imagefolder_named_table_has_the_split_of_its_folder_however_paths_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, table: str
) -> None:
    for split in ("train", "test"):
        write_table(tmp_path / split / "metadata.csv", [{"file_name": "a.jpg", "text": "a man", "person_id": 1}])
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(tmp_path, target_is_directory=True)
    Path("aside").mkdir()
    Path("aside/link").symlink_to(tmp_path / "train", target_is_directory=True)
    data = load_dataset(root or tmp_path, table=table.format(tmp_path))
    assert [len(split) for split in data.splits] == [1, 0]


def test_imagefolder_table_beside_that_of_training_alone_wants_one_named(tmp_path: Path) -> None:
    for table in ("train/metadata.csv", "people.csv"):
        write_table(tmp_path / table, [{"file_name": "a.jpg", "text": "a man", "person_id": 1}])
    with pytest.raises(DatasetError, match=r"has 2 tables \(train/metadata\.csv, people\.csv\); name one of them"):
        load_dataset(tmp_path)
    data = load_dataset(tmp_path, table="train/metadata.csv")
    assert [len(split) for split in data.splits] == [1, 0]


@pytest.mark.parametrize("first", ["train/metadata.csv", "metadata.csv", "people.csv"])
def test_imagefolder_table_of_another_name_in_a_split_folder_is_not_left_out_silently(
    tmp_path: Path, first: str
) -> None:
    for table in (first, "test/people.csv"):
        write_table(tmp_path / table, [{"file_name": "a.jpg", "text": "a man", "person_id": 1}])
    with pytest.raises(DatasetError, match=rf"2 tables \({first}, test/people\.csv\); name one of them"):
        load_dataset(tmp_path)
    if not first.startswith("train"):
        return
    write_table(tmp_path / "val/metadata.csv", [{"file_name": "a.jpg", "text": "a man", "person_id": 2}])
    with pytest.warns(UserWarning, match=r"test/people\.csv in .* is ignored"):
        load_dataset(tmp_path)


def test_imagefolder_table_in_a_split_folder_is_refused_even_where_the_first_row_of_the_other_is_bad(
    tmp_path: Path,
) -> None:
    row = {"file_name": "a.jpg", "text": "a man", "person_id": 1}
    write_table(tmp_path / "people.jsonl", [{"file_name": "b.jpg", "person_id": 1}, row])
    write_table(tmp_path / "test/people.csv", [row])
    with pytest.raises(DatasetError, match=r"has 2 tables \(people\.jsonl, test/people\.csv\)"):
        load_dataset(tmp_path, on_bad="skip")


@pytest.mark.parametrize("splits", [["train", "val"], ["test"]])
def test_imagefolder_table_beside_those_of_some_splits_is_ignored_with_a_warning(
    tmp_path: Path, splits: list[str]
) -> None:
    for table in [*(f"{split}/metadata.csv" for split in splits), "people.csv"]:
        write_table(tmp_path / table, [{"file_name": "a.jpg", "text": "a man", "person_id": len(table)}])
    with pytest.warns(UserWarning, match=r"people\.csv in .* is ignored"):
        data = load_dataset(tmp_path)
    assert [split.name for split in data.splits if len(split)] == splits


@pytest.mark.parametrize("content", ["", "name,licence\na.jpg,CC0\n", "{", "image;caption;person_id\n", "\xff"])
@pytest.mark.parametrize("name", ["README.csv", "notes.jsonl"])
def test_imagefolder_ignores_tables_of_anything_else(tmp_path: Path, name: str, content: str) -> None:
    for table, person in (("train/metadata.csv", 1), ("test/metadata.csv", 2)):
        write_table(tmp_path / table, [{"file_name": "a.jpg", "text": "a man", "person_id": person}])
    (tmp_path / name).write_text(content, encoding="latin-1")
    assert len(load_dataset(tmp_path).test) == 1


def test_imagefolder_with_a_split_column_and_lists_of_captions_is_read(tmp_path: Path) -> None:
    entries = [
        {"file_name": f"{split}/{person}.jpg", "text": [text, f"{text} again"], "label": person, "split": split}
        for split, person, text in ROWS
    ]
    write_table(tmp_path / "metadata.jsonl", entries)
    (tmp_path / "other.csv").write_text("nothing,of,ours\n")
    data = load_dataset(tmp_path)
    assert [record.captions for record in data.train.records] == [
        ("a man", "a man again"),
        ("a woman", "a woman again"),
    ]
    assert [record.person_id for record in data.test.records] == [12]


def divided_people(root: Path, seed: int = 0, split: str = "80/10/10") -> dict[str, list[int]]:
    data = load_dataset(root, split=split, split_seed=seed)
    return {each.name: sorted(each.labels) for each in data.splits}


def test_split_divides_persons_by_the_seed_alone(tmp_path: Path) -> None:
    entries = [
        {"file_name": f"{person}_{shot}.jpg", "text": "a man", "person_id": person}
        for person in range(20)
        for shot in range(2)
    ]
    write_table(tmp_path / "metadata.jsonl", entries)
    found = divided_people(tmp_path)
    assert {name: len(persons) for name, persons in found.items()} == {"train": 16, "val": 2, "test": 2}
    assert sorted(person for persons in found.values() for person in persons) == list(range(20))
    assert found["test"] == [11, 19]  # for ever, on every machine
    write_table(tmp_path / "metadata.jsonl", entries[::-1])
    assert divided_people(tmp_path) == found
    assert divided_people(tmp_path, seed=1) != found
    assert list(divided_people(tmp_path, split="90/0/10")) == ["train", "test"]
    with pytest.raises(DatasetError, match=r"40 of 40 images have no split\. Add a column .* --split 80/10/10"):
        load_dataset(tmp_path)
    assert not check_dataset(tmp_path, progress=False).ok
    with pytest.raises(DatasetError, match="20 persons, too few to divide them 98/1/1"):
        divided_people(tmp_path, split="98/1/1")
    for wrong in ("80/10", "80/10/20", "0/50/50", "a/b/c"):
        with pytest.raises(ValueError, match=rf"split is '{wrong}', expected percent .* such as 80/10/10"):
            divided_people(tmp_path, split=wrong)


def test_write_imagefolder_is_read_as_it_was_and_not_written_twice(tmp_path: Path) -> None:
    folder = write_imagefolder(list(rows()), tmp_path / "own", progress=False)
    data = load_dataset(folder)
    assert [(record.person_id, record.captions) for record in data.train.records] == [
        (7, ("a man",)),
        (9, ("a woman",)),
    ]
    assert data.test.records[0].path.read_bytes() == image_file()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_imagefolder(list(rows()), folder, progress=False) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(FileExistsError, match="holds another dataset; give a new folder"):
        write_imagefolder(list(rows())[:2], folder, progress=False)


@pytest.mark.parametrize("split", ["query", "gallery", "holdout", 3])
def test_write_imagefolder_split_of_another_name_is_refused_before_anything_is_written(
    tmp_path: Path, split: Any
) -> None:
    people = [*rows(), {**next(rows()), "split": split}]
    words = rf"row 3: the split '{split}' is unknown, expected some of train, .*; or leave out the column"
    with pytest.raises(ValueError, match=words):
        write_imagefolder(people, tmp_path / "own", progress=False)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("empty", [None, "", float("nan")])
def test_write_imagefolder_rows_without_split_have_none(tmp_path: Path, empty: Any) -> None:
    people = [{**row, "split": split} for row, split in zip(rows(), (None, empty, "Test"), strict=True)]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("split") for line in lines] == [None, None, "test"]


@pytest.mark.parametrize("by_split", [False, True])
def test_write_imagefolder_takes_what_can_be_read_once(tmp_path: Path, by_split: bool) -> None:
    people: Any = rows()
    if by_split:
        people = {"train": (row for row in list(rows())[:2]), "test": iter(list(rows())[2:])}
    data = load_dataset(write_imagefolder(people, tmp_path / "own", progress=False))
    assert [len(split) for split in data.splits] == [2, 1]


def test_write_imagefolder_other_images_for_the_same_rows_are_another_dataset(tmp_path: Path) -> None:
    folder = write_imagefolder(rows(), tmp_path / "own", progress=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for changed in (image_file("blue"), image_file("red", "PNG")):
        people = [*rows()]
        people[1]["image"] = {"bytes": changed}
        with pytest.raises(FileExistsError, match="holds other images for these rows; give a new folder"):
            write_imagefolder(people, folder, progress=False)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_write_imagefolder_deleted_image_is_written_again(tmp_path: Path) -> None:
    folder = write_imagefolder(rows(), tmp_path / "own", progress=False)
    (path,) = (folder / "test").iterdir()
    path.unlink()
    write_imagefolder(rows(), folder, progress=False)
    assert path.read_bytes() == image_file()


def test_write_imagefolder_keeps_the_file_of_a_source_that_is_gone(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    source.write_bytes(image_file())
    people = [{"image": str(source), "text": "a man", "person_id": 1, "split": "test"}]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    source.unlink()
    write_imagefolder(people, folder, progress=False)
    (path,) = (folder / "test").iterdir()
    assert path.read_bytes() == image_file()
    source.write_bytes(b"not an image")  # there, but damaged
    with pytest.raises(DatasetError, match="the image of row 0 cannot be read"):
        write_imagefolder(people, folder, progress=False)
    source.unlink()
    path.unlink()
    with pytest.raises(DatasetError, match="the image of row 0 cannot be read"):
        write_imagefolder(people, folder, progress=False)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_write_imagefolder_images_in_memory_are_compared_by_their_pixels(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [{"image": Image.new(mode, (32, 64), 3), "text": "a man", "person_id": 1, "split": "test"}]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    (path,) = (folder / "test").iterdir()
    people[0]["image"].save(path, compress_level=0)  # as another version of Pillow may write it
    before = path.read_bytes()
    write_imagefolder(people, folder, progress=False)
    assert path.read_bytes() == before
    people[0]["image"] = Image.new(mode, (32, 64), 4)
    for limit in (None, 100):  # above twice the limit, Pillow reads neither of them
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(FileExistsError, match="holds other images for these rows"):
            write_imagefolder(people, folder, progress=False)


def test_write_imagefolder_blanks_around_a_split_are_no_part_of_it(tmp_path: Path) -> None:
    people = [{**row, "split": split} for row, split in zip(rows(), (" Train", "  ", "test "), strict=True)]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("split") for line in lines] == ["train", None, "test"]


class ClassLabels:
    """A `Dataset` of Hugging Face's `datasets` whose column `split` is a `ClassLabel`, as far as it is looked at."""

    names = ("test", "train")

    def __init__(self, people: list[dict[str, Any]]) -> None:
        self.people = people
        self.features = {"image": None, "split": self}

    def cast_column(self, name: str, feature: Any) -> "ClassLabels":
        raise AssertionError("the images are no `Image` features")

    def int2str(self, number: int) -> str:
        if not 0 <= number < 2:
            raise ValueError(f"Invalid integer class label {number:d}")
        return self.names[number]

    def __iter__(self) -> Any:
        return iter(self.people)


def test_write_imagefolder_takes_splits_that_are_class_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Image=type("Image", (), {})))
    people = [{**row, "split": split} for row, split in zip(rows(), (1, -1, 0), strict=True)]
    folder = write_imagefolder(cast(Any, ClassLabels(people)), tmp_path / "own", progress=False)
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("split") for line in lines] == ["train", None, "test"]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, torch.tensor])
def test_write_imagefolder_takes_numbers_of_numpy_and_tensors(tmp_path: Path, kind: Any) -> None:
    people = [{**row, "person_id": kind(row["person_id"])} for row in rows()]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    assert [record.person_id for record in load_dataset(folder).train.records] == [7, 9]
    assert write_imagefolder(rows(), folder, progress=False) == folder


@pytest.mark.parametrize("value", [object(), np.arange(3), 1j])
def test_write_imagefolder_value_that_json_cannot_hold_is_named(tmp_path: Path, value: Any) -> None:
    people = [*rows()]
    people[1]["person_id"] = value
    with pytest.raises(DatasetError, match=r"row 1 cannot be written: person_id is .*, expected a number"):
        write_imagefolder(people, tmp_path / "own", progress=False)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0c", "\r", "\n"])
def test_write_imagefolder_separators_in_captions_are_no_ends_of_lines(tmp_path: Path, separator: str) -> None:
    people = [{**row, "text": f"{row['text']}{separator}in red"} for row in rows()]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    assert write_imagefolder(people, folder, progress=False) == folder
    assert load_dataset(folder).test.captions == [f"a boy in red{separator}in red"]


def test_write_imagefolder_half_of_a_character_is_named_when_it_is_read(tmp_path: Path) -> None:
    people = [{**row, "text": f"{row['text']} \ud800"} for row in rows()]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    assert write_imagefolder(people, folder, progress=False) == folder
    with pytest.raises(DatasetError, match=r"metadata\.jsonl, line 1: .*half of a character"):
        load_dataset(folder)


def test_write_imagefolder_tuple_of_captions_is_the_same_as_a_list(tmp_path: Path) -> None:
    people = [{**row, "text": (row["text"], "he walks")} for row in rows()]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    assert write_imagefolder(people, folder, progress=False) == folder
    assert write_imagefolder([{**row, "text": list(row["text"])} for row in people], folder, progress=False) == folder
    assert load_dataset(folder).test.captions == ["a boy in red", "he walks"]


@pytest.mark.parametrize("table", ["{\n", '["no", "row"]\n', "not JSON"])
def test_write_imagefolder_into_a_folder_with_a_foreign_table_is_refused(tmp_path: Path, table: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(table, encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds another dataset; give a new folder"):
        write_imagefolder(list(rows()), tmp_path, progress=False)
    assert (tmp_path / "metadata.jsonl").read_text(encoding="utf-8") == table


def test_write_imagefolder_takes_splits_by_name_images_in_memory_and_other_columns(tmp_path: Path) -> None:
    kept = tmp_path / "kept.png"
    kept.write_bytes(image_file(form="PNG"))
    parts = {
        "train": [{"photo": Image.new("RGB", (8, 8), "blue"), "caption": ["a man", "he walks"], "pid": "anna"}],
        "validation": [{"photo": str(kept), "caption": "a woman", "pid": "berta"}],
    }
    folder = write_imagefolder(
        parts, tmp_path / "own", image="photo", caption="caption", person_id="pid", progress=False
    )
    data = load_dataset(folder)
    assert data.train.records[0].captions == ("a man", "he walks")
    assert data.val is not None
    assert data.val.records[0].path.suffix == ".png"
    with pytest.raises(ValueError, match="the split 'holdout' is unknown, expected some of train"):
        write_imagefolder({"holdout": []}, tmp_path / "other", progress=False)
    with pytest.raises(
        DatasetError, match=r"row 0 of train has no image, text, person_id \(found: photo, caption, pid\)"
    ):
        write_imagefolder(parts, tmp_path / "other", progress=False)
    broken = [{"image": {"bytes": b"no image"}, "text": "a man", "person_id": 1}]
    with pytest.raises(DatasetError, match="the image of row 0 cannot be read"):
        write_imagefolder(broken, tmp_path / "other", progress=False)


def test_write_imagefolder_takes_datasets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"image": [], "text": [], "person_id": []}
    for row in rows():
        columns["image"].append(row["image"])
        columns["text"].append(row["text"])
        columns["person_id"].append(row["person_id"])
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "person_id": datasets.Value("int64")}
    )
    part = datasets.Dataset.from_dict(columns, features=features)
    whole = datasets.DatasetDict({"train": part.select([0, 1]), "test": part.select([2])})
    data = load_dataset(write_imagefolder(whole, tmp_path / "own", progress=False))
    assert [record.person_id for record in data.train.records] == [7, 9]
    assert data.test.records[0].path.read_bytes() == image_file()  # the file itself, not decoded and encoded again


def turned(orientation: int = 6) -> Image.Image:
    """A JPEG that was opened and is a quarter turn from upright: 16 x 32 pixels as stored, left half red."""
    image = Image.new("RGB", (16, 32), "white")
    image.paste("red", (0, 0, 8, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif)
    return Image.open(stream)


def test_write_imagefolder_images_in_memory_are_written_upright(tmp_path: Path) -> None:
    people = [{"image": turned(), "text": "a man", "person_id": 1, "split": "test"}]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    (path,) = load_dataset(folder).test.paths
    assert open_image(path).tobytes() == to_rgb(turned()).tobytes()
    with Image.open(path) as image:
        assert image.size == (32, 16)
    assert write_imagefolder(people, folder, progress=False) == folder


def test_write_imagefolder_pixels_that_png_has_not_are_converted_or_refused_with_their_row(tmp_path: Path) -> None:
    people = [*rows()]
    for mode in ("CMYK", "YCbCr", "RGBX"):
        image = people[1]["image"] = Image.new("RGB", (8, 8), "red").convert(mode)
        folder = write_imagefolder(people, tmp_path / mode, progress=False)
        with Image.open(folder / "train" / "0000001.png") as written:
            assert written.tobytes() == to_rgb(image).tobytes()
    for mode, words in (("F", "floating-point numbers of unknown range"), ("I", "more than 16 bits, of unknown range")):
        people[1]["image"] = Image.new(mode, (8, 8), 3)
        with pytest.raises(DatasetError, match=rf"the image of row 1 cannot be read: its pixels .*{words}; replace it"):
            write_imagefolder(people, tmp_path / mode, progress=False)


def test_write_imagefolder_file_that_is_no_image_is_named_with_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    people = [{"image": str(tmp_path / "notes.txt"), "text": "a man", "person_id": 1}]
    words = r"^the image of row 0 cannot be read: cannot identify image file \(.*notes\.txt\); replace it, or leave"
    with pytest.raises(DatasetError, match=words):
        write_imagefolder(people, tmp_path / "own", progress=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"the image of row 0 cannot be read: Image size .* exceeds limit"):
        write_imagefolder(rows(), tmp_path / "own", progress=False)


@pytest.mark.parametrize("nothing", [[], {"train": []}, iter([])])
def test_write_imagefolder_without_rows_is_refused(tmp_path: Path, nothing: Any) -> None:
    with pytest.raises(DatasetError, match="the dataset has no rows; give some with an image, a caption and a person"):
        write_imagefolder(nothing, tmp_path / "own", progress=False)
    assert not (tmp_path / "own").exists()


def with_cameras() -> list[dict[str, Any]]:
    return [{**row, "camera": camera} for row, camera in zip(rows(), ("gate", 7, None), strict=True)]


def test_write_imagefolder_keeps_the_cameras(tmp_path: Path) -> None:
    folder = write_imagefolder(with_cameras(), tmp_path / "own", progress=False)
    data = load_dataset(folder)
    assert [record.camera for split in data.splits for record in split.records] == ["gate", "7", None]
    assert write_imagefolder(with_cameras(), folder, progress=False) == folder
    with pytest.raises(FileExistsError, match="holds another dataset"):
        write_imagefolder(rows(), folder, progress=False)


def test_write_imagefolder_adds_the_cameras_to_a_folder_of_an_earlier_version(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    source.write_bytes(image_file())
    people = [*with_cameras()]
    people[0]["image"] = str(source)
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    table = folder / "metadata.jsonl"
    complete = table.read_text(encoding="utf-8")
    assert complete.count('"camera"') == 2
    lines = [
        {key: value for key, value in json.loads(line).items() if key != "camera"} for line in complete.splitlines()
    ]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source.unlink()  # what was written of it stays, under its name
    write_imagefolder(people, folder, progress=False)
    assert table.read_text(encoding="utf-8") == complete


def test_write_imagefolder_names_the_columns_that_it_does_not_write(tmp_path: Path) -> None:
    people = [{**row, "width": 3, "url": object()} for row in rows()]
    with pytest.warns(
        UserWarning, match="^columns that are not written, as load_dataset does not read them: url, width$"
    ) as caught:
        write_imagefolder(people, tmp_path / "own", progress=False)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        ((1.0, float("nan"), None), ["1", None, None]),
        ((np.float32(1), np.float64("nan"), np.int64(2)), ["1", None, "2"]),
        ((torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(2)), ["1", None, "2"]),
        (("01", "1.0", " "), ["01", "1.0", None]),
    ],
)
def test_write_imagefolder_whole_cameras_are_integers_and_gaps_are_none(
    tmp_path: Path, cameras: tuple[Any, ...], expected: list[str | None]
) -> None:
    people = [{**row, "camera": camera} for row, camera in zip(rows(), cameras, strict=True)]
    folder = write_imagefolder(people, tmp_path / "own", progress=False)
    assert [record.camera for split in load_dataset(folder).splits for record in split.records] == expected
    assert "1.0," not in (folder / "metadata.jsonl").read_text(encoding="utf-8")
    assert write_imagefolder(people, folder, progress=False) == folder


@pytest.mark.parametrize("camera", [2.5, [1, 2], b"x", True, float("inf"), {"name": "gate"}, np.arange(3)])
def test_write_imagefolder_column_camera_of_another_kind_is_not_written(tmp_path: Path, camera: Any) -> None:
    people = [{**row, "camera": value} for row, value in zip(rows(), ("gate", camera, None), strict=True)]
    words = (
        r"^columns that are not written, as load_dataset does not read them: camera \(not all of them names or whole"
    )
    for _ in range(2):
        with pytest.warns(UserWarning, match=words):
            folder = write_imagefolder(people, tmp_path / "own", progress=False)
    assert [split.cameras for split in load_dataset(folder).splits] == [(), ()]
    assert "camera" not in (folder / "metadata.jsonl").read_text(encoding="utf-8")


def test_write_imagefolder_extra_cells_of_a_table_are_named(tmp_path: Path) -> None:
    people = [{**row, "url": "x", None: ["more", "cells"]} for row in rows()]
    with pytest.warns(UserWarning, match="does not read them: None, url$"):
        write_imagefolder(cast("Any", people), tmp_path / "own", progress=False)
    with pytest.raises(DatasetError, match=r"row 0 of the dataset has no text \(found: image, .*, url, None\)"):
        write_imagefolder(cast("Any", [{**people[0], "text": None}]), tmp_path / "other", progress=False)


@pytest.mark.parametrize("empty", ["", " "])
def test_write_imagefolder_without_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="folder is empty; give a path"):
        write_imagefolder(rows(), empty, progress=False)
    assert not list(tmp_path.iterdir())
