"""Loads CUHK-PEDES (Li et al. 2017, Person Search with Natural Language Description, arXiv 1702.05729)."""

from pathlib import Path

from promptreid.data.benchmark_layout import BenchmarkLayout
from promptreid.data.counts import PublishedCounts, SplitCounts
from promptreid.data.records import ReIDDataset
from promptreid.data.structure import build_dataset

CUHK_PEDES = BenchmarkLayout(
    name="CUHK-PEDES",
    annotations=("reid_raw.json",),
    image_key="file_path",
    published=PublishedCounts(
        splits={
            "train": SplitCounts(11_003, 34_054, 68_126),
            "val": SplitCounts(1_000, 3_078, 6_158),
            "test": SplitCounts(1_000, 3_074, 6_156),
        },
        other_copies={"train": (SplitCounts(11_003, 34_054, 68_108),)},
    ),
    useless_annotation="caption_all.json",
    useless_reason=(
        "which has no splits. Ask the data set's authors for reid_raw.json, which comes with the same archive, and "
        "put it beside imgs/"
    ),
)


def load_cuhk_pedes(root: str | Path, *, check_counts: bool = True) -> ReIDDataset:
    """Read CUHK-PEDES' annotation and check that every image is there.

    Args:
        root: The folder that holds `reid_raw.json` and `imgs/`, or its parent.
        check_counts: Warn where persons, images or captions are not as many as published; a drawn copy has none to
            compare with.

    Returns:
        The data set; identities keep the annotation's numbers.

    Raises:
        DatasetError: The folder, the annotation or images are missing, or a record is malformed; the message names
            the file, the record and the mend.

    Example:
        >>> dataset = load_cuhk_pedes("data/CUHK-PEDES")  # doctest: +SKIP
        >>> dataset.train.num_identities  # doctest: +SKIP
        11003
    """
    return build_dataset(CUHK_PEDES.read(root), check_counts=check_counts)
