"""Records, splits and their counts, found and published."""

import os
from pathlib import Path

import pytest

from promptreid.data.layouts import CUHK_PEDES, ICFG_PEDES, RSTPREID
from promptreid.data.records import (
    ImageRecord,
    PublishedCounts,
    ReIDSplit,
    SplitCounts,
    count_line,
    count_mismatches,
    files_identity,
    split_records,
)
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


PUBLISHED = PublishedCounts(
    {"train": SplitCounts(3, 6, 12), "test": SplitCounts(1, 2, 4)}, {"train": (SplitCounts(3, 6, 10),)}
)
COMPLETE = {"train": SplitCounts(3, 6, 12), "test": SplitCounts(1, 2, 4)}


def test_complete_copy_is_as_published() -> None:
    assert count_mismatches(COMPLETE, PUBLISHED) == []
    assert count_line("Set", COMPLETE, PUBLISHED) == (
        "Set: train 3 persons, 6 images, 12 captions; test 1 persons, 2 images, 4 captions (as published)"
    )


def test_incomplete_split_shows_found_of_published() -> None:
    found = COMPLETE | {"test": SplitCounts(1, 2, 3)}
    assert count_line("Set", found, PUBLISHED) == (
        "Set: train 3 persons, 6 images, 12 captions; test 1 persons, 2 images, 3 of 4 captions (not as published)"
    )
    assert count_mismatches(found, PUBLISHED) == [
        "test has 1 persons, 2 images, 3 captions, published are 1 persons, 2 images, 4 captions"
    ]


def test_known_other_copy_is_named() -> None:
    (sentence,) = count_mismatches(COMPLETE | {"train": SplitCounts(3, 6, 10)}, PUBLISHED)
    assert sentence.endswith("(a copy with these counts is known to be in circulation)")


def test_split_that_is_lacking_or_too_many_is_named() -> None:
    found = {"train": COMPLETE["train"], "val": SplitCounts(1, 1, 1)}
    assert count_mismatches(found, PUBLISHED) == [
        "this copy has no test split, but the published dataset has one (1 persons, 2 images, 4 captions)",
        "the published dataset has no val split, but this copy has one (1 persons, 1 images, 1 captions)",
    ]
    assert "test none of 1 persons" in count_line("Set", found, PUBLISHED)


def test_no_published_counts_gives_the_plain_line() -> None:
    assert count_line("Set", {"test": SplitCounts(1, 2, 3)}, None) == "Set: test 1 persons, 2 images, 3 captions"
    assert count_line("Set", {}, None) == "Set: nothing"


@pytest.mark.parametrize(
    ("layout", "images", "captions"),
    [(CUHK_PEDES, 40_206, 80_440), (ICFG_PEDES, 54_522, 54_522), (RSTPREID, 20_505, 41_010)],
)
def test_published_counts_add_up_to_the_papers_totals(layout, images: int, captions: int) -> None:
    splits = layout.published.splits.values()
    assert (sum(split.images for split in splits), sum(split.captions for split in splits)) == (images, captions)


def test_cuhk_pedes_knows_the_copy_with_68108_captions() -> None:
    found = dict(CUHK_PEDES.published.splits) | {"train": SplitCounts(11_003, 34_054, 68_108)}
    (sentence,) = count_mismatches(found, CUHK_PEDES.published)
    assert "68,108 captions, published are 11,003 persons, 34,054 images, 68,126 captions (a copy" in sentence


def test_identity_of_files_on_several_drives_counts_their_whole_names(tmp_path, monkeypatch):
    def fail(_):
        raise ValueError("Paths don't have the same drive")

    for name in "ab":
        (tmp_path / name).write_text("the same", encoding="utf-8")
    monkeypatch.setattr(os.path, "commonpath", fail)
    one, other = files_identity([tmp_path / "a"]), files_identity([tmp_path / "b"])
    assert one["files"] == 1
    assert one["content"] != other["content"]
