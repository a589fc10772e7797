"""The images of a gallery without their features: paths, numbers and metadata."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptreid.errors import listed
from promptreid.files import portable
from promptreid.retrieval.columns import Arrays, Columns, Ints, Texts
from promptreid.retrieval.filters import AnyOf, Between, Metadata, Prefix, Where, check_where, conditions


@dataclass(frozen=True)
class Hit:
    """One image found.

    Attributes:
        path: The image.
        score: Cosine similarity to the query, in [-1, 1].
        index: Its present position in the gallery.
        id: The gallery's number for it, which never changes and is never given to another image.
        metadata: What the gallery knows of it, such as its folder.
        key: The path as the gallery holds it, or the key that was given in its place; `s3://bucket/1.jpg` is whole here
            and loses a slash in `path`.
    """

    path: Path
    score: float
    index: int
    id: int = -1
    metadata: Metadata = field(default_factory=dict[str, Any])
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", str(self.path))

    @property
    def address(self) -> str | None:
        """The key where it is an address, which people are shown in place of the path; `None` for a file.

        Example:
            >>> Hit(Path("s3://bucket/1.jpg"), 0.5, 0, key="s3://bucket/1.jpg").address
            's3://bucket/1.jpg'
        """
        return self.key if "://" in self.key else None

    def as_dict(self) -> dict[str, Any]:
        """Path or key, score, number and metadata, as JSON holds them; without the position, which changes.

        Example:
            >>> Hit(Path("crops/1.jpg"), 0.5, 0, id=7, metadata={"camera": 3}).as_dict()
            {'path': 'crops/1.jpg', 'score': 0.5, 'id': 7, 'metadata': {'camera': 3}}
        """
        return {"path": self.key, "score": self.score, "id": self.id, "metadata": dict(self.metadata)}


@dataclass(frozen=True, eq=False)
class ImageTable:
    """One row an image; rows are only ever added to or selected from a new table, so readers may keep the old one.

    Attributes:
        paths: The files, or the keys of images that never were files.
        ids: (G,) int64, each image's number.
        sizes: (G,) int64, bytes of the file when it was encoded; -1 if it is not a file.
        modified_ns: (G,) int64, when the file was last changed, or for a key when it was added, in nanoseconds; -1 if
            unknown.
        metadata: What is known of each.
        path_hashes: (G,) int64, of the paths; made if it is not given.
    """

    paths: Sequence[str]
    ids: Tensor
    sizes: Tensor
    modified_ns: Tensor
    metadata: Sequence[Metadata]
    path_hashes: Ints = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", Texts.of(self.paths))
        object.__setattr__(self, "metadata", Columns.of(self.metadata))
        if self.path_hashes is None:  # pyright: ignore[reportUnnecessaryComparison]
            hashes = np.fromiter((path_hash(path) for path in self.paths), np.int64, len(self.paths))
            object.__setattr__(self, "path_hashes", hashes)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def columns(self) -> Columns:
        """The metadata by key."""
        return Columns.of(self.metadata)

    @classmethod
    def of(cls, paths: Sequence[str], *, first_id: int = 0, metadata: Sequence[Metadata] | None = None) -> "ImageTable":
        """A table of files as they are on disk now, numbered from `first_id`."""
        stamps = [file_stamp(path) for path in paths]
        return cls._of(paths, first_id, metadata, [size for size, _ in stamps], [when for _, when in stamps])

    @classmethod
    def of_keys(cls, keys: Sequence[str], *, metadata: Sequence[Metadata] | None = None) -> "ImageTable":
        """A table of images that are not files, added now."""
        return cls._of(keys, 0, metadata, [-1] * len(keys), [time.time_ns()] * len(keys))

    @classmethod
    def _of(
        cls,
        paths: Sequence[str],
        first_id: int,
        metadata: Sequence[Metadata] | None,
        sizes: list[int],
        modified: list[int],
    ) -> "ImageTable":
        return cls(
            [portable(path) for path in paths],
            torch.arange(first_id, first_id + len(paths)),
            torch.tensor(sizes, dtype=torch.int64),
            torch.tensor(modified, dtype=torch.int64),
            Columns(len(paths), {}) if metadata is None else metadata,
        )

    def hit(self, row: int, score: float, *, index: int | None = None) -> Hit:
        """The image of a row, found with a score; `index` is its position in the gallery, if that is not the row."""
        key, number = self.paths[row], int(self.ids[row])
        return Hit(Path(key), score, row if index is None else index, number, self.metadata[row], key)

    def select(self, rows: Sequence[int]) -> "ImageTable":
        """The table of some rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        picked = torch.from_numpy(chosen)
        return ImageTable(
            Texts.of(self.paths).select(chosen),
            self.ids[picked],
            self.sizes[picked],
            self.modified_ns[picked],
            self.columns.select(chosen),
            self.path_hashes[chosen],
        )

    @classmethod
    def joined(cls, tables: Sequence["ImageTable"]) -> "ImageTable":
        """The tables one below the other."""
        if len(tables) == 1:
            return tables[0]
        if not tables:
            return cls.of([], first_id=0)
        return cls(
            Texts.joined([Texts.of(table.paths) for table in tables]),
            torch.cat([table.ids for table in tables]),
            torch.cat([table.sizes for table in tables]),
            torch.cat([table.modified_ns for table in tables]),
            Columns.joined([table.columns for table in tables]),
            np.concatenate([table.path_hashes for table in tables]),
        )

    def with_full_paths(self) -> "ImageTable":
        """The same images, their files named as they are from every working folder; keys of no file stay."""
        files = zip(self.paths, self.sizes.tolist(), strict=True)
        full = [portable(os.path.abspath(path)) if size >= 0 else path for path, size in files]
        if full == list(self.paths):
            return self
        return ImageTable(full, self.ids, self.sizes, self.modified_ns, self.metadata)

    def rows_by_path(self) -> dict[str, int]:
        """The row of each image by its absolute path."""
        return {os.path.abspath(path): row for row, path in enumerate(self.paths)}

    def rows_of_paths(self, paths: Sequence[str], forms: "PathForms | None" = None) -> list[int]:
        """The row of each path, absolute or relative to the working folder; -1 where no image has it.

        Args:
            paths: The paths.
            forms: Their `path_forms`, for one who asks several tables.
        """
        owners, wanted = path_forms(paths) if forms is None else forms
        found = [-1] * len(paths)
        hashes, order = self.path_hashes, self.path_order
        if not len(hashes):
            return found
        begins = np.searchsorted(hashes, wanted, sorter=order)
        matching: list[int] = (hashes[order[np.minimum(begins, len(order) - 1)]] == wanted).nonzero()[0].tolist()
        for form in matching:
            owner = owners[form]
            path = os.path.abspath(paths[owner])
            end = np.searchsorted(hashes, wanted[form], side="right", sorter=order)
            rows: list[int] = order[begins[form] : end].tolist()
            for row in rows:
                if not 0 <= found[owner] <= row and os.path.abspath(self.paths[row]) == path:
                    found[owner] = row
        return found

    @cached_property
    def path_order(self) -> Ints:
        """The rows in the order of their paths' hashes."""
        return np.argsort(self.path_hashes, kind="stable")

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

    def rows_where(self, where: Where) -> Tensor:
        """Rows whose metadata match (`matcher`), in their order."""
        return torch.from_numpy(self.columns.mask(where)).nonzero().flatten()

    def arrays(self) -> Arrays:
        """The arrays for `from_arrays`."""
        return {
            **{f"paths.{name}": array for name, array in Texts.of(self.paths).arrays().items()},
            "ids": self.ids.numpy(),
            "sizes": self.sizes.numpy(),
            "modified_ns": self.modified_ns.numpy(),
            "path_hashes": self.path_hashes,
            "path_order": self.path_order,
            **self.columns.arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "ImageTable":
        """A table of arrays that were stored.

        Raises:
            ValueError: They do not fit each other, or are of other kinds.
            KeyError: An array is missing.
        """
        paths = Texts.from_arrays({name: arrays[f"paths.{name}"] for name in ("bytes", "ends")})
        numbers = [arrays[name] for name in ("ids", "sizes", "modified_ns", "path_hashes", "path_order")]
        if any(one.dtype != np.int64 or one.shape != (len(paths),) for one in numbers):
            raise ValueError("its columns are not one number per image")
        order = numbers[-1]
        if len(order) and not 0 <= order.min() <= order.max() < len(paths):
            raise ValueError("its order of paths is damaged")
        ids, sizes, modified = (torch.from_numpy(one) for one in numbers[:3])
        table = cls(paths, ids, sizes, modified, Columns.from_arrays(len(paths), arrays), numbers[3])
        table.__dict__["path_order"] = order
        return table


PathForms = tuple[list[int], Ints]


def path_forms(paths: Sequence[str]) -> PathForms:
    """The hashes of all ways in which a gallery may have written paths down, and which path each belongs to.

    They are in the order of the hashes, in which they are looked up faster.
    """
    owners: list[int] = []
    hashes: list[int] = []
    for owner, path in enumerate(paths):
        forms = dict.fromkeys([path, os.path.abspath(path)])
        with suppress(ValueError, OSError):  # another drive; no working folder
            forms[os.path.relpath(path)] = None
        owners += [owner] * len(forms)
        hashes += map(path_hash, forms)
    unordered = np.array(hashes, dtype=np.int64)
    order = np.argsort(unordered)
    return [owners[form] for form in order.tolist()], unordered[order]


def path_hash(path: str) -> int:
    """A number that a path, however it is written, has for itself, 64 bits with a sign."""
    normal = portable(os.path.normpath(path)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(normal, digest_size=8).digest(), "little", signed=True)


def check_passes(tables: Sequence[ImageTable], where: Where) -> None:
    """Refuse a filter that nothing passes, which is not the same as a search without a good match.

    Raises:
        ValueError: Nothing passes; names what is unknown, and what is known.
        TypeError: It is no filter.
    """
    check_where(where)
    if any(table.columns.mask(where).any() for table in tables):
        return
    for key, some in conditions(where).items() if isinstance(where, Mapping) else ():
        columns = [table.columns.by_key[key] for table in tables if key in table.columns.by_key]
        if not columns:
            keys = sorted({known for table in tables for known in table.columns.by_key})
            raise ValueError(f"no image of the gallery has {key}; known are: {', '.join(keys) or 'none'}")
        if any(column.mask(condition).any() for column in columns for condition in some):
            continue
        if all(isinstance(condition, AnyOf | Between | Prefix) for condition in some):
            wanted = " or ".join(dict.fromkeys(text for condition in some for text in _words(condition)))
            known = list(dict.fromkeys(map(str, known_values(tables, key))))
            wanted = wanted or "one of no values, as the list is empty"
            raise ValueError(f"no image of the gallery has {key} {wanted}; known are: {listed(known, most=20)}")
    raise ValueError(f"{_why_none_passes(tables, where)}; the gallery was not searched")


def _why_none_passes(tables: Sequence[ImageTable], where: Where) -> str:
    """The reason why no image passes a filter whose keys and values are all known."""
    if not isinstance(where, Mapping):
        keys = sorted({known for table in tables for known in table.columns.by_key})
        return f"the filter's function is true for no image; the metadata have the keys {', '.join(keys) or 'none'}"
    for key, some in conditions(where).items():
        columns = [table.columns.by_key[key] for table in tables if key in table.columns.by_key]
        if not any(column.mask(condition).any() for column in columns for condition in some):
            known = listed(list(map(str, known_values(tables, key))), most=20)
            return f"the function for {key} is true for no image; known are: {known}"
    return f"each condition matches some images, but no image matches all of them ({', '.join(where)}); drop one"


def known_values(tables: Sequence[ImageTable], key: str) -> list[Any]:
    """The different values that images have for a key, in the order in which they come first."""
    columns = [table.columns.by_key[key] for table in tables if key in table.columns.by_key]
    found = {(type(value), str(value)): value for column in reversed(columns) for value in reversed(column.distinct())}
    return list(reversed(found.values()))


def _words(condition: Any) -> list[str]:
    """The values that a condition asks for, in words; nothing for a function."""
    if isinstance(condition, AnyOf):
        return list(dict.fromkeys("''" if value == "" else str(value) for value in condition.values))
    return [str(condition)] if isinstance(condition, Between | Prefix) else []


def file_stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; -1 and -1 if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns
