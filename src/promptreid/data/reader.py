"""Reads a data set of any layout, and checks that it is whole."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from promptreid.data.annotation import Annotation
from promptreid.data.faults import Problem
from promptreid.data.folder import find_tables, read_folder
from promptreid.data.images import ImageFolder, shown
from promptreid.data.layouts import (
    CUHK_PEDES,
    ICFG_PEDES,
    RSTPREID,
    BenchmarkLayout,
    found_in,
)
from promptreid.data.records import (
    SPLITS,
    ImageRecord,
    ReIDDataset,
    ReIDSplit,
    SplitCounts,
    count_mismatches,
    shared_person,
    split_records,
)
from promptreid.errors import DatasetError


def build_dataset(annotation: Annotation, *, check_counts: bool = True) -> ReIDDataset:
    """The data set that an annotation describes.

    Args:
        annotation: What was read.
        check_counts: Warn where the counts are not the published ones.

    Raises:
        DatasetError: It has an error, such as a malformed record or a missing image.
    """
    errors = [problem for problem in annotation.problems if problem.severity == "error"]
    if errors:
        raise DatasetError(f"{errors[0].message}{_and_more(len(errors) - 1)}")
    errors = [problem for problem in structural_problems(annotation) if problem.severity == "error"]
    missing = [problem for problem in errors if problem.kind == "missing"]
    if missing and len(missing) == len(errors):
        raise DatasetError(_missing_images(annotation, missing))
    if errors:
        first = next(problem for problem in errors if problem.kind != "missing")
        raise DatasetError(f"{first.message}{_and_more(len(errors) - 1)}")
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


def structural_problems(annotation: Annotation) -> Iterator[Problem]:
    """Problems of the well-formed records: images, duplicates, persons in two splits, empty splits, counts."""
    yield from _image_problems(annotation)
    yield from _repeated_images(annotation)
    yield from _split_problems(annotation)
    if annotation.published is not None:
        for sentence in count_mismatches(split_counts(annotation.records), annotation.published):
            yield Problem("counts", f"{annotation.path}: {sentence}")


def split_counts(records: Sequence[ImageRecord]) -> dict[str, SplitCounts]:
    """Counts of every split that is not empty."""
    splits = {name: ReIDSplit(name, [record for record in records if record.split == name]) for name in SPLITS}
    return {name: split.counts for name, split in splits.items() if len(split)}


def _image_problems(annotation: Annotation) -> Iterator[Problem]:
    folder = ImageFolder(annotation.images)
    seen: set[PurePosixPath] = set()
    for place, record in zip(annotation.places, annotation.records, strict=True):
        path = annotation.relative(record)
        found = "present" if path in seen else folder.place(path)
        seen.add(path)
        if found == "missing":
            message = f"{annotation.where(place)}: there is no image {shown(annotation.images / path)}"
            yield Problem("missing", message, place, str(path))
        elif found == "outside":
            what = f"{annotation.path_key} {str(path)!r} leaves the folder {annotation.images.name}/ over a link"
            yield Problem("path", f"{annotation.where(place)}: {what}; copy the images there", place, str(path))


def _repeated_images(annotation: Annotation) -> Iterator[Problem]:
    first: dict[Path, tuple[int, ImageRecord]] = {}
    for place, record in zip(annotation.places, annotation.records, strict=True):
        before, earlier = first.setdefault(record.path, (place, record))
        if earlier is record:
            continue
        path = str(annotation.relative(record))
        what = f"{annotation.where(place)}: image {path!r} is in {annotation.place_name} {before} already"
        if earlier.person_id != record.person_id:
            what += f", as person {earlier.person_id} and here as {record.person_id}"
            yield Problem("conflict", what, place, path)
        elif earlier.split != record.split:
            yield Problem("conflict", f"{what}, in split {earlier.split} and here in {record.split}", place, path)
        else:
            yield Problem("duplicate", what, place, path)


def _split_problems(annotation: Annotation) -> Iterator[Problem]:
    present = {record.split for record in annotation.records}
    for split in annotation.required:
        if split not in present:
            message = f'{annotation.path}: no record has split "{split}"; is the annotation file complete?'
            yield Problem("split", message)
    owner: dict[int, str] = {}
    reported: set[int] = set()
    for place, record in zip(annotation.places, annotation.records, strict=True):
        first = owner.setdefault(record.person_id, record.split)
        if first != record.split and record.person_id not in reported:
            reported.add(record.person_id)
            what = shared_person(record.person_id, first, record.split)
            yield Problem("split", f"{annotation.where(place)}: {what}", place)


def _missing_images(annotation: Annotation, missing: Sequence[Problem]) -> str:
    """One message for all missing images, with the sub-folders they are missing from."""
    paths = [PurePosixPath(problem.path or "") for problem in missing]
    folders = Counter(shown(path.parent) for path in paths)
    counts = ", ".join(f"{folder}: {count}" for folder, count in sorted(folders.items()))
    first = ", ".join(shown(path) for path in paths[:10])
    return (
        f"{len(missing)} of {len(annotation.records)} images are missing below {annotation.images} ({counts}); "
        f"first: {first}. Unpack every archive of the data set there"
    )


def _and_more(count: int) -> str:
    if count < 1:
        return ""
    return f" (and {count:,} more errors; promptreid.data.check.check_dataset lists all of them)"


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


def load_folder(root: str | Path, *, table: str | Path | None = None) -> ReIDDataset:
    """Read a folder of pictures with a CSV or JSONL table of `image, caption, person_id, split`.

    One row is one caption of one image; an image with several captions has several rows. Paths are relative to the
    table. Persons may be numbers or names; names are numbered in alphabetical order. A split that no row names is
    empty, so a table of test images alone can be evaluated.

    Args:
        root: The folder.
        table: The table, if there are several in the folder.

    Returns:
        The data set.

    Raises:
        DatasetError: There is no table, a row is malformed, or an image is missing; the message names file and line.

    Example:
        >>> dataset = load_folder("my-crops")  # doctest: +SKIP
        >>> print(dataset.summary())  # doctest: +SKIP
        my-crops: train 40 persons, 120 images, 120 captions; test 10 persons, 30 images, 30 captions
    """
    return build_dataset(read_folder(root, table=table))
