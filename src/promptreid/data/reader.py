"""Loads a dataset of any layout, and checks that it is complete."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

from promptreid.data.annotation import (
    MEANT,
    SKIP,
    Annotation,
    backslash_advice,
    divided,
    leave_out_bad,
    structural_problems,
    warn_left_out,
)
from promptreid.data.image_files import explained_if_closed, found_beside_images
from promptreid.data.images import check_on_bad
from promptreid.data.layouts import (
    ANNOTATIONS,
    CUHK_PEDES,
    ICFG_PEDES,
    PUBLISHED,
    RSTPREID,
    SPLIT_FILES,
    JsonLayout,
    Layout,
    ReadEntries,
    read_entries,
)
from promptreid.data.problems import LEFT_OUT, Problem
from promptreid.data.records import ReIDDataset, count_mismatches, split_records
from promptreid.data.table_layout import TableLayout, find_split_tables, find_tables
from promptreid.defaults import OnBad
from promptreid.errors import DatasetError, counted, printable
from promptreid.values import check_choice

FOLDER = "folder"

LAYOUTS: dict[str, Layout] = {**PUBLISHED, FOLDER: TableLayout()}


def load_dataset(
    root: str | Path,
    *,
    layout: str | Layout | None = None,
    image_dir: str | Path | None = None,
    table: str | Path | None = None,
    check_counts: bool = True,
    on_bad: OnBad = "strict",
    split: str | None = None,
    split_seed: int = 0,
) -> ReIDDataset:
    """Load CUHK-PEDES, ICFG-PEDES, RSTPReid or your own folder, recognised from the files that are there.

    Args:
        root: The dataset's folder; of a published dataset its parent will do.
        layout: One of `"CUHK-PEDES"`, `"ICFG-PEDES"`, `"RSTPReid"` and `"folder"`, or your own `Layout`; `None`
            to recognise it.
        image_dir: The folder that the images' paths begin at; `None` for `imgs/` beside the annotation, or beside the
            folder `annotations` that it is in.
        table: The table of your own folder, by its path below `root`, if there are several in it.
        check_counts: Warn where a benchmark's counts are not the published ones.
        on_bad: What is done with a record that is malformed, has no caption or an empty one, names an unknown split, or
            whose image is missing: `"strict"` refuses the dataset, `"skip"` leaves the record out, with one warning
            that counts and names them. Images are not opened; see `keep_readable`.
        split: Percent of the persons for training, validation and test, such as `"80/10/10"` or `"90/0/10"`: divides
            the persons, by chance, instead of reading the splits that the annotation names.
        split_seed: Of that drawing; the same seed and persons give the same splits everywhere.

    Returns:
        The dataset; identities keep the annotation's numbers.

    Raises:
        DatasetError: No known dataset is there, several are, images are missing, or a record is malformed; the
            message names the file, the record and how to fix it.
        ValueError: The layout or `on_bad` is unknown, `image_dir` is given for a table or a layout that is no
            `JsonLayout`, or `table` for another layout than `"folder"`.

    Example:
        >>> load_dataset("data/RSTPReid").name  # doctest: +SKIP
        'RSTPReid'
    """
    check_on_bad(on_bad)
    shares = None if split is None else split_shares(split)
    annotation = read_dataset(root, layout=layout, image_dir=image_dir, table=table, read_splits=shares is None)
    return build_dataset(annotation, check_counts=check_counts, on_bad=on_bad, shares=shares, split_seed=split_seed)


def split_shares(text: str) -> tuple[float, float, float]:
    """The three numbers of `"80/10/10"`.

    Raises:
        ValueError: It is something else.

    Example:
        >>> split_shares("80/10/10")
        (80.0, 10.0, 10.0)
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = -1.0
    if not (train > 0 and val >= 0 and test > 0 and abs(train + val + test - 100) < 1e-6):
        raise ValueError(
            f"split is {text!r}, expected percent of the persons for training, validation and test that sum to 100, "
            "such as 80/10/10"
        )
    return train, val, test


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
    empty, so a table with only test images can be evaluated.

    Args:
        root: The folder.
        table: The table, by its path below the folder, if there are several in it.

    Raises:
        DatasetError: There is no table, a row is malformed, or an image is missing; the message names file and line.

    Example:
        >>> dataset = load_folder("my-crops")  # doctest: +SKIP
        >>> print(dataset.summary())  # doctest: +SKIP
        my-crops: train 40 persons, 120 images, 120 captions; test 10 persons, 30 images, 30 captions
    """
    return build_dataset(read_dataset(root, layout=TableLayout(table)))


def read_dataset(
    root: str | Path,
    *,
    layout: str | Layout | None = None,
    image_dir: str | Path | None = None,
    table: str | Path | None = None,
    read_splits: bool = True,
) -> Annotation:
    """Read the annotation of the dataset in a folder, well-formed or not; arguments as for `load_dataset`.

    `read_splits=False` is for persons who are divided anew: the splits that the annotation names may be anything then.
    A layout of your own reads its own.

    Raises:
        DatasetError: No known dataset is there, several are, or its annotation cannot be read at all.
        ValueError: The layout is unknown, `image_dir` is given for a table or a layout that is no `JsonLayout`, or
            `table` for another layout than `"folder"`, or for one that has a table.
    """
    if isinstance(layout, str):
        check_choice("layout", layout, LAYOUTS)
        layout = LAYOUTS[layout]
    if table is not None:
        layout = _with_table(layout, table)
    read = cache(read_entries)  # what is looked into to recognise a dataset is not read again
    with explained_if_closed(Path(root)):
        if layout is None:
            layout = LAYOUTS[_find_layout(Path(root), read)]
        if isinstance(layout, JsonLayout | TableLayout) and not read_splits:
            layout = replace(layout, read_splits=False)
        if isinstance(layout, JsonLayout):
            chosen = layout if image_dir is None else replace(layout, image_dir=Path(image_dir))
            return chosen.read(Path(root), read=read)
        if image_dir is None:
            return layout.read(Path(root))
    raise ValueError(f"image_dir is {str(image_dir)!r}, but only the paths of a JSON annotation begin at a folder")


def _with_table(layout: Layout | None, table: str | Path) -> TableLayout:
    """The layout of one's own folder with a table of it that is named; no other layout has one."""
    if layout in (None, TableLayout()):
        return TableLayout(table)
    if isinstance(layout, TableLayout):
        other = f"the layout has the table {str(layout.table)!r}"
    else:
        other = f"only the layout {FOLDER} has a table"
    raise ValueError(f"table is {str(table)!r}, but {other}; leave out one of them")


def dataset_folder(root: Path) -> Path:
    """The folder of the dataset that `root` is or, if it is the parent of a published one's, holds."""
    found = [files[0].parent for layout in PUBLISHED.values() if (files := layout.find(root))]
    return next((place.parent if place.name == ANNOTATIONS else place for place in found), root)


def holds_dataset(root: Path) -> bool:
    """Whether an annotation of a published dataset or of an imagefolder is there; other tables may be anything."""
    return any(layout.find(root) for layout in PUBLISHED.values()) or bool(find_split_tables(root))


def _find_layout(root: Path, read: ReadEntries) -> str:
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give a dataset's folder, or the parent of a published one's")
    found = {name: layout.find(root) for name, layout in PUBLISHED.items()}
    found = {name: files for name, files in found.items() if PUBLISHED[name].claims(files, read)}
    # A dataset that lies in the folder itself takes precedence over those in its sub-folders.
    chosen = [name for name, files in found.items() if files[0].parent in (root, root / ANNOTATIONS)] or list(found)
    if len(chosen) > 1:
        raise DatasetError(f"{root} holds several datasets ({', '.join(chosen)}); give the folder of one of them")
    # The reader of a dataset of which only an unusable file is there says why it cannot be used.
    chosen += [name for name, layout in PUBLISHED.items() if layout.holds_useless_annotation(root)]
    if chosen:
        return chosen[0]
    if find_tables(root) or find_split_tables(root):
        return FOLDER
    if any(layout.find(root) for layout in PUBLISHED.values()):
        raise DatasetError(
            f"{root} has {' or '.join(SPLIT_FILES.values())}, whose image paths belong to none of "
            f"{', '.join(PUBLISHED)}; name the dataset: layout= (on the command line --layout)"
        )
    files = "; ".join(f"{name}: {' or '.join(layout.annotations)}" for name, layout in PUBLISHED.items())
    raise DatasetError(
        f"{root} holds no dataset that is known here (found: {found_beside_images(root)}). Expected one of these "
        f"files, with imgs/ beside it ({files}; or {', '.join(SPLIT_FILES.values())}), or your own .csv or .jsonl "
        "table, or an imagefolder with metadata.jsonl"
    )


def chosen_records(
    annotation: Annotation, *, on_bad: OnBad, shares: tuple[float, float, float] | None, split_seed: int
) -> tuple[Annotation, list[Problem]]:
    """What of an annotation is used, in the splits that are wanted, and the errors of the records that are left out.

    Arguments are as for `build_dataset`.
    """
    left_out: list[Problem] = []
    if on_bad == "skip":
        annotation, left_out = leave_out_bad(annotation, splits_needed=shares is None)
    return annotation if shares is None else divided(annotation, shares, seed=split_seed), left_out


def build_dataset(
    annotation: Annotation,
    *,
    check_counts: bool = True,
    on_bad: OnBad = "strict",
    shares: tuple[float, float, float] | None = None,
    split_seed: int = 0,
) -> ReIDDataset:
    """The dataset that an annotation describes.

    Args:
        annotation: What was read.
        check_counts: Warn where the counts are not the published ones.
        on_bad: As for `load_dataset`.
        shares: Percent of the persons for each split, if they are to be divided.
        split_seed: Of that drawing.

    Raises:
        DatasetError: It has an error, such as a malformed record or a missing image.
    """
    annotation, left_out = chosen_records(annotation, on_bad=on_bad, shares=shares, split_seed=split_seed)
    warn_left_out(annotation, left_out, stacklevel=3)
    _raise_first(_errors(annotation.problems))
    errors = _errors(structural_problems(annotation))
    missing = [problem for problem in errors if problem.kind == "missing"]
    if missing and len(missing) == len(errors):
        raise DatasetError(_missing_images(annotation, missing))
    _raise_first(sorted(errors, key=lambda problem: problem.kind == "missing"))
    for remark in annotation.problems:
        if remark.kind == "id":
            warnings.warn(remark.message, stacklevel=3)
    dataset = split_records(
        annotation.name,
        annotation.root,
        annotation.records,
        required=annotation.required,
        published=annotation.published,
    )
    dataset = replace(dataset, names=annotation.names)
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
        count = f" (and {counted(more, 'more error')}; promptreid.data.check_dataset lists all of them)" if more else ""
        # Who leaves out records for a name of the split that was meant well loses the whole split.
        own = all(error.kind in LEFT_OUT for error in errors) and MEANT not in errors[0].message
        raise DatasetError(f"{errors[0].message}{count}{'; ' + SKIP if own else ''}")


def _missing_images(annotation: Annotation, missing: Sequence[Problem]) -> str:
    """One message for all missing images, with the sub-folders they are missing from."""
    paths = [PurePosixPath(problem.path or "") for problem in missing]
    folders = Counter(printable(path.parent) for path in paths)
    counts = ", ".join(f"{folder}: {count}" for folder, count in sorted(folders.items()))
    first = ", ".join(printable(path) for path in paths[:10])
    return (
        f"{len(missing)} of {len(annotation.records)} images are missing below {annotation.images} ({counts}); "
        f"first: {first}{backslash_advice(paths) or f'. Unpack every archive of the dataset there, or {SKIP}'}"
    )
