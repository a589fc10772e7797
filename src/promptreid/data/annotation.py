"""Annotations: records that were read from a dataset's files, and everything that is wrong with them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from promptreid.data.images import ImageFolder, leaves_folder
from promptreid.data.problems import Problem
from promptreid.data.records import (
    SPLITS,
    ImageRecord,
    PublishedCounts,
    count_mismatches,
    split_conflicts,
    split_counts,
)
from promptreid.errors import printable


@dataclass(frozen=True)
class Annotation:
    """The annotation of a dataset, read but not yet checked as a whole.

    Attributes:
        name: The dataset's usual name.
        path: The annotation file; its folder is the dataset's.
        images: The folder that the records' paths begin at.
        records: The well-formed records.
        positions: Of each, its index in the file (line number in CSV and JSONL).
        problems: What is wrong with the others.
        num_entries: Records in the file.
        published: The counts to compare it with.
        required: Splits that must not be empty.
        position_name: What a position is: `"record"`, or `"line"` in CSV and JSONL.
        path_key: The field that holds an image's path.
    """

    name: str
    path: Path
    images: Path
    records: Sequence[ImageRecord] = field(repr=False)
    positions: Sequence[int] = field(repr=False)
    problems: Sequence[Problem] = field(repr=False)
    num_entries: int
    published: PublishedCounts | None = None
    required: Sequence[str] = ("train", "test")
    position_name: str = "record"
    path_key: str = "file_path"

    @classmethod
    def of_entries(
        cls,
        entries: Iterable[ImageRecord | list[Problem]],
        *,
        name: str,
        path: Path,
        images: Path,
        published: PublishedCounts | None = None,
        path_key: str = "file_path",
    ) -> "Annotation":
        """The annotation of entries in their order, each a record or what is wrong with it, as `parse_entry` gives."""
        records: list[ImageRecord] = []
        positions: list[int] = []
        problems: list[Problem] = []
        position = -1
        for position, entry in enumerate(entries):
            if isinstance(entry, ImageRecord):
                records.append(entry)
                positions.append(position)
            else:
                problems += [problem.located(f"{path}, record {position}:", position) for problem in entry]
        return cls(
            name, path, images, records, positions, problems, position + 1, published=published, path_key=path_key
        )

    @property
    def root(self) -> Path:
        """The dataset's folder."""
        return self.path.parent

    def located_records(self) -> Iterator[tuple[int, ImageRecord]]:
        """The well-formed records with their positions."""
        return zip(self.positions, self.records, strict=True)

    def relative(self, record: ImageRecord) -> PurePosixPath:
        """A record's path below the image folder."""
        return PurePosixPath(record.path.relative_to(self.images).as_posix())

    def problem(self, kind: str, what: str, position: int, path: str | None = None) -> Problem:
        """A problem of one record, whose message begins with `FILE, record 7:`."""
        return Problem(kind, what).located(f"{self.path}, {self.position_name} {position}:", position, path)


def structural_problems(annotation: Annotation) -> Iterator[Problem]:
    """Problems of the well-formed records: images, duplicates, persons in two splits, empty splits, counts."""
    yield from _image_problems(annotation)
    yield from _repeated_images(annotation)
    for index, words in split_conflicts(annotation.records, annotation.required):
        if index is None:
            yield Problem("split", f"{annotation.path}: {words}")
        else:
            yield annotation.problem("split", words, annotation.positions[index])
    if annotation.published is not None:
        for sentence in count_mismatches(split_counts(annotation.records), annotation.published):
            yield Problem("counts", f"{annotation.path}: {sentence}")


def _image_problems(annotation: Annotation) -> Iterator[Problem]:
    folder = ImageFolder(annotation.images)
    seen: set[PurePosixPath] = set()
    for position, record in annotation.located_records():
        path = annotation.relative(record)
        found = "present" if path in seen else folder.locate(path)
        seen.add(path)
        if found == "missing":
            what = f"there is no image {printable(annotation.images / path)}{backslash_advice([path])}"
            yield annotation.problem("missing", what, position, str(path))
        elif found == "outside":
            what = f"{annotation.path_key} {str(path)!r} leaves the folder {annotation.images.name}/ over a link"
            yield annotation.problem("path", f"{what}; copy the images there", position, str(path))


def backslash_advice(paths: Iterable[PurePosixPath]) -> str:
    """What to do about missing images some of whose paths are written as on Windows; empty if none is."""
    first = next((str(path) for path in paths if "\\" in str(path)), None)
    if first is None:
        return ""
    return f"; write / instead of \\ in {first!r}, as in {first.replace(chr(92), '/')!r}"


def _repeated_images(annotation: Annotation) -> Iterator[Problem]:
    first: dict[Path, tuple[int, ImageRecord]] = {}
    for position, record in annotation.located_records():
        before, earlier = first.setdefault(record.path, (position, record))
        if earlier is record:
            continue
        path = str(annotation.relative(record))
        kind, what = "conflict", f"image {path!r} is in {annotation.position_name} {before} already"
        if earlier.person_id != record.person_id:
            what += f", as person {earlier.person_id} and here as {record.person_id}"
        elif earlier.split != record.split:
            what += f", in split {earlier.split} and here in {record.split}"
        else:
            kind = "duplicate"
        yield annotation.problem(kind, what, position, path)


def parse_entry(entry: Any, images: Path, *, image_key: str = "file_path") -> ImageRecord | list[Problem]:
    """One entry of a JSON annotation as a record, or everything that is wrong with it.

    Args:
        entry: An object with the keys `split`, `captions`, `id` and `image_key`.
        images: The folder that its path begins at.
        image_key: The key of the path.
    """
    keys = ("split", "captions", image_key, "id")
    if not isinstance(entry, dict):
        return [Problem("record", f"is {type(entry).__name__}, expected an object with {', '.join(keys)}")]
    fields = cast("dict[str, Any]", entry)
    missing = [key for key in keys if key not in fields]
    problems = [Problem("record", f"has no {', '.join(missing)}")] if missing else []
    checks = {
        "split": split_problem,
        "id": _id_problem,
        image_key: lambda path: path_problem(image_key, path, images.name),
        "captions": _captions_problem,
    }
    for key, check in checks.items():
        if key in fields and (problem := check(fields[key])) is not None:
            problems.append(problem)
    if problems:
        return problems
    return ImageRecord(images / fields[image_key], fields["id"], tuple(fields["captions"]), fields["split"])


def split_problem(split: Any) -> Problem | None:
    """What is wrong with the name of a split, or `None`."""
    if isinstance(split, str) and split in SPLITS:
        return None
    return Problem("record", f"split is {shown_value(split)}, expected one of {', '.join(SPLITS)}")


def path_problem(key: str, path: Any, folder: str) -> Problem | None:
    """What is wrong with the path of an image, or `None`."""
    if not isinstance(path, str) or not PurePosixPath(path).name:
        return Problem("record", f"{key} is {shown_value(path)}, expected a path below {folder}/")
    if leaves_folder(path):
        return Problem("path", f"{key} {shown_value(path)} leaves the folder {folder}/")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return Problem("record", f"{key} is {shown_value(path)}, which cannot be a file's name")
    return None


def caption_problem(caption: Any, *, name: str = "caption") -> Problem | None:
    """What is wrong with a caption, or `None`."""
    if not isinstance(caption, str) or not caption.strip():
        return Problem("caption", f"{name} is {shown_value(caption)}, expected a sentence")
    try:
        caption.encode()
    except UnicodeEncodeError:
        return Problem(
            "caption", f"{name} is {shown_value(caption)}, which holds half of a character (a lone surrogate)"
        )
    return None


def shown_value(value: Any) -> str:
    """A value as an error message shows it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _id_problem(person_id: Any) -> Problem | None:
    if not isinstance(person_id, int) or isinstance(person_id, bool):
        return Problem("record", f"id is {shown_value(person_id)}, expected an integer")
    if not -(2**63) <= person_id < 2**63:
        return Problem("record", f"id is {shown_value(person_id)}, which does not fit into 64 bits")
    return None


def _captions_problem(captions: Any) -> Problem | None:
    if not isinstance(captions, list) or not captions:
        return Problem("caption", "captions is not a list of sentences, or is empty")
    found = (
        caption_problem(caption, name=f"caption {index}") for index, caption in enumerate(cast("list[Any]", captions))
    )
    return next((problem for problem in found if problem is not None), None)
