"""Counts found against counts published."""

import pytest

from promptreid.data.layouts import CUHK_PEDES, ICFG_PEDES, RSTPREID
from promptreid.data.records import (
    PublishedCounts,
    SplitCounts,
    count_line,
    count_mismatches,
)

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
        "there is no test split, published is one of 1 persons, 2 images, 4 captions",
        "there is a val split of 1 persons, 1 images, 1 captions, published is none",
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
