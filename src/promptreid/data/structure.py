"""What is wrong with the records of a data set taken together, and the data set if nothing is."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from promptreid.data.annotation import Annotation
from promptreid.data.counts import SplitCounts, count_mismatches
from promptreid.data.image_files import ImageFolder, shown
from promptreid.data.problems import Problem
from promptreid.data.records import SPLITS, ImageRecord, ReIDDataset, ReIDSplit, shared_person, split_records
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
