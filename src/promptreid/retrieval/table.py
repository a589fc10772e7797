"""What a gallery knows of its images besides their features."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

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
        """Rows whose metadata match, or `None` for all.

        Args:
            where: Values by key, where a list, tuple or set means any of its values; or a function of the metadata.

        Raises:
            ValueError: No image has a key that is asked for.
        """
        if where is None:
            return None
        if isinstance(where, Mapping):
            known: set[str] = set().union(*(entry.keys() for entry in self.metadata))
            if unknown := sorted(set(where) - known):
                raise ValueError(
                    f"no image of the gallery has {', '.join(unknown)}; known are: {', '.join(sorted(known)) or 'none'}"
                )
        matches = matcher(where)
        return torch.tensor([row for row, entry in enumerate(self.metadata) if matches(entry)], dtype=torch.int64)


def matcher(where: Where) -> Callable[[Metadata], bool]:
    """A filter as a function of an image's metadata.

    Example:
        >>> matcher({"folder": ["cam_a", "cam_b"]})({"folder": "cam_b"})
        True
    """
    if not isinstance(where, Mapping):
        return where
    wanted = {
        key: value if isinstance(value, list | tuple | set | frozenset) else (value,) for key, value in where.items()
    }
    return lambda known: all(key in known and known[key] in values for key, values in wanted.items())


def file_stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; -1 and -1 if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns
