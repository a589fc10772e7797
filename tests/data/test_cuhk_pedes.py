"""load_cuhk_pedes: the layout as it is, and every way in which it can be wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptreid.data.reader import load_cuhk_pedes
from promptreid.errors import DatasetError

Write = Callable[[Any], Path]


def test_load_cuhk_pedes_complete_folder_gives_the_annotation(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    dataset = load_cuhk_pedes(root)
    assert [len(split) for split in dataset.splits] == [6, 2, 2]
    assert dataset.train.labels == {3: 0, 7: 1, 20: 2}
    first = dataset.train.records[0]
    assert first.path == root / "imgs" / "cam_a" / "0000.png"
    assert (first.person_id, first.split) == (7, "train")
    assert first.captions == ("person 7 in coat 0", "picture 0 of a man")


def test_load_cuhk_pedes_parent_folder_or_text_path_gives_the_same(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    assert load_cuhk_pedes(root.parent) == load_cuhk_pedes(str(root))


def test_load_cuhk_pedes_no_such_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere; give the folder that holds reid_raw\.json"):
        load_cuhk_pedes(tmp_path / "nowhere")


def test_load_cuhk_pedes_file_for_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "reid_raw.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match="there is no folder"):
        load_cuhk_pedes(tmp_path / "reid_raw.json")


def test_load_cuhk_pedes_folder_without_annotation_names_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(
        DatasetError, match=r"has no reid_raw\.json \(found: holiday\.jpg\)\. Give the folder of CUHK-PEDES"
    ):
        load_cuhk_pedes(tmp_path)


def test_load_cuhk_pedes_empty_folder_says_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found: nothing"):
        load_cuhk_pedes(tmp_path)


def test_load_cuhk_pedes_caption_all_is_explained(tmp_path: Path) -> None:
    (tmp_path / "caption_all.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"has caption_all\.json, which has no splits.*authors for reid_raw\.json"):
        load_cuhk_pedes(tmp_path)


def test_load_cuhk_pedes_without_image_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "reid_raw.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match="but no folder imgs/; unpack the images there"):
        load_cuhk_pedes(tmp_path)


def test_load_cuhk_pedes_no_images_at_all_counts_them_by_folder(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    for path in (root / "imgs").rglob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"10 of 10 images are missing below .*imgs \(cam_a: 5, cam_b: 5\)"):
        load_cuhk_pedes(root)


def test_load_cuhk_pedes_one_missing_image_is_named(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    (root / "imgs" / "cam_b" / "0003.png").unlink()
    message = r"1 of 10 images are missing .*cam_b: 1\); first: cam_b/0003\.png\. Unpack every archive"
    with pytest.raises(DatasetError, match=message):
        load_cuhk_pedes(root)


def test_load_cuhk_pedes_missing_image_and_shared_person_counts_both(write_cuhk: Write, entries: list[dict]) -> None:
    entries[8]["id"] = 3
    root = write_cuhk(entries)
    (root / "imgs" / "cam_b" / "0003.png").unlink()
    with pytest.raises(DatasetError, match=r"person 3 is in the train and the test split.*\(and 1 more errors;"):
        load_cuhk_pedes(root)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"split": ', r"reid_raw\.json is not valid JSON \(.*copy it again"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe[\x00]\x00", r"is not UTF-8 text \(.*copy it again"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"{}", "holds dict, expected a list of records"),
        (b"[]", "holds list, expected a list of records that is not empty"),
        (b"null", "holds NoneType"),
    ],
)
def test_load_cuhk_pedes_unreadable_annotation_raises(write_cuhk: Write, content: bytes, words: str) -> None:
    root = write_cuhk([])
    (root / "reid_raw.json").write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        load_cuhk_pedes(root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "training"}, "split is 'training', expected one of train, val, test"),
        ({"split": None}, "split is None"),
        ({"split": ["train"]}, "split is"),
        ({"id": "7"}, "id is '7', expected an integer"),
        ({"id": True}, "id is True"),
        ({"id": 7.0}, "id is 7.0"),
        ({"file_path": ""}, "file_path is '', expected a path below imgs/"),
        ({"file_path": 3}, "file_path is 3"),
        ({"file_path": "../secret.png"}, "file_path '../secret.png' leaves the folder imgs/"),
        ({"file_path": "cam_a/../../secret.png"}, "file_path 'cam_a/../../secret.png' leaves the folder imgs/"),
        ({"file_path": "/etc/passwd"}, "file_path '/etc/passwd' leaves the folder imgs/"),
        ({"file_path": "cam_a/\0.png"}, r"file_path 'cam_a/\x00.png' leaves the folder imgs/"),
        ({"captions": "a man"}, "captions is not a list of sentences, or is empty"),
        ({"captions": []}, "captions is not a list of sentences, or is empty"),
        ({"captions": ["a man", "  "]}, "caption 1 is '  ', expected a sentence"),
        ({"captions": ["a man", None]}, "caption 1 is None, expected a sentence"),
    ],
)
def test_load_cuhk_pedes_bad_field_names_record_and_value(
    write_cuhk: Write, entries: list[dict], change: dict, words: str
) -> None:
    entries[4] |= change
    root = write_cuhk(entries)
    with pytest.raises(DatasetError, match=r"reid_raw\.json, record 4: " + re.escape(words)):
        load_cuhk_pedes(root)


@pytest.mark.parametrize("key", ["split", "captions", "file_path", "id"])
def test_load_cuhk_pedes_missing_key_is_named(write_cuhk: Write, entries: list[dict], key: str) -> None:
    del entries[2][key]
    root = write_cuhk(entries)
    with pytest.raises(DatasetError, match=f"record 2: has no {key}"):
        load_cuhk_pedes(root)


def test_load_cuhk_pedes_record_of_another_type_raises(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk([*entries, "a man"])
    with pytest.raises(DatasetError, match="record 10: is str, expected an object with split, captions, file_path"):
        load_cuhk_pedes(root)


def test_load_cuhk_pedes_person_in_two_splits_raises(write_cuhk: Write, entries: list[dict]) -> None:
    entries[8]["id"] = 3
    root = write_cuhk(entries)
    with pytest.raises(DatasetError, match="person 3 is in the train and the test split"):
        load_cuhk_pedes(root)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["split", "captions", "file_path", "id", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
def test_load_cuhk_pedes_any_json_is_refused_with_our_error(tmp_path: Path, content: Any) -> None:
    (tmp_path / "imgs").mkdir(exist_ok=True)
    (tmp_path / "reid_raw.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"reid_raw\.json|images are missing"):
        load_cuhk_pedes(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_load_cuhk_pedes_any_bytes_are_refused_with_our_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "imgs").mkdir(exist_ok=True)
    (tmp_path / "reid_raw.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"reid_raw\.json"):
        load_cuhk_pedes(tmp_path)
