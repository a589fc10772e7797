"""Finds out which data set a folder holds, and loads it."""

from pathlib import Path

from promptreid.data.annotation import Annotation
from promptreid.data.benchmark_layout import BenchmarkLayout, found_in
from promptreid.data.cuhk_pedes import CUHK_PEDES
from promptreid.data.folder import find_tables, read_folder
from promptreid.data.icfg_pedes import ICFG_PEDES
from promptreid.data.records import ReIDDataset
from promptreid.data.rstpreid import RSTPREID
from promptreid.data.structure import build_dataset
from promptreid.errors import DatasetError

BENCHMARKS: dict[str, BenchmarkLayout] = {layout.name: layout for layout in (CUHK_PEDES, ICFG_PEDES, RSTPREID)}
FOLDER = "folder"
LAYOUTS = (*BENCHMARKS, FOLDER)


def load_dataset(root: str | Path, *, layout: str | None = None, check_counts: bool = True) -> ReIDDataset:
    """Load CUHK-PEDES, ICFG-PEDES, RSTPReid or your own folder, found out from the files that are there.

    Args:
        root: The data set's folder, or its parent.
        layout: One of `"CUHK-PEDES"`, `"ICFG-PEDES"`, `"RSTPReid"` and `"folder"`; `None` to find out.
        check_counts: Warn where a benchmark's counts are not the published ones.

    Returns:
        The data set.

    Raises:
        DatasetError: No known data set is there, several are, or it is not in order.
        ValueError: The layout is not one of them.

    Example:
        >>> load_dataset("data/RSTPReid").name  # doctest: +SKIP
        'RSTPReid'
    """
    return build_dataset(read_dataset(root, layout=layout), check_counts=check_counts)


def read_dataset(root: str | Path, *, layout: str | None = None) -> Annotation:
    """Read the annotation of the data set in a folder, well-formed or not.

    Raises:
        DatasetError: No known data set is there, several are, or its annotation cannot be read at all.
        ValueError: The layout is not one of `LAYOUTS`.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    name = _find_layout(Path(root)) if layout is None else layout
    return read_folder(root) if name == FOLDER else BENCHMARKS[name].read(root)


def _find_layout(root: Path) -> str:
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give a data set's folder, or its parent")
    present = [layout for layout in BENCHMARKS.values() if layout.find(root) is not None]
    # A data set that lies in the folder itself goes before those in its sub-folders.
    here = [layout for layout in present if (found := layout.find(root)) is not None and found.parent == root]
    chosen = here or present
    if len(chosen) > 1:
        names = ", ".join(layout.name for layout in chosen)
        raise DatasetError(f"{root} holds several data sets ({names}); give the folder of one of them")
    if chosen:
        return chosen[0].name
    for layout in BENCHMARKS.values():
        if layout.holds_useless_annotation(root):
            return layout.name  # whose reader says why it cannot serve
    if find_tables(root):
        return FOLDER
    files = "; ".join(f"{layout.name}: {' or '.join(layout.annotations)}" for layout in BENCHMARKS.values())
    raise DatasetError(
        f"{root} holds no data set that is known here (found: {found_in(root)}). Expected one of these files, with "
        f"imgs/ beside it ({files}), or your own .csv or .jsonl table"
    )
