"""write_generated: each real layout, the same bytes every time, nobody's files overwritten."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from promptreid.data.layouts import PUBLISHED
from promptreid.data.reader import load_cuhk_pedes, load_dataset, load_icfg_pedes, load_rstpreid
from promptreid.data.records import ReIDDataset
from promptreid.errors import DatasetError
from promptreid.synthetic import load_scenes, write_generated, writer
from promptreid.synthetic.camera import CAMERAS

SIZES = (5, 2, 3)


def write(root: Path, *, seed: int = 0, num_identities: tuple[int, int, int] = SIZES) -> Path:
    return write_generated(root, num_identities=num_identities, images_per_identity=3, seed=seed, progress=False)


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records_of(root: Path) -> list[dict]:
    return json.loads((root / "reid_raw.json").read_text(encoding="utf-8"))


def test_write_generated_twice_same_seed_is_byte_identical(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "a")) == contents(write(tmp_path / "b"))


def test_write_generated_in_another_process_is_byte_identical(fork: Callable[..., Any], tmp_path: Path) -> None:
    code = (
        "from promptreid.synthetic import write_generated; import sys; "
        f"write_generated(sys.argv[1], num_identities={SIZES}, images_per_identity=3, progress=False)"
    )
    assert fork(code, tmp_path / "a").communicate() == ("", "")
    assert contents(tmp_path / "a") == contents(write(tmp_path / "b"))


def test_write_generated_other_seed_gives_other_pictures(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b", seed=1)
    pictures = [{value for key, value in contents(root).items() if key.endswith(".jpg")} for root in (first, second)]
    assert not pictures[0] & pictures[1]


def test_records_have_the_keys_and_types_of_cuhk_pedes(tmp_path: Path) -> None:
    records = records_of(write(tmp_path / "set"))
    assert len(records) == sum(SIZES) * 3
    for record in records:
        assert sorted(record) == ["captions", "file_path", "id", "processed_tokens", "split"]
        assert len(record["captions"]) == len(record["processed_tokens"]) == 2
        assert all(isinstance(word, str) for tokens in record["processed_tokens"] for word in tokens)
        assert record["file_path"].split("/")[0] in {camera.name for camera in CAMERAS}


def test_splits_share_no_identity_and_ids_start_at_one(tmp_path: Path) -> None:
    records = records_of(write(tmp_path / "set"))
    ids = {
        split: {record["id"] for record in records if record["split"] == split} for split in ("train", "val", "test")
    }
    assert [len(found) for found in ids.values()] == list(SIZES)
    # Pairwise disjoint sets of 5, 2 and 3 that together are exactly 1 to 10.
    assert set.union(*ids.values()) == set(range(1, 11))


def test_every_file_on_disk_is_a_picture_with_a_record(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    on_disk = {str(path.relative_to(root / "imgs")) for path in (root / "imgs").rglob("*.jpg")}
    assert on_disk == {record["file_path"] for record in records_of(root)}
    for path in on_disk:
        picture = Image.open(BytesIO((root / "imgs" / path).read_bytes()))
        assert (picture.height, picture.width) in {camera.size for camera in CAMERAS}
        assert np.asarray(picture).std() > 5


def test_write_generated_complete_set_is_used_again_untouched(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("seed", [0, 1])
def test_write_generated_beside_another_process_takes_the_same_set_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    real = writer._write

    def late(*given: Any) -> None:
        monkeypatch.setattr(writer, "_write", real)
        write(tmp_path / "set", seed=seed)
        real(*given)

    monkeypatch.setattr(writer, "_write", late)
    with nullcontext() if seed == 0 else pytest.raises(DatasetError, match="already holds a dataset generated with"):
        write(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_write_generated_into_an_empty_folder_fills_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert records_of(write(tmp_path / "set"))


def test_write_generated_onto_foreign_files_refuses_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DatasetError, match="already holds something that is not a synthetic dataset"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_write_generated_onto_other_arguments_refuses_and_keeps_them(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    before = contents(root)
    with pytest.raises(DatasetError, match=r"already holds a dataset generated with .*'seed': 0"):
        write(root, seed=1)
    assert contents(root) == before


def test_write_generated_set_that_lost_a_picture_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    next((root / "imgs").rglob("*.jpg")).unlink()
    with pytest.raises(DatasetError, match="has lost 1 of its files"):
        write(root)


def test_write_generated_set_without_annotation_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set")
    (root / "reid_raw.json").unlink()
    with pytest.raises(DatasetError, match=r"such as .*reid_raw\.json"):
        write(root)


def test_write_generated_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupt(*_: object, **__: object) -> bytes:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return b""

    monkeypatch.setattr(writer, "photograph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set")
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_identities", [(0, 1, 1), (1, 0, 1), (1, -1, 1), (1, 1), 3])
def test_write_generated_bad_counts_raise(tmp_path: Path, num_identities: tuple) -> None:
    with pytest.raises(ValueError, match="expected three counts"):
        write(tmp_path / "set", num_identities=num_identities)
    assert list(tmp_path.iterdir()) == []


def test_write_generated_negative_seed_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed is -1, expected 0 or more"):
        write(tmp_path / "set", seed=-1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gap": -0.1}, "gap is -0.1, expected 0"),
        ({"gap": 2.5}, "gap is 2.5, expected 0"),
        ({"near_twins": 1.5}, "near_twins is 1.5, expected a share"),
        ({"near_twins": float("nan")}, "near_twins is nan, expected a share"),
        ({"layout": "cuhk"}, "layout is 'cuhk', expected one of CUHK-PEDES, ICFG-PEDES, RSTPReid"),
        ({"images_per_identity": 0}, "images_per_identity 0; expected three counts"),
        ({"layout": "ICFG-PEDES", "num_identities": (2, 1, 1)}, "ICFG-PEDES has no validation split: give 0"),
    ],
)
def test_write_generated_bad_arguments_raise_and_write_nothing(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_generated(tmp_path / "set", progress=False, **changes)
    assert list(tmp_path.iterdir()) == []


def test_write_generated_numbers_of_numpy_are_the_same_set(tmp_path: Path) -> None:
    root = write(tmp_path / "set", seed=3, num_identities=(2, 1, 1))
    plain = {"images_per_identity": np.uint8(3), "gap": np.float32(1), "seed": np.int64(3), "progress": False}
    for counts in ([2, 1, 1], np.array([2, 1, 1]), (np.int64(2), 1, 1)):
        assert write_generated(root, num_identities=counts, **plain) == root  # type: ignore[arg-type]
    again = write_generated(tmp_path / "again", num_identities=np.array([2, 1, 1]), **plain)  # type: ignore[arg-type]
    assert contents(again) == contents(root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 3.0}, "seed is 3.0, expected a whole number"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"num_identities": (2.0, 1, 1)}, "num_identities is 2.0, expected a whole number"),
        ({"images_per_identity": 2.0}, "images_per_identity is 2.0, expected a whole number"),
        ({"gap": "much"}, "gap is 'much', expected a number"),
        ({"near_twins": None}, "near_twins is None, expected a number"),
    ],
)
def test_write_generated_arguments_of_other_types_raise_and_write_nothing(
    tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        write_generated(tmp_path / "set", progress=False, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "load", "sizes", "captions", "first_id", "pairs"),
    [
        ("CUHK-PEDES", load_cuhk_pedes, (4, 2, 3), 2, 1, {(2, 1), (4, 3), (6, 5), (8, 7)}),
        ("ICFG-PEDES", load_icfg_pedes, (4, 0, 3), 1, 0, {(1, 0), (3, 2), (5, 4)}),
        ("RSTPReid", load_rstpreid, (4, 2, 3), 2, 0, {(1, 0), (3, 2), (5, 4), (7, 6)}),
    ],
)
def test_write_generated_each_layout_is_read_by_its_loader(
    tmp_path: Path,
    name: str,
    load: Callable[..., ReIDDataset],
    sizes: tuple[int, int, int],
    captions: int,
    first_id: int,
    pairs: set[tuple[int, int]],
) -> None:
    root = write_generated(
        tmp_path / "set", layout=name, num_identities=sizes, images_per_identity=2, near_twins=1.0, progress=False
    )
    data = load(root)
    assert data.name == load_dataset(root).name == name
    found = [0 if split is None else split.num_identities for split in (data.train, data.val, data.test)]
    assert found == list(sizes)
    records = [record for split in data.splits for record in split.records]
    assert min(record.person_id for record in records) == first_id
    assert {len(record.captions) for record in records} == {captions}
    # The scenes tell the same as the annotation does.
    scenes = {picture.path: picture for picture in load_scenes(root)}
    assert len(scenes) == len(records)
    for record in records:
        picture = scenes[record.path]
        assert (picture.person_id, picture.split) == (record.person_id, record.split)
        assert tuple(caption.text for caption in picture.captions) == record.captions
    twins = {(picture.person_id, picture.twin_of) for picture in scenes.values() if picture.twin_of is not None}
    assert twins == pairs  # every second person of a split, at near_twins=1


def test_icfg_and_rstp_pictures_lie_where_the_real_ones_do(tmp_path: Path) -> None:
    icfg = write_generated(tmp_path / "a", layout="ICFG-PEDES", num_identities=(2, 0, 1), progress=False)
    rstp = write_generated(tmp_path / "b", layout="RSTPReid", num_identities=(2, 1, 1), progress=False)
    assert {path.name for path in (icfg / "imgs").iterdir()} == {"train", "test"}
    assert all(path.suffix == ".jpg" for path in (rstp / "imgs").iterdir())
    record = json.loads((rstp / "data_captions.json").read_text(encoding="utf-8"))[0]
    assert sorted(record) == ["captions", "id", "img_path", "split"]


def test_write_generated_default_counts_fit_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    monkeypatch.setattr(writer, "_write", lambda root, plan, progress: plans.append(plan))
    for name in PUBLISHED:
        write_generated(tmp_path / name, layout=name)
    assert [plan.num_identities for plan in plans] == [(300, 60, 200), (300, 0, 200), (300, 60, 200)]


@pytest.mark.parametrize("change", [{"gap": 0.5}, {"near_twins": 1.0}, {"images_per_identity": 2}])
def test_write_generated_every_argument_is_part_of_what_is_used_again(tmp_path: Path, change: dict) -> None:
    write_generated(tmp_path / "set", num_identities=SIZES, images_per_identity=3, progress=False)
    with pytest.raises(DatasetError, match="already holds a dataset generated with"):
        write_generated(
            tmp_path / "set", num_identities=SIZES, **{"images_per_identity": 3, "progress": False, **change}
        )


def test_write_generated_gap_is_the_share_of_street_pictures(tmp_path: Path) -> None:
    for gap in (0.0, 0.5, 1.0, 2.0):
        root = write_generated(
            tmp_path / str(gap), num_identities=(40, 1, 1), images_per_identity=3, gap=gap, progress=False
        )
        styles = [picture.scene.style for picture in load_scenes(root)]
        assert styles.count("street") / len(styles) == pytest.approx(min(gap, 1.0), abs=0.13)


def test_write_generated_more_persons_keep_the_first_ones(tmp_path: Path) -> None:
    """A larger training split draws the same persons first, so sizes can be compared."""
    small, large = (write(tmp_path / str(count), num_identities=(count, 1, 1)) for count in (3, 5))
    assert records_of(small)[:9] == records_of(large)[:9]
