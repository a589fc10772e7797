"""Loads ICFG-PEDES (Ding et al. 2021, Semantically Self-Aligned Network, arXiv 2107.12666)."""

from pathlib import Path

from promptreid.data.benchmark_layout import BenchmarkLayout
from promptreid.data.counts import PublishedCounts, SplitCounts
from promptreid.data.records import ReIDDataset
from promptreid.data.structure import build_dataset

ICFG_PEDES = BenchmarkLayout(
    name="ICFG-PEDES",
    annotations=("ICFG-PEDES.json", "ICFG_PEDES.json"),
    image_key="file_path",
    published=PublishedCounts(
        splits={"train": SplitCounts(3_102, 34_674, 34_674), "test": SplitCounts(1_000, 19_848, 19_848)},
        other_copies={},
    ),
    folders=("ICFG_PEDES",),
)


def load_icfg_pedes(root: str | Path, *, check_counts: bool = True) -> ReIDDataset:
    """Read ICFG-PEDES' annotation and check that every image is there.

    It has no validation split: `val` is `None`, and nothing may choose a checkpoint but the last epoch.

    Args:
        root: The folder that holds `ICFG-PEDES.json` (or `ICFG_PEDES.json`) and `imgs/`, or its parent.
        check_counts: Warn where persons, images or captions are not as many as published.

    Returns:
        The data set; identities keep the annotation's numbers.

    Raises:
        DatasetError: The folder, the annotation or images are missing, or a record is malformed; the message names
            the file, the record and the mend.

    Example:
        >>> dataset = load_icfg_pedes("data/ICFG-PEDES")  # doctest: +SKIP
        >>> dataset.val is None  # doctest: +SKIP
        True
    """
    return build_dataset(ICFG_PEDES.read(root), check_counts=check_counts)
