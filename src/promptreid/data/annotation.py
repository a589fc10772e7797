"""Reads annotation files into records, and says of every record that is malformed what is wrong with it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from promptreid.data.faults import Problem
from promptreid.data.images import leaves_folder
from promptreid.data.records import SPLITS, ImageRecord, PublishedCounts


@dataclass(frozen=True)
class Fault:
    """What is wrong with one field of a record; `kind` is one of `problems.KINDS`."""

    kind: str
    what: str


@dataclass(frozen=True)
class Annotation:
    """An annotation file that has been read.

    Attributes:
        name: The data set's usual name.
        root: Its folder.
        path: The annotation file.
        images: The folder that the records' paths begin at.
        records: The well-formed records.
        places: Of each, its index in the file (line number in CSV and JSONL).
        problems: What is wrong with the others.
        num_entries: Records in the file.
        published: The counts to hold it against.
        required: Splits that must not be empty.
        place_name: What a place is: `"record"`, or `"line"` in CSV and JSONL.
        path_key: The field that holds an image's path.
    """

    name: str
    root: Path
    path: Path
    images: Path
    records: Sequence[ImageRecord] = field(repr=False)
    places: Sequence[int] = field(repr=False)
    problems: Sequence[Problem] = field(repr=False)
    num_entries: int
    published: PublishedCounts | None
    required: Sequence[str] = ("train", "test")
    place_name: str = "record"
    path_key: str = "file_path"

    def relative(self, record: ImageRecord) -> PurePosixPath:
        """A record's path below the image folder."""
        return PurePosixPath(record.path.relative_to(self.images).as_posix())

    def where(self, place: int) -> str:
        """`FILE, record 7`, as error messages begin."""
        return f"{self.path}, {self.place_name} {place}"


def parse_entry(entry: Any, images: Path, *, image_key: str) -> ImageRecord | list[Fault]:
    """One entry of a benchmark's JSON list as a record, or everything that is wrong with it."""
    keys = ("split", "captions", image_key, "id")
    if not isinstance(entry, dict):
        return [Fault("record", f"is {type(entry).__name__}, expected an object with {', '.join(keys)}")]
    fields = cast("dict[str, Any]", entry)
    faults: list[Fault] = []
    missing = [key for key in keys if key not in fields]
    if missing:
        faults.append(Fault("record", f"has no {', '.join(missing)}"))
    checks: tuple[tuple[str, Callable[[Any], Fault | None]], ...] = (
        ("split", split_fault),
        ("id", id_fault),
        (image_key, lambda path: path_fault(image_key, path, images.name)),
        ("captions", _captions_fault),
    )
    faults += [fault for key, check in checks if key in fields and (fault := check(fields[key])) is not None]
    if faults:
        return faults
    return ImageRecord(images / fields[image_key], fields["id"], tuple(fields["captions"]), fields["split"])


def split_fault(split: Any) -> Fault | None:
    """What is wrong with the name of a split, or `None`."""
    if isinstance(split, str) and split in SPLITS:
        return None
    return Fault("record", f"split is {shown_value(split)}, expected one of {', '.join(SPLITS)}")


def id_fault(person_id: Any) -> Fault | None:
    """What is wrong with an identity's number, or `None`."""
    if not isinstance(person_id, int) or isinstance(person_id, bool):
        return Fault("record", f"id is {shown_value(person_id)}, expected an integer")
    if not -(2**63) <= person_id < 2**63:
        return Fault("record", f"id is {shown_value(person_id)}, which does not fit into 64 bits")
    return None


def path_fault(key: str, path: Any, folder: str) -> Fault | None:
    """What is wrong with the path of an image, or `None`."""
    if not isinstance(path, str) or not PurePosixPath(path).name:
        return Fault("record", f"{key} is {shown_value(path)}, expected a path below {folder}/")
    if leaves_folder(path):
        return Fault("path", f"{key} {shown_value(path)} leaves the folder {folder}/")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return Fault("record", f"{key} is {shown_value(path)}, which cannot be a file's name")
    return None


def caption_fault(caption: Any) -> str | None:
    """What is wrong with a caption, or `None`."""
    if not isinstance(caption, str) or not caption.strip():
        return f"is {shown_value(caption)}, expected a sentence"
    try:
        caption.encode()
    except UnicodeEncodeError:
        return f"is {shown_value(caption)}, which holds half of a character (a lone surrogate)"
    return None


def shown_value(value: Any) -> str:
    """A value as an error message shows it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _captions_fault(captions: Any) -> Fault | None:
    if not isinstance(captions, list) or not captions:
        return Fault("caption", "captions is not a list of sentences, or is empty")
    for place, caption in enumerate(cast("list[Any]", captions)):
        what = caption_fault(caption)
        if what is not None:
            return Fault("caption", f"caption {place} {what}")
    return None
