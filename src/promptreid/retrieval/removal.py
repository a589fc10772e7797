"""Removes images of a gallery, by name, filter or age, and remembers that they were removed."""

import glob
import math
import operator
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from promptreid.errors import listed
from promptreid.files import file_digest
from promptreid.retrieval.filters import Where, check_where
from promptreid.retrieval.gallery_state import GalleryState
from promptreid.retrieval.table import ImageTable, check_passes, file_stamp
from promptreid.values import fits_int64

Images = int | str | Path | Sequence[int | str | Path]


def is_gone(path: str) -> bool:
    """Whether a file was deleted for certain, and not merely out of reach."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def remove_images(
    store: GalleryState,
    images: Images | None = None,
    *,
    where: Where | None = None,
    older_than: date | timedelta | None = None,
) -> int:
    """Remove images by number, path or pattern, or by filter and age, and with them their features.

    Their paths and the digests of their files are kept, so that a later update does not bring them back.
    """
    check_named(images, where, older_than)
    if where is not None:
        check_where(where)
    with store.turn():
        if images is not None:
            ids = _ids_of(store, images)
        else:
            limit = None if older_than is None else moment_before(older_than)
            tables = [segment.images for segment in store.exact.segments]
            if where is not None and limit is None:
                check_passes(tables, where)
            ids = [number for table in tables for number in _passing(table, where, limit)]
        if ids:
            _take_out(store, store.exact.chosen(ids), is_retention=older_than is not None)
    return len(ids)


def _take_out(store: GalleryState, table: ImageTable, *, is_retention: bool = False) -> None:
    found = (_mark(table, row) for row in range(len(table)))
    # What retention removes is gone from the disk as a rule, and need not be remembered then.
    new = [mark for mark in found if not (is_retention and is_gone(mark["path"]))]
    marks = {mark["path"]: mark for mark in [*store.header.get("removed", []), *new]}
    store.change(removed=table.ids.tolist(), header={"removed": list(marks.values())} if new else None)


def check_named(images: Any, where: Where | None, older_than: date | timedelta | None) -> None:
    """Refuse a removal of nothing, or of what is named in two ways."""
    if images is None and where is None and older_than is None:
        raise TypeError("nothing is named to be removed; give an image's path or number, or where= or older_than=")
    if images is not None and not (where is None and older_than is None):
        raise TypeError("images and where= or older_than= are both given; give one or the other")


def _ids_of(store: GalleryState, images: Images) -> list[int]:
    """The numbers of images that are named; all of them are there, or it is a `KeyError`."""
    by_path: dict[str, int] = {}
    ids: set[int] = set()
    for image in listed_images(images):
        if isinstance(image, str | bytes | os.PathLike):
            image = os.fsdecode(image)
            found = [number for number in store.exact.ids_of([image]) if number >= 0]
            if is_pattern(image) and not found:
                by_path = by_path or store.images.rows_by_path()
                found = [int(store.images.ids[by_path[path]]) for path in matching_paths(by_path, image)]
        else:
            found = store.exact.chosen([image_number(image)]).ids.tolist()
        if not found:
            raise KeyError(
                f"the gallery has no image {str(image)!r}; nothing was removed. Check the path, which gallery.paths "
                "lists; a pattern such as 'crops/cam_a/*' names several images"
            )
        ids.update(found)
    return sorted(ids)


def _passing(table: ImageTable, where: Where | None, limit: float | None) -> list[int]:
    """Numbers of the images that pass a filter and are from before a time in Unix seconds."""
    rows = torch.arange(len(table)) if where is None else table.rows_where(where)
    if limit is not None:
        column = table.columns.by_key.get("time")
        known = [None] * len(table) if column is None else [column[row] for row in range(len(table))]
        times = image_times(known, table.modified_ns.numpy())[rows.numpy()]
        rows = rows[torch.from_numpy(older(times, limit))]
    return table.ids[rows].tolist()


def image_times(known: Sequence[Any], modified_ns: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """When images were made, in Unix seconds: the time among their metadata, else that of their file.

    NaN where it is unknown.

    Raises:
        ValueError: A text is not a time.
    """
    moments: dict[Any, float] = {}
    for value in known:
        if isinstance(value, str | int | float) and value not in moments:
            moments[value] = _moment(value)
    own = [moments.get(value, math.nan) if isinstance(value, str | int | float) else math.nan for value in known]
    times = np.array(own, dtype=np.float64)
    return np.where(np.isnan(times), np.where(modified_ns >= 0, modified_ns / 1e9, np.nan), times)


def _moment(value: str | float) -> float:
    if not isinstance(value, str):
        return float(value)
    try:
        # Python 3.10 does not read the Z of UTC.
        return datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value).timestamp()
    except ValueError:
        raise ValueError(
            f"the time {value!r} among the metadata is not in ISO form, such as 2026-11-27T08:30:00; none was removed"
        ) from None


def older(times: "np.ndarray[Any, Any]", limit: float) -> "np.ndarray[Any, Any]":
    """Which of these times are before a limit, all in Unix seconds.

    Raises:
        ValueError: A time is unknown.
    """
    if unknown := int(np.isnan(times).sum()):
        raise ValueError(
            f"the time of {unknown} images is unknown; give them a time with metadata={{'time': ...}}, or remove "
            "them by path. Nothing was removed"
        )
    return times < limit


def moment_before(older_than: Any) -> float:
    """The moment that a date or an age means, in Unix seconds."""
    if isinstance(older_than, timedelta):
        return (datetime.now(timezone.utc) - older_than).timestamp()
    if isinstance(older_than, datetime):
        return older_than.timestamp()
    if isinstance(older_than, date):
        return datetime(older_than.year, older_than.month, older_than.day).timestamp()
    raise TypeError(f"older_than is {older_than!r}, expected a date, or an age such as timedelta(days=30)")


def restore_images(store: GalleryState, images: Images) -> int:
    """Forget that images were removed, by path or pattern, so that an update takes them in again."""
    with store.turn():
        found = _marked({mark["path"]: None for mark in store.header.get("removed", [])}, images)
        forget(store, found)
    return len(found)


def _marked(marks: Mapping[str, None], images: Images) -> set[str]:
    """The paths of removed images that are named; all of them were removed, or it is a `KeyError`."""
    found: set[str] = set()
    for image in listed_images(images):
        if not isinstance(image, str | bytes | os.PathLike):
            raise TypeError(f"{image!r} is {type(image).__name__}, expected an image's path, or a pattern of paths")
        image = os.fsdecode(image)
        matching = matching_paths(marks, image)
        if not matching:
            known = listed(list(marks), most=20)
            raise KeyError(f"{image!r} was not removed from the gallery; removed were: {known or 'none'}")
        found.update(matching)
    return found


def edit_images(store: GalleryState, remove: Images, restore: Images) -> tuple[list[str], int]:
    """Remove images, and forget the removal of others or of the same; see `Gallery.edit`."""
    with store.turn():
        removed = store.exact.chosen(_ids_of(store, remove))
        marked = [mark["path"] for mark in store.header.get("removed", [])]
        restored = _marked(dict.fromkeys([*marked, *map(os.path.abspath, removed.paths)]), restore)
        if len(removed):
            _take_out(store, removed)
        forget(store, restored)
    return list(removed.paths), len(restored)


def forget(store: GalleryState, paths: Collection[str]) -> None:
    """Forget the removal of those of these absolute paths that were removed."""
    with store.turn():
        marks: list[dict[str, Any]] = store.header.get("removed", [])
        kept = [mark for mark in marks if mark["path"] not in paths]
        if len(kept) < len(marks):
            store.change(header={"removed": kept})


def _mark(table: ImageTable, row: int) -> dict[str, Any]:
    """The mark of a removed image: its path, the file's size and digest if it is still the one encoded, and an id."""
    path, size = os.path.abspath(table.paths[row]), int(table.sizes[row])
    mark = {"path": path, "size": -1, "digest": "", "id": uuid4().hex}  # of this removal, to pass it on to a store once
    try:
        if file_stamp(path) == (size, int(table.modified_ns[row])) and size >= 0:
            return mark | {"size": size, "digest": file_digest(Path(path))}
    except OSError:
        pass
    return mark


def removed_before(store: GalleryState, files: Sequence[str]) -> dict[str, str]:
    """By path as given, the removed image that a file is, or is a copy of."""
    marks: list[dict[str, Any]] = store.header.get("removed", [])
    paths, sizes = {mark["path"] for mark in marks}, {mark["size"] for mark in marks if mark["digest"]}
    by_digest = {mark["digest"]: mark["path"] for mark in marks}

    def removed(path: str) -> str | None:
        full = os.path.abspath(path)
        if full in paths:
            return full
        try:
            return by_digest.get(file_digest(Path(path))) if file_stamp(path)[0] in sizes else None
        except OSError:
            return None

    known = {path: removed(path) for path in files} if marks else {}
    return {path: mark for path, mark in known.items() if mark is not None}


def listed_images(images: Any) -> Sequence[Any]:
    """Several images as given, or the one: bytes are one name, and numpy's and torch's numbers are numbers."""
    if isinstance(images, str | bytes | os.PathLike) or not getattr(images, "ndim", hasattr(images, "__iter__")):
        return [images]
    return images


def image_number(image: Any) -> int:
    """The number by which an image is named; -1, which no image has, for one that does not fit into 64 bits."""
    try:
        number = operator.index(image)
    except TypeError:
        raise TypeError(f"{image!r} is {type(image).__name__}, expected an image's path or number") from None
    return number if number >= 0 and fits_int64(number) else -1


def matching_paths(paths: Collection[str], image: str | os.PathLike[str]) -> list[str]:
    """The absolute paths that a path or a pattern matches; `*` stays in its folder, `**` does not.

    A part by which a folder or image at its place is called means only that: `cam[1]/*` not what is in `cam1`.
    """
    path = os.path.abspath(image)
    if path in paths:
        return [path]
    if not is_pattern(os.fsdecode(image)):
        return []
    pattern = _settled(paths, path.split(os.sep), absolute_pattern(image).split(os.sep))
    depth = pattern.count(os.sep)
    return [path for path in paths if fnmatchcase(path, pattern) and ("**" in pattern or path.count(os.sep) == depth)]


def _settled(paths: Collection[str], names: list[str], parts: list[str]) -> str:
    """A pattern in which the parts that are names are escaped; `names` are its parts as they were given."""
    parts, is_plain = list(parts), True
    for at, (name, part) in enumerate(zip(names, parts, strict=True)):
        if part != name or not is_pattern(part):  # the working folder's are escaped already
            continue
        if _is_folder_or_image(paths, os.sep.join(names[: at + 1])) if is_plain else _is_below(paths, parts[:at], name):
            parts[at] = glob.escape(part)
        else:
            is_plain = False
    return os.sep.join(parts)


def _is_folder_or_image(paths: Collection[str], name: str) -> bool:
    """Whether an absolute path is one of these, above one, or on the disk, though nothing of it may be known."""
    return os.path.lexists(name) or any(
        path.startswith(name) and path[len(name) :][:1] in ("", os.sep) for path in paths
    )


def _is_below(paths: Collection[str], parents: list[str], name: str) -> bool:
    """Whether something in a folder that a pattern matches has this name."""
    pattern, depth = os.sep.join(parents), len(parents)
    for path in paths:
        if os.sep + name in path:
            pieces = path.split(os.sep)
            places = range(len(pieces)) if "**" in pattern else range(depth, min(depth + 1, len(pieces)))
            if any(pieces[at] == name and fnmatchcase(os.sep.join(pieces[:at]), pattern) for at in places):
                return True
    return False


def absolute_pattern(image: str | os.PathLike[str]) -> str:
    """A pattern from the root on; what looks like one in the name of the working folder is taken literally."""
    folder = "" if Path(image).is_absolute() else glob.escape(os.getcwd())  # which may have been deleted
    return os.path.normpath(os.path.join(folder, image))


def is_pattern(path: str) -> bool:
    """Whether a path is a pattern for several."""
    return any(letter in path for letter in "*?[")
