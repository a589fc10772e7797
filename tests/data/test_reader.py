"""Loaders of the three layouts, of a layout from outside, and load_dataset, which recognises them."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptreid import data
from promptreid.data import layouts
from promptreid.data.annotation import Annotation, parse_entry
from promptreid.data.check import check_dataset
from promptreid.data.layouts import CUHK_PEDES, ICFG_PEDES, RSTPREID, JsonLayout
from promptreid.data.reader import load_cuhk_pedes, load_dataset, load_icfg_pedes, load_rstpreid, read_dataset
from promptreid.data.records import SPLITS
from promptreid.errors import DatasetError

Write = Callable[..., Path]


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
    with pytest.raises(DatasetError, match=r"person 3 is in the train and the test split.*\(and 1 more error;"):
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
        ({"id": "seven"}, "id is 'seven', expected an integer"),
        ({"id": True}, "id is True"),
        ({"id": 7.5}, "id is 7.5, expected an integer"),
        ({"id": ""}, "id is '', expected an integer"),
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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
def test_load_cuhk_pedes_any_json_is_refused_with_our_error(tmp_path: Path, content: Any) -> None:
    (tmp_path / "imgs").mkdir(exist_ok=True)
    (tmp_path / "reid_raw.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"reid_raw\.json|images are missing"):
        load_cuhk_pedes(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_load_cuhk_pedes_any_bytes_are_refused_with_our_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "imgs").mkdir(exist_ok=True)
    (tmp_path / "reid_raw.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"reid_raw\.json"):
        load_cuhk_pedes(tmp_path)


LOADERS = {"CUHK-PEDES": load_cuhk_pedes, "ICFG-PEDES": load_icfg_pedes, "RSTPReid": load_rstpreid}


@pytest.mark.parametrize("name", LOADERS)
def test_load_dataset_finds_out_which_benchmark_it_is(write_benchmark: Write, name: str) -> None:
    root = write_benchmark(name)
    dataset = load_dataset(root)
    assert dataset == LOADERS[name](root) == load_dataset(root.parent) == load_dataset(str(root), layout=name)
    assert dataset.name == name
    assert [split.name for split in dataset.splits] == (
        ["train", "test"] if name == "ICFG-PEDES" else ["train", "val", "test"]
    )
    assert dataset.train.labels == {0: 0, 1: 1}
    assert dataset.train.records[3].captions[0] == "caption 3"


@pytest.mark.parametrize("annotation", ["ICFG-PEDES.json", "ICFG_PEDES.json"])
def test_load_icfg_pedes_takes_both_spellings(write_benchmark: Write, annotation: str, tmp_path: Path) -> None:
    root = write_benchmark("ICFG-PEDES", annotation=annotation, root=tmp_path / "sets" / "ICFG_PEDES")
    assert len(load_icfg_pedes(root).test) == 4
    assert len(load_icfg_pedes(root.parent).test) == 4


def test_load_icfg_pedes_has_no_validation_split(write_benchmark: Write) -> None:
    assert load_icfg_pedes(write_benchmark("ICFG-PEDES")).val is None


def test_load_rstpreid_names_its_own_key(write_benchmark: Write) -> None:
    root = write_benchmark("RSTPReid")
    entries = json.loads((root / "data_captions.json").read_text(encoding="utf-8"))
    entries[3]["file_path"] = entries[3].pop("img_path")
    (root / "data_captions.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"data_captions\.json, record 3: has no img_path"):
        load_rstpreid(root)


def test_load_icfg_pedes_without_annotation_names_both_spellings(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no ICFG-PEDES\.json or ICFG_PEDES\.json \(found: nothing\)"):
        load_icfg_pedes(tmp_path)


@pytest.mark.parametrize("name", LOADERS)
def test_loader_warns_of_counts_other_than_published(write_benchmark: Write, name: str) -> None:
    root = write_benchmark(name, stamp=False)
    with pytest.warns(UserWarning, match=r"train has 2 persons, 4 images, . captions, published are .*cannot be comp"):
        dataset = LOADERS[name](root)
    assert "of" in dataset.summary()
    assert LOADERS[name](root, check_counts=False) == dataset


def test_loader_warning_points_at_the_callers_line(write_benchmark: Write) -> None:
    root = write_benchmark("RSTPReid", stamp=False)
    with pytest.warns(UserWarning, match="counts") as caught:
        load_rstpreid(root)
    assert caught[0].filename == __file__


def test_load_dataset_two_benchmarks_below_one_folder_raise(write_benchmark: Write) -> None:
    root = write_benchmark("RSTPReid").parent
    write_benchmark("ICFG-PEDES")
    with pytest.raises(DatasetError, match=r"holds several datasets \(ICFG-PEDES, RSTPReid\); give the folder of one"):
        load_dataset(root)
    assert load_dataset(root, layout="RSTPReid").name == "RSTPReid"


def test_load_dataset_in_the_folder_itself_goes_before_sub_folders(write_benchmark: Write) -> None:
    root = write_benchmark("RSTPReid")
    write_benchmark("ICFG-PEDES", root=root / "ICFG-PEDES")
    assert load_dataset(root).name == "RSTPReid"


def test_load_dataset_unknown_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(DatasetError, match=r"found: movie\.mp4.*CUHK-PEDES: reid_raw\.json; ICFG-PEDES: .*\.csv or"):
        load_dataset(tmp_path)


def test_load_dataset_caption_all_is_explained(tmp_path: Path) -> None:
    (tmp_path / "caption_all.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"caption_all\.json, which has no splits"):
        load_dataset(tmp_path)


def test_load_dataset_no_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"there is no folder .*nowhere; give a dataset's folder, or the parent of a p"
    ):
        load_dataset(tmp_path / "nowhere")


def test_load_dataset_unknown_layout_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout is 'cuhk', expected one of CUHK-PEDES"):
        load_dataset(tmp_path, layout="cuhk")


def test_load_dataset_own_folder_is_found(write_benchmark: Write, tmp_path: Path) -> None:
    images = write_benchmark("RSTPReid") / "imgs"
    shutil.copytree(images, tmp_path / "own")
    table = "image,caption,person_id,split\n0.jpg,a man,1,test\n"
    (tmp_path / "own" / "people.csv").write_text(table, encoding="utf-8")
    assert load_dataset(tmp_path / "own").name == "own"


class PeopleLayout:
    """A layout of somebody else's: one object a person, in a file for each split."""

    def read(self, root: Path) -> Annotation:
        entries = []
        for split in ("train", "test"):
            for person in json.loads((root / f"{split}.json").read_text(encoding="utf-8")):
                for image in person["images"]:
                    fields = {"split": split, "captions": person["texts"], "file_path": image, "id": person["number"]}
                    entries.append(parse_entry(fields, root / "crops"))
        return Annotation.of_entries(entries, name="People", path=root / "train.json", images=root / "crops")


def test_load_dataset_layout_from_outside_is_read_and_checked(tmp_path: Path, draw_picture: Callable) -> None:
    for number in range(4):
        draw_picture(tmp_path / "crops" / f"{number}.png", seed=number)
    people = [{"number": 7, "texts": ["a man"], "images": ["0.png", "1.png"]}]
    (tmp_path / "train.json").write_text(json.dumps(people), encoding="utf-8")
    people = [{"number": 9, "texts": ["a woman", "she walks"], "images": ["2.png"]}]
    (tmp_path / "test.json").write_text(json.dumps(people), encoding="utf-8")
    dataset = load_dataset(tmp_path, layout=PeopleLayout())
    assert dataset.summary() == ("People: train 1 persons, 2 images, 2 captions; test 1 persons, 1 images, 2 captions")
    assert dataset.test.records[0].path == tmp_path / "crops" / "2.png"
    people[0]["images"].append("../secret.png")
    (tmp_path / "test.json").write_text(json.dumps(people), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"record 3: file_path '\.\./secret\.png' leaves the folder crops/"):
        load_dataset(tmp_path, layout=PeopleLayout())
    report = check_dataset(tmp_path, layout=PeopleLayout(), progress=False)
    assert [(problem.kind, problem.position) for problem in report.problems] == [("path", 3), ("split", None)]


class Person(IntEnum):
    ADA = 7
    NOBODY = 2**70


@pytest.mark.parametrize("number", [7, Person.ADA, np.int64(7), np.uint8(7)], ids=["int", "enum", "int64", "uint8"])
def test_parse_entry_takes_integers_of_any_kind_for_id_and_camera(tmp_path: Path, number: Any) -> None:
    entry = {"split": "train", "captions": ["a man"], "file_path": "a.jpg", "id": number, "camera": number}
    record = parse_entry(entry, tmp_path)
    assert not isinstance(record, list)
    assert (record.person_id, type(record.person_id), record.camera) == (7, int, "7")


@pytest.mark.parametrize("number", [2**63, Person.NOBODY, np.uint64(2**63)], ids=["int", "enum", "uint64"])
def test_parse_entry_id_beyond_64_bits_is_a_problem(tmp_path: Path, number: Any) -> None:
    entry = {"split": "train", "captions": ["a man"], "file_path": "a.jpg", "id": number}
    (problem,) = parse_entry(entry, tmp_path)
    assert "which does not fit into 64 bits" in problem.message


def test_load_dataset_json_layout_with_other_names_needs_no_code(tmp_path: Path, draw_picture: Callable) -> None:
    layout = JsonLayout("Mine", ("people.json",), "image")
    entries = [{"split": split, "captions": ["a man"], "image": f"{split}.png", "id": len(split)} for split in SPLITS]
    for entry in entries:
        draw_picture(tmp_path / "imgs" / entry["image"])
    (tmp_path / "people.json").write_text(json.dumps(entries), encoding="utf-8")
    assert load_dataset(tmp_path, layout=layout).summary().startswith("Mine: train 1 persons, 1 images, 1 captions; v")


def test_data_offers_what_a_quick_start_needs() -> None:
    for name in data.__all__:
        assert getattr(data, name).__name__ == name
    assert set(data.__all__) <= set(dir(data))
    with pytest.raises(AttributeError, match=r"module 'promptreid\.data' has no attribute 'load_dataste'"):
        data.load_dataste  # noqa: B018


def test_load_dataset_ids_as_text_or_whole_decimals_are_taken_and_counted(
    write_cuhk: Write, entries: list[dict]
) -> None:
    entries[0]["id"], entries[1]["id"], entries[2]["id"] = "007", 3.0, "3.0"
    root = write_cuhk(entries)
    with pytest.warns(UserWarning, match="2 are written as text and 1 are written as decimals") as caught:
        dataset = load_dataset(root)
    assert len(caught) == 1
    assert "such as '007' in record 0; they are read as whole numbers" in str(caught[0].message)
    assert [record.person_id for record in dataset.train.records] == [7, 3, 3, 20, 7, 20]
    report = check_dataset(root, progress=False)
    assert report.ok
    assert [problem.kind for problem in report.problems] == ["id"]


SPLIT_NAMES = ("train_reid.json", "val_reid.json", "test_reid.json")


def split_up(root: Path, folder: Path, *, keep_split: bool) -> dict[str, list[dict]]:
    """Write the records as TBPS-CLIP hands them out: a file a split, `file_path` in all, back translations."""
    annotation = next(path for path in root.glob("*.json") if path.name != "generated.json")
    entries = json.loads(annotation.read_text(encoding="utf-8"))
    annotation.unlink()
    files: dict[str, list[dict]] = {name: [] for name in SPLIT_NAMES}
    for entry in entries:
        entry["file_path"] = entry.pop("img_path", None) or entry["file_path"]
        split = entry["split"] if keep_split else entry.pop("split")
        if split == "train":
            entry["captions_bt"] = ["" for _ in entry["captions"]]
        files[f"{split}_reid.json"].append(entry)
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if content:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return files


@pytest.mark.parametrize("where", [".", "annotations"])
@pytest.mark.parametrize("keep_split", [True, False])
@pytest.mark.parametrize("name", ["CUHK-PEDES", "ICFG-PEDES", "RSTPReid"])
def test_load_dataset_split_files_of_tbps_clip_give_the_same_data(
    write_benchmark: Write, name: str, keep_split: bool, where: str
) -> None:
    root = write_benchmark(name)
    if name == "CUHK-PEDES":  # its images lie in folders of cameras, by which it is recognised
        annotation = root / "reid_raw.json"
        text = annotation.read_text(encoding="utf-8").replace('"file_path": "', '"file_path": "cam_a/')
        annotation.write_text(text, encoding="utf-8")
        shutil.move(root / "imgs", root / "cam_a")
        (root / "imgs").mkdir()
        shutil.move(root / "cam_a", root / "imgs" / "cam_a")
    whole = load_dataset(root)
    split_up(root, root / where, keep_split=keep_split)
    for folder in (root, root.parent):
        found = load_dataset(folder)
        assert (found.name, found.train, found.val, found.test) == (whole.name, whole.train, whole.val, whole.test)
    assert check_dataset(root, progress=False).ok


def test_load_dataset_split_files_are_parsed_once(write_benchmark: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_benchmark("RSTPReid")
    split_up(root, root, keep_split=True)
    parsed: list[str] = []
    monkeypatch.setattr(layouts.json, "loads", lambda text, **_: parsed.append(text) or json.JSONDecoder().decode(text))
    assert load_dataset(root).name == "RSTPReid"
    assert len(parsed) == len(set(parsed)) == 3


def test_load_dataset_annotations_folder_holds_the_usual_file_too(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    whole = load_dataset(root)
    (root / "annotations").mkdir()
    shutil.move(root / "reid_raw.json", root / "annotations")
    assert load_dataset(root).train == whole.train


def test_load_dataset_split_files_say_file_and_record_of_that_file(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    files = split_up(root, root, keep_split=True)
    files["val_reid.json"][1]["captions"] = []
    files["test_reid.json"][0]["split"] = "train"
    for name, content in files.items():
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    messages = [problem.message for problem in check_dataset(root, progress=False).errors]
    assert any(re.search(r"val_reid\.json, record 1: captions is not a list", message) for message in messages)
    assert any("test_reid.json, record 0: split is 'train', in a file of the test split" in each for each in messages)


@pytest.mark.parametrize("change", ["unknown", "missing", "another file's"])
def test_split_shares_replace_splits_of_a_json_annotation(write_cuhk: Write, entries: list[dict], change: str) -> None:
    root = write_cuhk(entries)
    if change == "another file's":
        files = split_up(root, root, keep_split=True)
        files["test_reid.json"][0]["split"] = "train"
        for name, content in files.items():
            (root / name).write_text(json.dumps(content), encoding="utf-8")
        (root / "reid_raw.json").unlink(missing_ok=True)
    else:
        for entry in entries:
            entry.pop("split")
            entry |= {"split": "gallery"} if change == "unknown" else {}
        (root / "reid_raw.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"split is '(gallery|train)'|has no split"):
        load_dataset(root)
    data = load_dataset(root, split="50/17/33")
    # Six persons: 3, 1 and 2.
    assert [split.num_identities for split in data.splits] == [3, 1, 2]
    assert sum(len(split) for split in data.splits) == 10
    assert not check_dataset(root, split="50/17/33", progress=False).errors


def test_load_dataset_image_in_two_split_files_names_both(write_cuhk: Write, entries: list[dict]) -> None:
    entries[8] |= {"file_path": entries[1]["file_path"]}
    root = write_cuhk(entries)
    split_up(root, root, keep_split=False)
    with pytest.raises(DatasetError, match=r"test_reid\.json, record 0: .* is in .*train_reid\.json, record 1 already"):
        load_dataset(root)


def test_load_dataset_split_files_of_an_unknown_data_set_ask_for_its_name(tmp_path: Path) -> None:
    entry = {"file_path": "else/1.jpg", "id": 1, "captions": ["a man"]}
    (tmp_path / "train_reid.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"image paths belong to none of CUHK-PEDES.*name the dataset: layout="):
        load_dataset(tmp_path)


def test_load_dataset_image_dir_is_where_paths_begin(write_cuhk: Write, entries: list[dict], tmp_path: Path) -> None:
    root = write_cuhk(entries)
    shutil.move(root / "imgs", tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="give the folder that the paths begin at: image_dir="):
        load_dataset(root)
    dataset = load_dataset(root, image_dir=tmp_path / "elsewhere")
    assert dataset.train.paths[0] == tmp_path / "elsewhere" / "cam_a" / "0000.png"
    assert check_dataset(root, image_dir=tmp_path / "elsewhere", progress=False).ok
    with pytest.raises(DatasetError, match=r"there is no folder of images .*nowhere"):
        load_dataset(root, image_dir=tmp_path / "nowhere")


def test_load_dataset_image_dir_of_a_table_raises(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("image,caption,person_id,split\n", encoding="utf-8")
    with pytest.raises(ValueError, match="only the paths of a JSON annotation begin at a folder"):
        load_dataset(tmp_path, image_dir=tmp_path)


BAD_RECORDS = {
    "an empty caption": {"captions": ["a man", " "]},
    "no caption": {"captions": []},
    "an unknown split": {"split": "training"},
    "a missing image": {"file_path": "cam_a/9999.png"},
    "a path outside": {"file_path": "../0000.png"},
}


def plant_bad_records(write_cuhk: Write, entries: list[dict]) -> Path:
    """A sound copy with one more record for each way to be bad."""
    bad = [{**entries[0], "id": 100 + number, **change} for number, change in enumerate(BAD_RECORDS.values())]
    root = write_cuhk([*bad[:2], *entries, *bad[2:], 17])
    (root / "imgs/cam_a/9999.png").unlink()
    return root


def test_load_dataset_skip_leaves_bad_records_out_counts_and_lists_them(write_cuhk: Write, entries: list[dict]) -> None:
    root = plant_bad_records(write_cuhk, entries)
    with pytest.raises(DatasetError, match=r"record 0: caption 1 is ' '.*more errors.*on_bad=\"skip\""):
        load_dataset(root)
    with pytest.warns(UserWarning, match="6 of 16 records cannot be used and are left out: ") as caught:
        dataset = load_dataset(root, on_bad="skip")
    assert len(caught) == 1
    message = str(caught[0].message)
    assert Path(caught[0].filename) == Path(__file__)
    for words in (
        "record 0: caption 1",
        "record 1: captions is not a list",
        "record 12: split is 'training'",
        "record 13: there is no image",
        "record 14: file_path '../0000.png' leaves",
        "record 15: is int",
    ):
        assert words in message
    assert [len(split) for split in dataset.splits] == [6, 2, 2]
    assert dataset.train.labels == {3: 0, 7: 1, 20: 2}


def test_check_dataset_skip_lists_what_is_left_out_and_agrees_with_load_dataset(
    write_cuhk: Write, entries: list[dict]
) -> None:
    root = plant_bad_records(write_cuhk, entries)
    assert not check_dataset(root, progress=False).ok
    report = check_dataset(root, on_bad="skip", progress=False)
    assert report.ok
    assert len(report.left_out) == 6
    text = "\n".join(report.lines())
    assert "left out: 1 images missing (cam_a: 1)" in text
    assert "left out: 2 captions that are empty or not text" in text
    assert text.endswith("ready for training: 0 errors, 0 warnings (10 images opened)")
    assert json.loads(json.dumps(report.as_dict()))["left_out"][0]["kind"] == "record"


def test_skip_does_not_hide_what_is_wrong_between_records(write_cuhk: Write, entries: list[dict]) -> None:
    entries[9]["id"] = 3
    root = write_cuhk(entries)
    with pytest.raises(DatasetError, match="person 3 is in the train and the test split"):
        load_dataset(root, on_bad="skip")
    assert not check_dataset(root, on_bad="skip", progress=False).ok


def test_skip_of_a_whole_split_raises(write_cuhk: Write, entries: list[dict]) -> None:
    for entry in entries[8:]:
        entry["captions"] = []
    root = write_cuhk(entries)
    with (
        pytest.warns(UserWarning, match="2 of 10 records"),
        pytest.raises(DatasetError, match='no record has split "test"'),
    ):
        load_dataset(root, on_bad="skip")


def test_skip_leaves_bad_rows_of_a_table_out(tmp_path: Path, draw_picture: Callable) -> None:
    draw_picture(tmp_path / "1.png")
    rows = ["image,caption,person_id,split", "1.png,a man,1,test", "1.png,,1,test", "2.png,a man,2,test"]
    (tmp_path / "mine.csv").write_text("\n".join(rows), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"2 of 3 lines cannot be used .*line 3: .*; .*line 4: there is no image"):
        dataset = load_dataset(tmp_path, on_bad="skip")
    assert dataset.test.captions == ["a man"]


def test_load_dataset_unknown_on_bad_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_bad is 'ignore', expected 'strict' or 'skip'"):
        load_dataset(tmp_path, on_bad="ignore")


@pytest.mark.parametrize(
    ("layout", "path", "camera"),
    [
        (CUHK_PEDES, "cam_a/205_0.bmp", "cam_a"),
        (CUHK_PEDES, "Market/0002_c1s1_000451_03.jpg", "Market"),
        (ICFG_PEDES, "train/0000/0000_000_01_0303morning_0015_0.jpg", "01"),
        (ICFG_PEDES, "train/00001_0.jpg", None),
        (RSTPREID, "0000_c14_0030.jpg", "c14"),
        (RSTPREID, "00003_cam_b_1.jpg", "cam_b"),
        (RSTPREID, "0000.jpg", None),
    ],
)
def test_published_layouts_find_the_camera_in_the_path(
    tmp_path: Path, layout: JsonLayout, path: str, camera: str | None
) -> None:
    parse = layout._parser(tmp_path)
    entry = {"split": "train", "captions": ["a man"], layout.image_key: path, "id": 1}
    assert parse(entry, None).camera == camera
    assert parse({**entry, "camera": 7}, None).camera == "7", "what the record says comes first"
    (problem,) = parse({**entry, "camera": [7]}, None)
    assert problem.message == "camera is [7], expected a name or a whole number"


def test_table_may_have_a_column_of_cameras(tmp_path: Path, draw_picture: Callable) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw_picture(tmp_path / name)
    (tmp_path / "people.csv").write_text(
        "image,caption,person_id,split,camera\na.jpg,a man,1,train,gate\nb.jpg,a woman,2,test,\n", encoding="utf-8"
    )
    dataset = load_dataset(tmp_path)
    assert (dataset.train.cameras, dataset.test.cameras) == (("gate",), ())


def test_json_records_of_one_image_that_name_two_cameras_are_a_conflict(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk([*entries, {**entries[0], "camera": "east"}, {**entries[1], "camera": "cam_b"}])
    report = check_dataset(root, progress=False)
    assert [problem.kind for problem in report.problems] == ["conflict", "duplicate"]
    words = "record 10: image 'cam_a/0000.png' is in record 0 already, from camera 'cam_a' and here from 'east'"
    assert report.problems[0].message.endswith(words)
    with pytest.raises(DatasetError, match="from camera 'cam_a' and here from 'east'"):
        load_dataset(root)


def test_json_record_that_repeats_a_key_is_refused_by_its_number(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    annotation = root / "reid_raw.json"
    text = annotation.read_text(encoding="utf-8")
    annotation.write_text(text.replace('"id": 21', '"id": 22, "id": 21', 1), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"record 6: has 'id' more than once, with different values; write it once"):
        load_dataset(root)
    annotation.write_text(text.replace('"id": 21', '"id": 21, "id": 21'), encoding="utf-8")
    assert load_dataset(root).val
    annotation.write_text(text.replace('"id": 21', '"id": 21, "note": 1, "note": 2'), encoding="utf-8")
    assert load_dataset(root).val


@pytest.mark.parametrize(("key", "other"), [("file_path", "x/9.jpg"), ("split", "test")])
def test_split_file_that_repeats_a_key_is_refused_by_its_record(write_benchmark: Write, key: str, other: str) -> None:
    root = write_benchmark("ICFG-PEDES")
    split_up(root, root, keep_split=True)
    file = root / "train_reid.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(f'"{key}"', f'"{key}": "{other}", "{key}"', 1), encoding="utf-8")
    with pytest.raises(DatasetError, match=rf"train_reid\.json, record 0: has '{key}' more than once, with different"):
        load_dataset(root)


@pytest.mark.parametrize("inner", ["", "CUHK-PEDES", "imgs"])
def test_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_cuhk: Write, entries: list[dict], inner: str
) -> None:
    """The superuser may read every folder, so it is only said that it cannot be."""
    write_cuhk(entries)
    root = tmp_path if inner == "CUHK-PEDES" else tmp_path / "CUHK-PEDES"
    closed, look = str(root / inner), os.stat

    def refuse(path: Any, *more: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(os.path.join(closed, "")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *more, **options)

    monkeypatch.setattr(os, "stat", refuse)
    if inner == "imgs":  # not looked into while the annotation is read
        assert read_dataset(root).num_entries == 10
        return
    with pytest.raises(DatasetError, match=rf"the folder {root} cannot be read \(Permission denied: {closed}.*; is it"):
        load_dataset(root)


def refuse_below(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the system say that nothing in a folder can be looked at; the superuser may read every one."""
    look = os.stat

    def refuse(path: Any, *more: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(os.path.join(folder, "")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *more, **options)

    monkeypatch.setattr(os, "stat", refuse)


def test_closed_folder_of_a_table_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "data", tmp_path / "data2"
    root.mkdir()
    other.mkdir()
    refuse_below(monkeypatch, other)
    words = rf"the folder {other} cannot be read \(Permission denied: {other}/t\.csv\); is it"
    with pytest.raises(DatasetError, match=words):
        load_dataset(root, table=other / "t.csv")


def test_closed_folder_of_images_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_cuhk: Write, entries: list[dict]
) -> None:
    root, other = write_cuhk(entries), tmp_path / "disk"
    refuse_below(monkeypatch, other)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=rf"the folder {other} cannot be read \(Permission denied: {other}/imgs\)"):
        load_dataset(root, image_dir=other / "imgs")
    # The folder itself, whichever way it is written.
    refuse_below(monkeypatch, root)
    with pytest.raises(DatasetError, match=r"the folder CUHK-PEDES cannot be read \(Permission denied: /.*people"):
        load_dataset("CUHK-PEDES", table=root / "people.csv")
