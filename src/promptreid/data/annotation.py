"""Annotations: records that were read from a dataset's files, and everything that is wrong with them."""

import math
import os
import re
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from numbers import Integral
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, cast

from promptreid.data.image_files import ImageLookup, below, leaves_folder
from promptreid.data.problems import LEFT_OUT, Problem, repeated_keys
from promptreid.data.records import (
    SPLITS,
    ImageRecord,
    PublishedCounts,
    count_mismatches,
    split_conflicts,
    split_counts,
)
from promptreid.errors import counted, listed, printable
from promptreid.values import fits_int64, shown

# The splits by the names that other tools and Hugging Face's folders give them.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
MEANT = "did you mean "
SKIP = 'leave such records out with on_bad="skip" (on the command line --on-bad skip)'


@dataclass(frozen=True)
class Annotation:
    """The annotation of a dataset, read but not yet checked as a whole.

    Attributes:
        name: The dataset's usual name.
        path: The annotation file, the first one if there are several; its folder is the dataset's.
        images: The folder that the records' paths begin at.
        records: The well-formed records.
        positions: Of each, its index in the file (line number in CSV and JSONL), or in all files one after another.
        problems: What is wrong with the others.
        num_entries: Records in the file.
        published: The counts to compare it with.
        required: Splits that must not be empty.
        position_name: What a position is: `"record"`, or `"line"` in CSV and JSONL.
        path_key: The field that holds an image's path.
        files: Where there are several annotation files, the position of the first record of each, and the file.
        num_rows: Of each position whose record was made of several entries of the file, how many.
        names: Identity number to name, where the file has names and the reader numbered them.
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
    files: Sequence[tuple[int, Path]] = ()
    num_rows: Mapping[int, int] = field(default_factory=dict[int, int], repr=False)
    names: Mapping[int, str] = field(default_factory=dict[int, str], repr=False)

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
        files: Sequence[tuple[int, Path]] = (),
    ) -> "Annotation":
        """The annotation of entries in their order, each a record or what is wrong with it, as `parse_entry` gives."""
        parsed = list(entries)
        records = [(position, entry) for position, entry in enumerate(parsed) if isinstance(entry, ImageRecord)]
        made = cls(
            name,
            path,
            images,
            [record for _, record in records],
            [position for position, _ in records],
            [],
            len(parsed),
            published=published,
            path_key=path_key,
            files=files,
        )
        problems = [
            problem.located(f"{made.location(position)}:", position)
            for position, entry in enumerate(parsed)
            if not isinstance(entry, ImageRecord)
            for problem in entry
        ]
        return replace(made, problems=problems)

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

    def location(self, position: int) -> str:
        """Where a record is, in words: `FILE, record 7`."""
        files = self.files or [(0, self.path)]
        start, file = files[bisect_right(files, position, key=lambda part: part[0]) - 1]
        return f"{file}, {self.position_name} {position - start}"

    def problem(self, kind: str, what: str, position: int, path: str | None = None) -> Problem:
        """A problem of one record, whose message begins with `FILE, record 7:`."""
        return Problem(kind, what).located(f"{self.location(position)}:", position, path)

    def near(self, position: int) -> str:
        """Where another record is, in words, for a message that names the file already: `record 7`."""
        return self.location(position) if self.files else f"{self.position_name} {position}"

    def unsplit(self) -> set[int]:
        """The positions of the records that name no split."""
        return {position for position, record in self.located_records() if not record.split}

    def splits_known(self) -> bool:
        """Whether it is known what is in the splits: all records name theirs, and persons were divided if wanted."""
        return not self.unsplit() and not any(problem.kind == "split" for problem in self.problems)

    def without(self, positions: Collection[int]) -> "Annotation":
        """The same annotation with the records at some positions left out."""
        kept = [(position, record) for position, record in self.located_records() if position not in positions]
        return replace(self, records=[record for _, record in kept], positions=[position for position, _ in kept])


def leave_out_bad(annotation: Annotation, *, splits_needed: bool = True) -> tuple[Annotation, list[Problem]]:
    """The annotation without the records that have errors themselves, and the errors.

    What is wrong between records (a person in two splits, an image of two persons) is not such an error: nobody knows
    which of them to leave out. To have no split is one, if splits are needed, where others have theirs.
    """
    found = [*annotation.problems, *_image_problems(annotation)]
    left_out = [problem for problem in found if problem.kind in LEFT_OUT]
    unsplit = annotation.unsplit()
    if splits_needed and len(unsplit) < len(annotation.records):
        left_out += [annotation.problem("record", "has no split", position) for position in sorted(unsplit)]
    remaining = annotation.without({problem.position for problem in left_out if problem.position is not None})
    return replace(remaining, problems=[each for each in annotation.problems if each.kind not in LEFT_OUT]), left_out


def divided(annotation: Annotation, shares: tuple[float, float, float], *, seed: int) -> Annotation:
    """The annotation with every person, and so all of their images, put into one split by chance.

    The division depends only on seed and identity, not on the order of the records or a library's generator. Fewer
    persons than a split for each share needs are a problem of the annotation, and its records are in no split then.

    Args:
        annotation: What was read; splits that it has are replaced.
        shares: Percent of the persons for training, validation and test.
        seed: Of the drawing.
    """

    def drawn(person: int) -> str:
        return sha256(f"{seed} {person}".encode()).hexdigest()

    persons = sorted({record.person_id for record in annotation.records}, key=drawn)
    counts = [round(len(persons) * share / 100) for share in shares[1:]]
    counts.insert(0, len(persons) - sum(counts))
    problems = list(annotation.problems)
    if any(share > 0 and count < 1 for share, count in zip(shares, counts, strict=True)):
        what = f"{annotation.path} has {counted(len(persons), 'person')}, too few to divide them "
        wanted = "/".join(f"{share:g}" for share in shares)
        problems.append(Problem("split", f"{what}{wanted}: each split needs one at least"))
        split = dict.fromkeys(persons, "")
    else:
        ends = [counts[0], counts[0] + counts[1]]
        split = {person: SPLITS[bisect_right(ends, rank)] for rank, person in enumerate(persons)}
    records = [replace(record, split=split[record.person_id]) for record in annotation.records]
    return replace(annotation, records=records, problems=problems, published=None)


def warn_left_out(annotation: Annotation, left_out: Sequence[Problem], *, stacklevel: int) -> None:
    """Count and name, in one warning, the records that were left out."""
    if not left_out:
        return
    places = {problem.position for problem in left_out}
    records = sum(1 if place is None else annotation.num_rows.get(place, 1) for place in places)
    first = "; ".join(problem.message for problem in left_out[:10])
    more = f"; and {len(left_out) - 10:,} more" if len(left_out) > 10 else ""
    warnings.warn(
        f"{records:,} of {annotation.num_entries:,} {annotation.position_name}s cannot be used and are left out: "
        f"{first}{more}",
        stacklevel=stacklevel + 1,
    )


def structural_problems(annotation: Annotation) -> Iterator[Problem]:
    """Problems of the well-formed records: images, duplicates, persons in two splits, empty splits, counts."""
    # Persons who could not be divided are a problem already.
    if annotation.unsplit() and not any(problem.kind == "split" for problem in annotation.problems):
        yield _without_split(annotation)
    yield from _image_problems(annotation)
    yield from _repeated_images(annotation)
    yield from _split_problems(annotation)


def _without_split(annotation: Annotation) -> Problem:
    unsplit, splits = sorted(annotation.unsplit()), ", ".join(SPLITS)
    count = f"{len(unsplit):,} of {len(annotation.records):,} images have no split"
    if len(unsplit) < len(annotation.records):
        where = listed([annotation.near(position) for position in unsplit])
        advice = f"Fill their split with one of {splits}, or {SKIP}"
        return Problem("split", f"{annotation.path}: {count} ({where}). {advice}")
    advice = f'Add a column split of {splits}, or let the persons be divided: split="80/10/10" (of promptreid check '
    return Problem("split", f"{annotation.path}: {count}. {advice}and train: --split 80/10/10)")


def _split_problems(annotation: Annotation) -> Iterator[Problem]:
    known, complete = annotation.without(annotation.unsplit()), annotation.splits_known()
    for index, words in split_conflicts(known.records, annotation.required if complete else ()):
        if index is None:
            yield Problem("split", f"{annotation.path}: {words}")
        else:
            yield annotation.problem("split", words, known.positions[index])
    if annotation.published is not None and complete:
        for sentence in count_mismatches(split_counts(annotation.records), annotation.published):
            yield Problem("counts", f"{annotation.path}: {sentence}")


def in_two_splits(first: ImageRecord, second: ImageRecord) -> bool:
    """Whether two records name different splits; one that names none may be of either."""
    return first.split != second.split and bool(first.split and second.split)


def _image_problems(annotation: Annotation) -> Iterator[Problem]:
    folder = ImageLookup(annotation.images)
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
    """Advice for missing images whose paths are written as on Windows; empty if there are none."""
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
        kind, what = "conflict", f"image {path!r} is in {annotation.near(before)} already"
        if earlier.person_id != record.person_id:
            what += f", as person {earlier.person_id} and here as {record.person_id}"
        elif in_two_splits(earlier, record):
            what += f", in split {earlier.split} and here in {record.split}"
        elif earlier.camera and record.camera and earlier.camera != record.camera:
            what += f", {two_cameras(earlier.camera, record.camera)}"
        else:
            kind = "duplicate"
        yield annotation.problem(kind, what, position, path)


def two_cameras(first: str, second: str) -> str:
    """What is said of an image that is given to two cameras."""
    return f"from camera {shown_value(first)} and here from {shown_value(second)}"


def parse_entry(
    entry: Any, images: Path, *, image_key: str = "file_path", read_split: bool = True
) -> ImageRecord | list[Problem]:
    """One entry of a JSON annotation as a record, or everything that is wrong with it.

    Args:
        entry: An object with the keys `split`, `captions`, `id` and `image_key`, and perhaps `camera`.
        images: The folder that its path begins at.
        image_key: The key of the path.
        read_split: Whether its split is read; else the record has none.
    """
    keys = (*(("split",) if read_split else ()), "captions", image_key, "id")
    if not isinstance(entry, dict):
        return [Problem("record", f"is {type(entry).__name__}, expected an object with {', '.join(keys)}")]
    fields = cast("dict[str, Any]", entry)
    if repeated := repeated_keys(fields, keys):
        return repeated
    missing = [key for key in keys if key not in fields]
    problems = [Problem("record", f"has no {', '.join(missing)}")] if missing else []
    checks = {
        "split": split_problem,
        "id": _id_problem,
        image_key: lambda path: path_problem(image_key, path, images),
        "captions": _captions_problem,
    }
    for key, check in checks.items():
        if key in keys and key in fields and (problem := check(fields[key])) is not None:
            problems.append(problem)
    problems += camera_problems(fields.get("camera"))
    if problems:
        return problems
    return ImageRecord(
        images / fields[image_key],
        int(as_integer(fields["id"])),
        tuple(fields["captions"]),
        fields["split"] if read_split else "",
        camera_name(fields.get("camera")),
    )


def camera_problems(camera: Any) -> list[Problem]:
    """The error in the name of a camera; text, a whole number (also `1.0`) or nothing (also NaN) are valid."""
    plain = plain_camera(camera)
    right = plain is None or (not isinstance(plain, bool) and isinstance(plain, str | Integral))
    return [] if right else [Problem("record", f"camera is {shown_value(camera)}, expected a name or a whole number")]


def camera_name(camera: str | float | None) -> str | None:
    """The name of a camera as text; `None` where it is not known, as in an empty cell of a table."""
    plain = plain_camera(camera)
    if plain is None:
        return None
    return plain.strip() or None if isinstance(plain, str) else str(int(plain))


def plain_camera(camera: Any) -> Any:
    """A camera without what pandas makes of integers with gaps: 1 for `1.0`, `None` for NaN."""
    if not isinstance(camera, float):
        return camera
    return None if math.isnan(camera) else as_integer(camera)


def split_problem(split: Any) -> Problem | None:
    """The error in the name of a split, or `None`."""
    if isinstance(split, str) and split in SPLITS:
        return None
    meant = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
    advice = f'; {MEANT}"{meant}"? Write that instead' if meant else ""
    return Problem("record", f"split is {shown_value(split)}, expected one of {', '.join(SPLITS)}{advice}")


def path_problem(key: str, path: Any, folder: Path) -> Problem | None:
    """The error in the path of an image, which begins at a folder, or `None`."""
    if not isinstance(path, str) or not PurePosixPath(path).name:
        return Problem("record", f"{key} is {shown_value(path)}, expected a path below {folder.name}/")
    if leaves_folder(path):
        inside, what = below(folder, path), f"{key} {shown_value(path)}"
        if inside is not None:
            climbs = ".." in PurePath(path).parts
            wrong = "has .. in it" if climbs else f"is not relative to the folder {folder.name}/"
            return Problem("path", f"{what} {wrong}; write {shown_value(inside)}")
        return Problem(
            "path", f"{what} leaves the folder {folder.name}/; copy the image there, and give its path below"
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return Problem("record", f"{key} is {shown_value(path)}, which cannot be a file's name")
    return None


def caption_problem(caption: Any, *, name: str = "caption") -> Problem | None:
    """The error in a caption, or `None`."""
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
    """A value of a record as an error shows it: paths and sentences are longer than settings."""
    return shown(value, longest=200)


def as_integer(value: Any) -> Any:
    """A whole number that is written as text or with a decimal point, as an integer: 7 for `"007"`, `7.0` and `"7.0"`.

    Anything else is returned as it is.

    Example:
        >>> as_integer("007"), as_integer(7.0), as_integer("seven")
        (7, 7, 'seven')
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    number = re.fullmatch(r"([+-]?\d{1,18})(?:\.0*)?", value.strip()) if isinstance(value, str) else None
    return int(number[1]) if number else value


def id_remark(entries: Iterable[Any], place: Callable[[int], str]) -> Iterator[Problem]:
    """One remark that counts ids that are not integers in the file but are read as such."""
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    odd = [index for index, value in enumerate(ids) if type(as_integer(value)) is int and type(value) is not int]
    if odd:
        kinds = Counter("text" if isinstance(ids[index], str) else "decimals" for index in odd)
        written = " and ".join(f"{count:,} are written as {kind}" for kind, count in kinds.items())
        first = f"{shown_value(ids[odd[0]])} in {place(odd[0])}"
        yield Problem("id", f"{written}, such as {first}; they are read as whole numbers")


def _id_problem(person_id: Any) -> Problem | None:
    number = as_integer(person_id)
    if isinstance(number, bool) or not isinstance(number, Integral):
        return Problem("record", f"id is {shown_value(person_id)}, expected an integer")
    if not fits_int64(int(number)):
        return Problem("record", f"id is {shown_value(person_id)}, which does not fit into 64 bits")
    return None


def _captions_problem(captions: Any) -> Problem | None:
    if not isinstance(captions, list) or not captions:
        return Problem("caption", "captions is not a list of sentences, or is empty")
    found = (
        caption_problem(caption, name=f"caption {index}") for index, caption in enumerate(cast("list[Any]", captions))
    )
    return next((problem for problem in found if problem is not None), None)
