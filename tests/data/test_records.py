"""Records, splits and their counts."""

from pathlib import Path

import pytest

from promptreid.data.records import ImageRecord, ReIDSplit, split_records
from promptreid.errors import DatasetError

ROOT = Path("somewhere")


def record(person_id: int, split: str = "train", *, captions: int = 2) -> ImageRecord:
    return ImageRecord(ROOT / f"{person_id}.jpg", person_id, ("a man",) * captions, split)


def test_labels_gaps_and_disorder_become_contiguous_in_order_of_numbers() -> None:
    split = ReIDSplit("train", [record(pid) for pid in (70, 3, 70, 11_003)])
    # Sorted numbers 3, 70, 11003 get 0, 1, 2.
    assert split.labels == {3: 0, 70: 1, 11_003: 2}


def test_counts_of_a_split_count_images_persons_and_captions() -> None:
    split = ReIDSplit("train", [record(1, captions=2), record(1, captions=3), record(2, captions=1)])
    assert (len(split), split.num_identities, split.num_captions) == (3, 2, 6)


def test_split_records_sorts_by_split_and_keeps_order() -> None:
    records = [record(1), record(5, "test"), record(2), record(4, "val"), record(1)]
    dataset = split_records("Set", ROOT, records)
    assert [found.person_id for found in dataset.train.records] == [1, 2, 1]
    assert [split.name for split in dataset.splits] == ["train", "val", "test"]
    assert dataset.name == "Set"
    assert dataset.root == ROOT


def test_split_records_without_validation_has_none() -> None:
    dataset = split_records("Set", ROOT, [record(1), record(5, "test")])
    assert dataset.val is None
    assert [split.name for split in dataset.splits] == ["train", "test"]


def test_summary_counts_every_split_in_one_line() -> None:
    records = [record(pid) for pid in range(1200)] + [record(5000, "test", captions=1)]
    assert split_records("Set", ROOT, records).summary() == (
        "Set: train 1,200 persons, 1,200 images, 2,400 captions; test 1 persons, 1 images, 1 captions"
    )


@pytest.mark.parametrize(("present", "absent"), [("train", "test"), ("test", "train")])
def test_split_records_empty_split_raises(present: str, absent: str) -> None:
    with pytest.raises(DatasetError, match=f'somewhere: no record has split "{absent}"; is the annotation file'):
        split_records("Set", ROOT, [record(1, present)])


def test_split_records_person_in_two_splits_raises() -> None:
    records = [record(1), record(2), record(9, "test"), record(2, "test")]
    with pytest.raises(DatasetError, match="person 2 is in the train and the test split; the splits must have no"):
        split_records("Set", ROOT, records)
