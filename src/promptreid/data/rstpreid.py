"""Loads RSTPReid (Zhu et al. 2021, DSSL: Deep Surroundings-person Separation Learning, arXiv 2109.05534)."""

from pathlib import Path

from promptreid.data.benchmark_layout import BenchmarkLayout
from promptreid.data.counts import PublishedCounts, SplitCounts
from promptreid.data.records import ReIDDataset
from promptreid.data.structure import build_dataset

RSTPREID = BenchmarkLayout(
    name="RSTPReid",
    annotations=("data_captions.json",),
    image_key="img_path",
    published=PublishedCounts(
        splits={
            "train": SplitCounts(3_701, 18_505, 37_010),
            "val": SplitCounts(200, 1_000, 2_000),
            "test": SplitCounts(200, 1_000, 2_000),
        },
        other_copies={},
    ),
)


def load_rstpreid(root: str | Path, *, check_counts: bool = True) -> ReIDDataset:
    """Read RSTPReid's annotation and check that every image is there.

    Args:
        root: The folder that holds `data_captions.json` and `imgs/`, or its parent.
        check_counts: Warn where persons, images or captions are not as many as published.

    Returns:
        The data set; identities keep the annotation's numbers.

    Raises:
        DatasetError: The folder, the annotation or images are missing, or a record is malformed; the message names
            the file, the record and the mend.

    Example:
        >>> dataset = load_rstpreid("data/RSTPReid")  # doctest: +SKIP
        >>> dataset.train.num_identities  # doctest: +SKIP
        3701
    """
    return build_dataset(RSTPREID.read(root), check_counts=check_counts)
