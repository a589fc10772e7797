"""Loads a dataset of any layout, and checks that it is complete."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from promptreid.data.annotation import Annotation, backslash_advice, structural_problems
from promptreid.data.folder import TableLayout, find_tables
from promptreid.data.layouts import CUHK_PEDES, ICFG_PEDES, PUBLISHED, RSTPREID, Layout, found_in
from promptreid.data.problems import Problem
from promptreid.data.records import ReIDDataset, count_mismatches, split_records
from promptreid.errors import DatasetError, printable

FOLDER = "folder"

LAYOUTS: dict[str, Layout] = {**PUBLISHED, FOLDER: TableLayout()}


def load_dataset(root: str | Path, *, layout: str | Layout | None = None, check_counts: bool = True) -> ReIDDataset:
    """Load CUHK-PEDES, ICFG-PEDES, RSTPReid or your own folder, recognised from the files that are there.

    Args:
        root: The dataset's folder, or its parent.
        layout: One of `"CUHK-PEDES"`, `"ICFG-PEDES"`, `"RSTPReid"` and `"folder"`, or a `Layout` of your own; `None`
            to recognise it.
        check_counts: Warn where a benchmark's counts are not the published ones.

    Returns:
        The dataset; identities keep the annotation's numbers.

    Raises:
        DatasetError: No known dataset is there, several are, images are missing, or a record is malformed; the
            message names the file, the record and how to mend it.
        ValueError: The layout is unknown.

    Example:
        >>> load_dataset("data/RSTPReid").name  # doctest: +SKIP
        'RSTPReid'
    """
    return build_dataset(read_dataset(root, layout=layout), check_counts=check_counts)


def load_cuhk_pedes(root: str | Path, *, check_counts: bool = True) -> ReIDDataset:
    """Load CUHK-PEDES: `load_dataset` with `layout="CUHK-PEDES"`."""
    return build_dataset(CUHK_PEDES.read(Path(root)), check_counts=check_counts)


def load_icfg_pedes(root: str | Path, *, check_counts: bool = True) -> ReIDDataset:
    """Load ICFG-PEDES: `load_dataset` with `layout="ICFG-PEDES"`; its `val` is `None`."""
    return build_dataset(ICFG_PEDES.read(Path(root)), check_counts=check_counts)


def load_rstpreid(root: str | Path, *, check_counts: bool = True) -> ReIDDataset:
    """Load RSTPReid: `load_dataset` with `layout="RSTPReid"`."""
    return build_dataset(RSTPREID.read(Path(root)), check_counts=check_counts)


def load_folder(root: str | Path, *, table: str | Path | None = None) -> ReIDDataset:
    """Load a folder of images with a CSV or JSONL table of `image, caption, person_id, split`.

    One row is one caption of one image; an image with several captions has several rows. Paths are relative to the
    table. Persons may be numbers or names; names are numbered in alphabetical order. A split that no row names is
    empty, so a table of test images alone can be evaluated.

    Args:
        root: The folder.
        table: The table, if there are several in the folder.

    Raises:
        DatasetError: There is no table, a row is malformed, or an image is missing; the message names file and line.

    Example:
        >>> dataset = load_folder("my-crops")  # doctest: +SKIP
        >>> print(dataset.summary())  # doctest: +SKIP
        my-crops: train 40 persons, 120 images, 120 captions; test 10 persons, 30 images, 30 captions
    """
    return build_dataset(TableLayout(table).read(Path(root)))


def read_dataset(root: str | Path, *, layout: str | Layout | None = None) -> Annotation:
    """Read the annotation of the dataset in a folder, well-formed or not.

    Raises:
        DatasetError: No known dataset is there, several are, or its annotation cannot be read at all.
        ValueError: The layout is unknown.
    """
    if layout is None:
        layout = _find_layout(Path(root))
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
        layout = LAYOUTS[layout]
    return layout.read(Path(root))


def _find_layout(root: Path) -> str:
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give a dataset's folder, or its parent")
    found = {name: path.parent for name, layout in PUBLISHED.items() if (path := layout.find(root)) is not None}
    # A dataset that lies in the folder itself takes precedence over those in its sub-folders.
    chosen = [name for name, folder in found.items() if folder == root] or list(found)
    if len(chosen) > 1:
        raise DatasetError(f"{root} holds several datasets ({', '.join(chosen)}); give the folder of one of them")
    # The reader of a dataset of which only an unusable file is there says why it cannot be used.
    chosen += [name for name, layout in PUBLISHED.items() if layout.holds_useless_annotation(root)]
    if chosen:
        return chosen[0]
    if find_tables(root):
        return FOLDER
    files = "; ".join(f"{name}: {' or '.join(layout.annotations)}" for name, layout in PUBLISHED.items())
    raise DatasetError(
        f"{root} holds no dataset that is known here (found: {found_in(root)}). Expected one of these files, with "
        f"imgs/ beside it ({files}), or your own .csv or .jsonl table"
    )


def build_dataset(annotation: Annotation, *, check_counts: bool = True) -> ReIDDataset:
    """The dataset that an annotation describes.

    Args:
        annotation: What was read.
        check_counts: Warn where the counts are not the published ones.

    Raises:
        DatasetError: It has an error, such as a malformed record or a missing image.
    """
    _raise_first(_errors(annotation.problems))
    errors = _errors(structural_problems(annotation))
    missing = [problem for problem in errors if problem.kind == "missing"]
    if missing and len(missing) == len(errors):
        raise DatasetError(_missing_images(annotation, missing))
    _raise_first(sorted(errors, key=lambda problem: problem.kind == "missing"))
    dataset = split_records(
        annotation.name,
        annotation.root,
        annotation.records,
        required=annotation.required,
        published=annotation.published,
    )
    if check_counts and annotation.published is not None:
        differing = count_mismatches({split.name: split.counts for split in dataset.splits}, annotation.published)
        if differing:
            warnings.warn(
                f"{annotation.path}: {'; '.join(differing)}. Scores of an incomplete copy cannot be compared with "
                "published ones; with check_counts=False this is not checked",
                stacklevel=3,
            )
    return dataset


def _errors(problems: Iterable[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def _raise_first(errors: Sequence[Problem]) -> None:
    if errors:
        more = len(errors) - 1
        count = f" (and {more:,} more errors; promptreid.data.check_dataset lists all of them)" if more else ""
        raise DatasetError(f"{errors[0].message}{count}")


def _missing_images(annotation: Annotation, missing: Sequence[Problem]) -> str:
    """One message for all missing images, with the sub-folders they are missing from."""
    paths = [PurePosixPath(problem.path or "") for problem in missing]
    folders = Counter(printable(path.parent) for path in paths)
    counts = ", ".join(f"{folder}: {count}" for folder, count in sorted(folders.items()))
    first = ", ".join(printable(path) for path in paths[:10])
    return (
        f"{len(missing)} of {len(annotation.records)} images are missing below {annotation.images} ({counts}); "
        f"first: {first}{backslash_advice(paths) or '. Unpack every archive of the dataset there'}"
    )
