"""What a gallery knows of its images besides their features."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Metadata = Mapping[str, Any]
Where = Mapping[str, Any] | Callable[[Metadata], bool]


@dataclass(frozen=True)
class Hit:
    """One image found.

    Attributes:
        path: The image.
        score: Cosine similarity to the query, in [-1, 1].
        index: Its present position in the gallery.
        id: The gallery's number for it, which never changes and is never given to another image.
        metadata: What the gallery knows of it, such as its folder.
    """

    path: Path
    score: float
    index: int
    id: int = -1
    metadata: Metadata = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class ImageTable:
    """One row an image; rows are only ever added to or selected from a new table, so readers may keep the old one.

    Attributes:
        paths: The files.
        ids: (G,) int64, each image's number.
        sizes: (G,) int64, bytes of the file when it was encoded; -1 if unknown.
        modified_ns: (G,) int64, when the file was last changed, in nanoseconds; -1 if unknown.
        metadata: What is known of each.
    """

    paths: Sequence[str]
    ids: Tensor
    sizes: Tensor
    modified_ns: Tensor
    metadata: Sequence[Metadata]

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def of(cls, paths: Sequence[str], *, first_id: int, metadata: Sequence[Metadata] | None = None) -> "ImageTable":
        """A table of files as they are on disk now, numbered from `first_id`."""
        stamps = [file_stamp(path) for path in paths]
        sizes = torch.tensor([size for size, _ in stamps], dtype=torch.int64)
        modified = torch.tensor([when for _, when in stamps], dtype=torch.int64)
        ids = torch.arange(first_id, first_id + len(paths))
        known = [{} for _ in paths] if metadata is None else list(metadata)
        return cls(list(paths), ids, sizes, modified, known)

    def hit(self, row: int, score: float) -> Hit:
        """The image of a row, found with a score."""
        return Hit(Path(self.paths[row]), score, row, int(self.ids[row]), self.metadata[row])

    def select(self, rows: Sequence[int]) -> "ImageTable":
        """The table of some rows."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        return ImageTable(
            [self.paths[row] for row in rows],
            self.ids[chosen],
            self.sizes[chosen],
            self.modified_ns[chosen],
            [self.metadata[row] for row in rows],
        )

    def joined(self, other: "ImageTable") -> "ImageTable":
        """This table and another below it."""
        return ImageTable(
            [*self.paths, *other.paths],
            torch.cat([self.ids, other.ids]),
            torch.cat([self.sizes, other.sizes]),
            torch.cat([self.modified_ns, other.modified_ns]),
            [*self.metadata, *other.metadata],
        )

    def rows_by_path(self) -> dict[str, int]:
        """The row of each image by its absolute path."""
        return {os.path.abspath(path): row for row, path in enumerate(self.paths)}

    def rows_of(self, ids: Iterable[int]) -> list[int]:
        """The row of each number; -1 where no image has it."""
        wanted = torch.tensor(list(ids), dtype=torch.int64)
        if len(self) == 0:
            return [-1] * len(wanted)
        ordered, rows = self._by_id
        positions = torch.searchsorted(ordered, wanted).clamp(max=len(self) - 1)
        return torch.where(ordered[positions] == wanted, rows[positions], -1).tolist()

    @cached_property
    def _by_id(self) -> tuple[Tensor, Tensor]:
        ordered, rows = self.ids.sort()
        return ordered, rows

    def rows_where(self, where: Where | None) -> Tensor | None:
        """Rows whose metadata match (`matcher`), or `None` for all."""
        if where is None:
            return None
        matches = matcher(where)
        return torch.tensor([row for row, entry in enumerate(self.metadata) if matches(entry)], dtype=torch.int64)


def matcher(where: Where) -> Callable[[Metadata], bool]:
    """A filter as a function of an image's metadata.

    Args:
        where: Values by key, where a list, tuple or set means any of its values, and a function is asked about the
            value; or a function of all metadata.

    Example:
        >>> matcher({"folder": ["cam_a", "cam_b"]})({"folder": "cam_b"})
        True
    """
    if not isinstance(where, Mapping):
        return where
    asked = {key: value if callable(value) else _is_among(_values(value)) for key, value in where.items()}
    return lambda known: all(key in known and asks(known[key]) for key, asks in asked.items())


def _is_among(values: list[Any]) -> Callable[[Any], bool]:
    try:
        hashed = frozenset(values)
    except TypeError:  # a list or a dictionary
        return values.__contains__
    return lambda value: value.__hash__ is not None and value in hashed


def _values(value: Any) -> list[Any]:
    """The values of which a filter wants any, as metadata hold them."""
    values = plain(value, "where")
    return values if isinstance(values, list) else [values]


def check_passes(metadata: Sequence[Metadata], where: Where) -> None:
    """Refuse a filter that nothing passes, which is not the same as a search without a good match.

    Raises:
        ValueError: Nothing passes; names what is unknown, and what is known.
    """
    matches = matcher(where)
    if any(matches(known) for known in metadata):
        return
    for key, value in where.items() if isinstance(where, Mapping) else ():
        known = list(dict.fromkeys(str(entry[key]) for entry in metadata if key in entry))
        if not known:
            keys = sorted(set().union(*metadata))
            raise ValueError(f"no image of the gallery has {key}; known are: {', '.join(keys) or 'none'}")
        if not callable(value) and not any(matcher({key: value})(entry) for entry in metadata):
            wanted = " or ".join(dict.fromkeys(map(str, _values(value))))
            raise ValueError(f"no image of the gallery has {key} {wanted}; known are: {_some(known)}")
    raise ValueError("no image of the gallery passes the filter; it was not searched")


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plain_metadata(metadata: Any, what: str) -> Metadata:
    """Metadata of one image as JSON holds them.

    Raises:
        TypeError: They are no dictionary, or hold what JSON does not take.
        ValueError: A number is NaN or infinite.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"{what} is {metadata!r}, expected a dictionary, such as {{'camera': 3}}")
    return plain(metadata, what)


def plain(value: Any, what: str) -> Any:
    """A value as JSON holds it: numpy's and torch's values, dates, times, paths, tuples and sets become plain ones.

    Args:
        value: Metadata, or one value.
        what: Its name, for errors.

    Raises:
        TypeError: It is of a kind that JSON does not take, such as bytes, or a key is not text.
        ValueError: It is NaN or infinite.
    """
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{what} has the key {odd[0]!r}, expected text")
        return {key: plain(entry, f"{what}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry, what) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} is {value}, which JSON does not have; leave it out, or give None")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{what} is {type(value).__name__}, expected text, numbers, lists or dictionaries, as JSON has them"
    )


def file_stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; -1 and -1 if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns
