"""load_folder: your own pictures with a CSV or JSONL table."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from promptreid.data.check import check_dataset
from promptreid.data.reader import load_dataset, load_folder
from promptreid.data.table_layout import TableLayout
from promptreid.errors import DatasetError

HEADER = "image,caption,person_id,split\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "deep/c.jpg"):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32)).save(path)
    return tmp_path / "crops"


@pytest.fixture
def write_csv(folder: Path) -> Callable[[str], Path]:
    def write(rows: str, *, header: str = HEADER) -> Path:
        (folder / "people.csv").write_text(header + rows, encoding="utf-8")
        return folder

    return write


def test_load_folder_csv_merges_the_captions_of_an_image(write_csv: Callable[..., Path]) -> None:
    root = write_csv(
        'a.jpg,"a man, tall",7,train\nb.jpg,a woman,5,test\na.jpg,he has a bag,7,train\ndeep/c.jpg,a boy,9,val\n'
    )
    dataset = load_folder(root)
    assert dataset.name == "crops"
    assert [(record.path, record.person_id, record.captions) for record in dataset.train.records] == [
        (root / "a.jpg", 7, ("a man, tall", "he has a bag"))
    ]
    assert dataset.val is not None
    assert dataset.val.records[0].path == root / "deep" / "c.jpg"
    assert dataset.summary() == (
        "crops: train 1 persons, 1 images, 2 captions; val 1 persons, 1 images, 1 captions; "
        "test 1 persons, 1 images, 1 captions"
    )


def test_load_folder_jsonl_gives_the_same_as_csv(folder: Path, write_csv: Callable[..., Path]) -> None:
    rows = [("a.jpg", "a man", 7, "train"), ("b.jpg", 'a "woman"', 5, "test")]
    keys = ("image", "caption", "person_id", "split")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
    (folder / "people.jsonl").write_text("\n".join([lines[0], "", lines[1]]) + "\n", encoding="utf-8")
    from_json = load_folder(folder, table="people.jsonl")
    write_csv('a.jpg,a man,7,train\nb.jpg,"a ""woman""",5,test\n')
    assert load_folder(folder, table=folder / "people.csv") == from_json


def test_load_folder_column_order_and_more_columns_do_not_matter(write_csv: Callable[..., Path]) -> None:
    root = write_csv("test,x,3,a man,a.jpg\n", header="split,note,person_id,caption,image\n")
    assert load_folder(root).test.records[0].captions == ("a man",)


def test_load_folder_byte_order_mark_of_spreadsheets_is_no_letter(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,3,test\n", header="\ufeff" + HEADER)
    assert len(load_folder(root).test) == 1


def test_load_folder_persons_by_name_are_numbered_alphabetically(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,zoe,test\nb.jpg,a man,anna,test\ndeep/c.jpg,a man,7,test\n")
    # "7" < "anna" < "zoe"
    assert [record.person_id for record in load_folder(root).test.records] == [2, 1, 0]


def test_load_folder_leading_zeros_are_the_same_number(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,0007,test\nb.jpg,a man,7,test\n")
    assert {record.person_id for record in load_folder(root).test.records} == {7}


def test_load_folder_a_name_is_one_person_however_its_accent_is_written(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,Ren\u00e9,test\nb.jpg,a man, Rene\u0301,test\n")
    assert {record.person_id for record in load_folder(root).test.records} == {0}


def test_load_folder_whole_numbers_are_one_person_however_they_are_written(folder: Path) -> None:
    """Spreadsheets and pandas write 0.0 for 0 where a cell of the column is empty."""
    rows = "a.jpg,a man,0,test\nb.jpg,a man,0.0,test\ndeep/c.jpg,a man, 00.,test\n"
    (folder / "people.csv").write_text(HEADER + rows, encoding="utf-8")
    assert [record.person_id for record in load_folder(folder).test.records] == [0, 0, 0]
    (folder / "people.csv").write_text(HEADER + rows.replace("00.", "anna"), encoding="utf-8")
    assert [record.person_id for record in load_folder(folder).test.records] == [0, 0, 1]
    (folder / "people.csv").unlink()
    lines = [
        json.dumps({"image": name, "caption": "a man", "person_id": person, "split": "test"})
        for name, person in (("a.jpg", 7), ("b.jpg", 7.0), ("deep/c.jpg", "7.0"))
    ]
    (folder / "people.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [record.person_id for record in load_folder(folder).test.records] == [7, 7, 7]


def test_load_folder_rows_of_an_image_are_merged_however_its_person_is_written(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,0,test\na.jpg,he walks,0.0,test\n")
    assert load_folder(root).test.records[0].captions == ("a man", "he walks")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a.jpg,a man,1,train\nb.jpg,a man,2,train\n", ['no record has split "test", which training needs']),
        ("a.jpg,a man,1,test\nb.jpg,a man,2,test\n", ['no record has split "train", which training needs']),
        (
            "a.jpg,a man,1,train\nb.jpg,a man,2,test\n",
            ["the train split has 1 person; training needs at least 2, to tell them apart"],
        ),
        ("a.jpg,a man,1,train\nb.jpg,a man,2,train\ndeep/c.jpg,a man,3,test\n", []),
    ],
)
def test_check_dataset_says_not_ready_where_training_refuses(
    write_csv: Callable[..., Path], rows: str, words: list[str]
) -> None:
    root = write_csv(rows)
    assert load_folder(root).splits  # it may still be evaluated
    report = check_dataset(root, progress=False)
    assert [problem.message for problem in report.errors] == [f"{root / 'people.csv'}: {word}" for word in words]
    assert report.lines()[-1].startswith("not ready" if words else "ready for training")


def test_load_folder_backslashes_in_paths_are_explained(write_csv: Callable[..., Path]) -> None:
    root = write_csv("deep\\c.jpg,a man,1,test\nb.jpg,a man,2,test\n")
    words = r"1 of 2 images are missing .*; write / instead of \\ in 'deep\\\\c\.jpg', as in 'deep/c\.jpg'$"
    with pytest.raises(DatasetError, match=words):
        load_folder(root)
    (problem,) = (found for found in check_dataset(root, progress=False).problems if found.kind == "missing")
    assert problem.message.endswith("c.jpg; write / instead of \\ in 'deep\\\\c.jpg', as in 'deep/c.jpg'")


def test_load_folder_test_rows_alone_give_an_empty_training_split(write_csv: Callable[..., Path]) -> None:
    dataset = load_folder(write_csv("a.jpg,a man,3,test\n"))
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (0, None, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.jpg,,3,test", "line 2: caption is '', expected a sentence"),
        ("a.jpg,  ,3,test", "line 2: caption is '  '"),
        ("a.jpg,a man,3,tests", "line 2: split is 'tests', expected one of train, val, test; leave such records out"),
        (
            "a.jpg,a man,3,valid",
            "line 2: split is 'valid', expected one of train, val, test; did you mean \"val\"? Write",
        ),
        ("a.jpg,a man,,test", "line 2: person_id is '', expected a number or a name"),
        (",a man,3,test", "line 2: image is '', expected a path below crops/"),
        ("../a.jpg,a man,3,test", "line 2: image '../a.jpg' leaves the folder crops/"),
        ("/a.jpg,a man,3,test", "line 2: image '/a.jpg' leaves the folder crops/; copy the image there, and give its"),
        ("C:\\a.jpg,a man,3,test", "leaves the folder crops/"),
        ("..\\a.jpg,a man,3,test", "leaves the folder crops/"),
        ("a.jpg,a man,3", "line 2: has no split"),
        ("a.jpg,a man, tall,3,test", "line 2: has 1 values too many; quote captions that have commas"),
        ('a.jpg,"a man,3,test', "line 2: not valid CSV (unexpected end of data)"),
        ("z.jpg,a man,3,test", "1 of 1 images are missing below"),
    ],
)
def test_load_folder_bad_row_names_line_and_value(write_csv: Callable[..., Path], row: str, words: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(words)):
        load_folder(write_csv(row + "\n"))


@pytest.mark.parametrize("names", [("gallery", "query", "query"), ("train", "test", "valid"), (1, None, ["x"])])
def test_split_shares_replace_splits_of_any_name(folder: Path, names: tuple[Any, ...]) -> None:
    rows = [
        {"image": image, "caption": "a man", "person_id": person, "split": split}
        for person, (image, split) in enumerate(zip(("a.jpg", "b.jpg", "deep/c.jpg"), names, strict=True))
    ]
    # One image under two splits is one image.
    rows.append({**rows[0], "caption": "he walks", "split": "holdout"})
    (folder / "people.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = load_dataset(folder, split="34/33/33")
    assert [len(split) for split in data.splits] == [1, 1, 1]
    assert ("a man", "he walks") in [record.captions for split in data.splits for record in split.records]
    assert check_dataset(folder, split="34/33/33", progress=False).num_captions == 4
    with pytest.raises(DatasetError, match="split is"):
        load_dataset(folder)


@pytest.mark.parametrize("split", ["valid", "Validation", "dev"])
def test_split_by_another_name_is_not_advised_to_be_left_out(write_csv: Callable[..., Path], split: str) -> None:
    with pytest.raises(DatasetError, match=r'; did you mean "val"\? Write that instead$'):
        load_folder(write_csv(f"a.jpg,a man,3,{split}\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: is not valid JSON ("),
        ("3", "line 1: is int, expected an object with image, caption, person_id, split"),
        ('{"image": "a.jpg"}', "line 1: has no caption, person_id"),
        ('{"image": "a.jpg", "caption": 3, "person_id": 1, "split": "test"}', "caption is 3, expected a sentence"),
        ('{"image": "a.jpg", "caption": "a", "person_id": 1.5, "split": "test"}', "person_id is 1.5, expected a numb"),
        ('{"image": "a.jpg", "caption": "\\ud800", "person_id": 1, "split": "test"}', "holds half of a character"),
        ('{"image": "\\ud800", "caption": "a", "person_id": 1, "split": "test"}', "which cannot be a file's name"),
    ],
)
def test_load_folder_bad_json_line_names_line_and_value(folder: Path, line: str, words: str) -> None:
    (folder / "people.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=re.escape(words)):
        load_folder(folder)


def test_load_folder_image_of_two_persons_raises(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,3,test\na.jpg,a woman,4,test\n")
    with pytest.raises(DatasetError, match=r"line 3: image 'a\.jpg' is in line 2 already, as person 3 and here as 4"):
        load_folder(root)


def test_load_folder_image_in_two_splits_raises(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,3,test\na.jpg,a woman,3,train\n")
    with pytest.raises(
        DatasetError, match=r"line 3: image 'a.jpg' is in line 2 already, in split test and here in tra"
    ):
        load_folder(root)


def test_check_dataset_own_folder_finds_repeated_rows(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,3,test\na.jpg,a man,3,test\n")
    report = check_dataset(root, progress=False)
    assert [problem.kind for problem in report.warnings] == ["duplicate"]
    assert [problem.kind for problem in report.errors] == ["split"]  # there is nothing to train on
    assert "line 3: image 'a.jpg' has this very caption" in report.warnings[0].message
    assert load_folder(root).test.num_captions == 1


def test_load_folder_semicolons_are_explained(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg;a man;3;test\n", header="image;caption;person_id;split\n")
    with pytest.raises(DatasetError, match=r"line 1: the header is .* has no image, .*separate columns by commas"):
        load_folder(root)


@pytest.mark.parametrize(("content", "words"), [("", "the header is missing"), (HEADER, "has no rows")])
def test_load_folder_empty_table_raises(folder: Path, content: str, words: str) -> None:
    (folder / "people.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=words):
        load_folder(folder)


def test_load_folder_not_utf8_raises(folder: Path) -> None:
    (folder / "people.csv").write_bytes((HEADER + "a.jpg,a señor,3,test\n").encode("latin-1"))
    with pytest.raises(DatasetError, match=r"people\.csv is not UTF-8 text .*save it as UTF-8"):
        load_folder(folder)


def test_load_folder_no_table_says_what_is_expected(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no \.csv or \.jsonl file \(found: a\.jpg, b\.jpg, deep\); write a"):
        load_folder(folder)


def test_load_folder_two_tables_must_be_told_apart(folder: Path) -> None:
    for name in ("one.csv", "two.jsonl"):
        (folder / name).touch()
    words = r"has 2 tables \(one\.csv, two\.jsonl\); name one of them: table= \(on the command line --table\)"
    with pytest.raises(DatasetError, match=words):
        load_folder(folder)
    for call in (load_dataset, check_dataset):
        with pytest.raises(DatasetError, match=words):
            call(folder)


def test_load_dataset_and_check_dataset_take_the_table_that_is_named(
    folder: Path, write_csv: Callable[..., Path]
) -> None:
    write_csv("a.jpg,a man,1,train\nb.jpg,a man,2,train\ndeep/c.jpg,a man,3,test\n")
    (folder / "deep" / "other.csv").write_text(f"{HEADER}c.jpg,a man,1,test\n", encoding="utf-8")
    (folder / "other.csv").touch()
    for layout in (None, "folder", TableLayout()):
        assert len(load_dataset(folder, layout=layout, table="people.csv").train) == 2
    assert check_dataset(folder, table=folder / "people.csv", progress=False).ok
    assert load_dataset(folder, table="deep/other.csv").test.paths == [folder / "deep" / "c.jpg"]
    with pytest.raises(
        DatasetError, match=r"there is no table .*gone\.csv; give a \.csv .*, by its path below .*crops$"
    ):
        load_dataset(folder, table="gone.csv")
    with pytest.raises(ValueError, match=r"table is 'people\.csv', but only the layout folder has a table; leave out"):
        load_dataset(folder, layout="RSTPReid", table="people.csv")
    with pytest.raises(ValueError, match=r"layout is 'foo', expected one of CUHK-PEDES"):
        check_dataset(folder, layout="foo", table="people.csv", progress=False)
    with pytest.raises(ValueError, match=r"table is 'people\.csv', but the layout has the table 'other\.csv'"):
        load_dataset(folder, layout=TableLayout("other.csv"), table="people.csv")
    with pytest.raises(ValueError, match="image_dir is 'x', but only the paths of a JSON annotation"):
        load_dataset(folder, table="people.csv", image_dir="x")


def test_load_folder_hidden_files_are_no_tables(folder: Path, write_csv: Callable[..., Path]) -> None:
    """A Mac writes `._people.csv` beside the table on disks of other systems, and an editor `.people.csv.swp`."""
    write_csv("a.jpg,a man,1,train\nb.jpg,a man,2,train\ndeep/c.jpg,a man,3,test\n")
    (folder / "._people.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (folder / ".draft.jsonl").touch()
    assert len(load_folder(folder).train) == 2
    assert check_dataset(folder, progress=False).ok
    (folder / "people.csv").unlink()
    with pytest.raises(DatasetError, match=r"has no \.csv or \.jsonl file"):
        load_folder(folder)
    with pytest.raises(DatasetError, match="holds no dataset that is known here"):
        load_dataset(folder)


def test_load_folder_named_table_that_is_missing_or_of_another_format_raises(folder: Path) -> None:
    (folder / "t.tsv").write_text(HEADER.replace(",", "\t"), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"there is no table .*give a \.csv or \.jsonl file with image, caption"):
        load_folder(folder, table="gone.csv")
    for table in ("t.tsv", "a.jpg"):
        words = (
            rf"{re.escape(table)} is not a table that can be read, .*; save it as a \.csv or \.jsonl file with image"
        )
        with pytest.raises(DatasetError, match=words):
            load_folder(folder, table=table)


def test_load_folder_without_a_table_names_other_files_before_images(folder: Path) -> None:
    for number in range(12):
        (folder / f"{number}.jpg").touch()
    (folder / "t.tsv").touch()
    with pytest.raises(DatasetError, match=r"\(found: t\.tsv, 0\.jpg, .* and 8 more\)"):
        load_folder(folder)
    with pytest.raises(DatasetError, match=r"\(found: t\.tsv, 0\.jpg, "):
        load_dataset(folder)


def test_load_folder_no_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere; give the folder of images"):
        load_folder(tmp_path / "nowhere")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.text(max_size=80) | st.text("a.jpg,\"\n\r\0\\/;' 3testrain", max_size=80),
    name=st.sampled_from(["t.csv", "t.jsonl"]),
)
def test_load_folder_any_text_loads_or_is_refused_with_our_error(folder: Path, content: str, name: str) -> None:
    (folder / "t.csv").unlink(missing_ok=True)
    (folder / "t.jsonl").unlink(missing_ok=True)
    text = (HEADER + content) if name == "t.csv" else content
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_folder(folder)
    except DatasetError as error:
        str(error).encode()  # the message can be printed
    else:
        assert load_folder(folder).splits


PATHS = st.text(max_size=20) | st.lists(
    st.sampled_from(["..", ".", "/", "a.jpg", "deep", "c.jpg", "\\", "C:", "\0", "\ud800", "~", "x" * 300, "\n", " "]),
    max_size=5,
).map("/".join)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS)
def test_load_folder_any_path_stays_inside_or_is_refused(folder: Path, path: Any) -> None:
    row = {"image": path, "caption": "a man", "person_id": 1, "split": "test"}
    (folder / "t.jsonl").write_text(json.dumps(row), encoding="utf-8")
    try:
        (record,) = load_folder(folder).test.records
    except DatasetError as error:
        str(error).encode()
    else:
        assert record.path.resolve().is_relative_to(folder.resolve())
        assert record.path.is_file()


NOT_RELATIVE = "is not relative to the folder crops/"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{}/deep/c.jpg", NOT_RELATIVE),
        ("../crops/deep/c.jpg", r"has \.\. in it"),
        ("deep/../deep/c.jpg", r"has \.\. in it"),
        ("{}/../crops/deep/c.jpg", r"has \.\. in it"),
    ],
)
def test_load_folder_path_inside_that_is_not_plain_is_given_as_it_should_be(
    folder: Path, write_csv: Callable[..., Path], path: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(f"{path.format(folder)},a man,3,test\n")
    monkeypatch.chdir(folder.parent)
    for root in (folder, Path("crops")):
        with pytest.raises(DatasetError, match=rf"' {words}; write 'deep/c\.jpg'; leave"):
            load_folder(root)


def test_load_folder_many_absolute_paths_look_up_the_folder_once(
    folder: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Any] = []
    for name in ("realpath", "abspath"):
        look = getattr(os.path, name)
        monkeypatch.setattr(os.path, name, lambda path, look=look, **known: looked.append(path) or look(path, **known))

    def lookups(count: int) -> int:
        write_csv("".join(f"{folder}/{number}.jpg,a man,3,test\n/x/{number}.jpg,x,3,test\n" for number in range(count)))
        looked.clear()
        with pytest.raises(DatasetError, match=rf"{NOT_RELATIVE}; write '0\.jpg' \(and {2 * count - 1} more errors"):
            load_folder(folder)
        return len(looked)

    lookups(5)
    assert lookups(20) == lookups(10)


def test_load_folder_relative_folder_is_looked_up_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        folder = tmp_path / place / "crops"
        folder.mkdir(parents=True)
        (folder / "people.csv").write_text(f"{HEADER}{folder}/c.jpg,a man,3,test\n", encoding="utf-8")
        monkeypatch.chdir(folder.parent)
        with pytest.raises(DatasetError, match=rf"{NOT_RELATIVE}; write 'c\.jpg'"):
            load_folder("crops")


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("image,caption,caption,person_id,split", "caption"),
        ("file_name,text,text,label", "text"),
        ("image,caption,person_id,camera,camera", "camera"),
    ],
)
def test_load_folder_two_columns_of_one_name_are_refused(
    folder: Path, write_csv: Callable[..., Path], header: str, name: str
) -> None:
    values = {"image": "a.jpg", "file_name": "a.jpg", "person_id": "3", "label": "3", "split": "test"}
    row = ",".join(values.get(column, "a man") for column in header.split(","))
    words = (
        rf"people\.csv has more than one column {name}; keep one of a name, and write one row for each caption of an"
    )
    with pytest.raises(DatasetError, match=words):
        load_folder(write_csv(row + "\n", header=header + "\n"))
    # Beside another table it is one of images, which is not passed over.
    (folder / "test").mkdir()
    (folder / "people.csv").rename(folder / "test" / "people.csv")
    (folder / "other.csv").write_text(HEADER + "a.jpg,a man,3,test\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"has 2 tables \(other\.csv, test/people\.csv\)"):
        load_folder(folder)


def test_load_folder_unread_columns_may_have_one_name(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,3,test,x,y,,\n", header="image,caption,person_id,split,note,note,,\n")
    assert load_folder(root).test.captions == ["a man"]


@pytest.mark.parametrize("name", ["file_name", "text", "label"])
def test_load_folder_columns_of_hugging_face_beside_ours_are_not_read_and_may_be_repeated(
    write_csv: Callable[..., Path], name: str
) -> None:
    root = write_csv("a.jpg,a man,3,test,x,y\n", header=f"image,caption,person_id,split,{name},{name}\n")
    assert load_folder(root).test.captions == ["a man"]


def test_load_folder_two_parquet_columns_of_one_name_are_refused(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["image", "caption", "caption", "person_id"]
    parquet.write_table(pyarrow.table([["a.jpg"], ["a man"], ["he walks"], [1]], names=names), folder / "t.parquet")
    with pytest.raises(DatasetError, match=r"t\.parquet has more than one column caption; keep one of a name"):
        load_folder(folder, table="t.parquet")


def test_load_folder_json_line_that_repeats_a_key_is_refused(folder: Path) -> None:
    line = '{"image": "a.jpg", "caption": "a man", "caption": "%s", "person_id": 1, "split": "test"}\n'
    (folder / "people.jsonl").write_text(line % "he walks", encoding="utf-8")
    with pytest.raises(
        DatasetError, match=r"line 1: has 'caption' more than once, with different values; write it onc"
    ):
        load_folder(folder)
    (folder / "people.jsonl").write_text(line % "a man", encoding="utf-8")
    assert load_folder(folder).test.captions == ["a man"]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ('"note": 1, "note": 2', ""),
        ('"label": 1, "label": 2', ""),
        ('"meta": {"a": 1, "a": 2}', ""),
        ('"camera": "east", "camera": "west"', "camera"),
        ('"image": "b.jpg"', "image"),
        ('"split": "train"', "split"),
    ],
)
def test_load_folder_json_line_may_repeat_what_is_not_read(folder: Path, fields: str, key: str) -> None:
    line = f'{{"image": "a.jpg", "caption": "a man", "person_id": 1, "split": "test", {fields}}}\n'
    (folder / "people.jsonl").write_text(line, encoding="utf-8")
    if not key:
        assert load_folder(folder).test.captions == ["a man"]
        return
    with pytest.raises(DatasetError, match=rf"line 1: has '{key}' more than once, with different values; write it onc"):
        load_folder(folder)


def test_load_folder_json_line_may_repeat_the_split_where_persons_are_divided(folder: Path) -> None:
    line = '{"image": "%s", "caption": "a man", "person_id": "%s", "split": "test", "split": "train"}\n'
    lines = "".join(line % (name, name) for name in ("a.jpg", "b.jpg", "deep/c.jpg"))
    (folder / "people.jsonl").write_text(lines, encoding="utf-8")
    assert [len(split) for split in load_dataset(folder, split="34/33/33").splits] == [1, 1, 1]


CAMERA_HEADER = "image,caption,person_id,split,camera\n"


def test_load_folder_rows_of_one_image_name_two_cameras_raises(write_csv: Callable[..., Path]) -> None:
    rows = "a.jpg,a man,3,test,\na.jpg,he walks,3,test,east\nb.jpg,x,4,test,west\na.jpg,he stands,3,test,west\n"
    root = write_csv(rows, header=CAMERA_HEADER)
    words = r"line 5: image 'a\.jpg' is in line 3 already, from camera 'east' and here from 'west'$"
    with pytest.raises(DatasetError, match=words):
        load_folder(root)
    (problem, *_) = check_dataset(root, images=False, progress=False).errors[1:]
    assert (problem.kind, problem.position, problem.path) == ("conflict", 5, "a.jpg")


def test_load_folder_camera_is_that_of_the_first_row_that_names_one(write_csv: Callable[..., Path]) -> None:
    rows = "a.jpg,a man,3,test,\na.jpg,he walks,3,test,west\na.jpg,he stands,3,test, west\nb.jpg,x,4,test,\n"
    records = load_folder(write_csv(rows, header=CAMERA_HEADER)).test.records
    assert [(record.camera, len(record.captions)) for record in records] == [("west", 3), (None, 1)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_load_folder_camera_that_pandas_made_a_decimal_is_a_whole_number(folder: Path, ending: str) -> None:
    cameras = (1.0, float("nan"), None)
    lines = [
        {"image": name, "caption": "a man", "person_id": 3, "split": "test", "camera": camera}
        for name, camera in zip(("a.jpg", "b.jpg", "deep/c.jpg"), cameras, strict=True)
    ]
    table = folder / f"t.{ending}"
    if ending == "jsonl":
        table.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(lines), table)
    records = load_folder(folder, table=table.name).test.records
    assert [record.camera for record in records] == ["1", None, None]


@pytest.mark.parametrize("camera", ["2.5", "Infinity", "true", "[1]"])
def test_load_folder_camera_that_is_no_name_is_refused(folder: Path, camera: str) -> None:
    line = f'{{"image": "a.jpg", "caption": "a man", "person_id": 3, "split": "test", "camera": {camera}}}'
    (folder / "t.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"t\.jsonl, line 1: camera is .*, expected a name or a whole number"):
        load_folder(folder)


def test_load_folder_row_of_several_lines_is_named_by_its_first(write_csv: Callable[..., Path]) -> None:
    rows = 'a.jpg,"a man\nwho walks\n",3,test\n\n\nz.jpg,"x\ny\nz",3,test\nb.jpg,"",3,test\n'
    root = write_csv(rows)
    positions = {problem.kind: problem.position for problem in check_dataset(root, progress=False).problems}
    # Line 1 is the header, 2 to 4 a.jpg, 5 and 6 are empty, 7 to 9 z.jpg, 10 b.jpg.
    assert (positions["missing"], positions["caption"]) == (7, 10)


def test_load_folder_quote_that_is_not_closed_is_named_by_the_line_where_it_opens(
    write_csv: Callable[..., Path],
) -> None:
    root = write_csv('a.jpg,"a man,3,test\nb.jpg,a man,3,test\ndeep/c.jpg,a man,3,test\n')
    with pytest.raises(DatasetError, match=r"people\.csv, line 2: not valid CSV \(unexpected end of data\)"):
        load_folder(root)


def test_load_folder_skip_counts_every_row_of_a_missing_image(folder: Path, write_csv: Callable[..., Path]) -> None:
    rows = [f"{name},caption {number},{name},test" for number in range(3) for name in ("a.jpg", "z.jpg")]
    root = write_csv("\n".join(rows) + "\n")
    with pytest.warns(UserWarning, match=r"^3 of 6 lines cannot be used and are left out: .*line 3: there is no image"):
        assert load_dataset(root, on_bad="skip").test.num_captions == 3
    (root / "people.csv").unlink()
    entry = {"image": "z.jpg", "caption": ["a", "b"], "person_id": 1, "split": "test"}
    lines = [{**entry, "image": "a.jpg"}, entry]  # a line with two captions is one line
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"^1 of 2 lines cannot be used"):
        load_dataset(root, on_bad="skip")


def test_load_folder_empty_split_cells_are_named_and_can_be_skipped(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,3,test\nb.jpg,a man,4,\nb.jpg,he walks,4,\ndeep/c.jpg,a man,5,\n")
    words = (
        r"2 of 3 images have no split \(line 3, line 5\)\. Fill their split with one of train, val, test, or leave "
        r'such records out with on_bad="skip"'
    )
    with pytest.raises(DatasetError, match=words):
        load_dataset(root)
    with pytest.warns(UserWarning, match=r"^3 of 4 lines .* left out: .*line 3: has no split; .*line 5: has no split$"):
        assert load_dataset(root, on_bad="skip").test.captions == ["a man"]
    report = check_dataset(root, on_bad="skip", progress=False)
    assert [problem.position for problem in report.left_out] == [3, 5]
    data = load_dataset(root, split="34/33/33", on_bad="skip")  # without a warning: all are divided
    assert [len(split) for split in data.splits] == [1, 1, 1]


def test_load_folder_names_of_persons_are_kept_by_number(write_csv: Callable[..., Path]) -> None:
    root = write_csv("a.jpg,a man,zoe,test\nb.jpg,a man,anna,test\ndeep/c.jpg,a man,7,test\n")
    assert load_folder(root).names == {0: "7", 1: "anna", 2: "zoe"}
    assert load_dataset(root, split="34/33/33").names[2] == "zoe"
    assert load_folder(write_csv("a.jpg,a man,007,test\n")).names == {}
