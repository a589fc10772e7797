"""Adds, updates and removes images of a gallery."""

import operator
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from promptreid.data.images import IMAGE_ENDINGS, list_images
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.errors import DatasetError
from promptreid.files import file_digest
from promptreid.model.encoding import EncodedImages, EncodingOptions, encode_images
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.gallery_files import GalleryStore
from promptreid.retrieval.table import ImageTable, Metadata, file_stamp, plain_metadata

if TYPE_CHECKING:
    from typing_extensions import Unpack

ImageSource = str | Path | ReIDSplit | Iterable[str | Path | ImageRecord]

# Between two writes of a long run at least this long, and at least this many times as long as the last write took.
_WRITE_EVERY_SECONDS = 60.0
_WRITE_SHARE = 20.0

# More than this share of a gallery is not pruned unasked.
_PRUNED_SHARE = 4

Prune = bool | Literal["anyway"]
Images = int | str | Path | Sequence[int | str | Path]


@dataclass(frozen=True)
class ImageFile:
    """An image to put into a gallery, and what is known of it."""

    path: str
    metadata: Metadata


def find_images(
    images: ImageSource, *, metadata: Sequence[Metadata] | None = None, closed: list[str] | None = None
) -> list[ImageFile]:
    """Find the images of a folder with its sub-folders, a split, a list of records or of files.

    An image from a folder knows its sub-folder (`"folder"`), one from a record its person and split; `metadata` is what
    else is known of each, only with a list. `closed` gets the sub-folders that cannot be read.
    """
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of images, whose order is known; a folder was given")
        return _list_folder(Path(images), closed)
    entries = list(images.records) if isinstance(images, ReIDSplit) else list(images)
    if not entries:
        raise DatasetError("the list of images is empty; give at least one path")
    known = [{}] * len(entries) if metadata is None else list(metadata)
    if len(known) != len(entries):
        raise ValueError(f"{len(entries)} images but metadata for {len(known)}; give one entry per image")
    return [_image_file(entry, more) for entry, more in zip(entries, known, strict=True)]


def _image_file(entry: Any, more: Metadata) -> ImageFile:
    if isinstance(entry, ImageRecord):
        entry, more = (
            entry.path,
            {"person_id": entry.person_id, "split": entry.split, **plain_metadata(more, f"metadata of {entry.path}")},
        )
    if isinstance(entry, str | Path):
        return ImageFile(str(entry), plain_metadata(more, f"metadata of {entry}"))
    raise TypeError(f"images holds {type(entry).__name__}, expected paths or ImageRecord")


def _list_folder(folder: Path, closed: list[str] | None) -> list[ImageFile]:
    if folder.is_file():
        raise DatasetError(f"{folder} is a file; give its folder, or a list of files: [{str(folder)!r}]")
    paths = list_images(folder, unreadable=closed)
    if not paths:
        raise DatasetError(f"{folder} has no images ({', '.join(IMAGE_ENDINGS)}) in it or below")
    return [ImageFile(str(path), {"folder": path.parent.relative_to(folder).as_posix()}) for path in paths]


@dataclass(frozen=True)
class Changes:
    """What became of the images given.

    Attributes:
        added: New in the gallery.
        changed: Encoded again because their file had changed.
        unchanged: Left as they were.
        removed: No longer in the gallery, because of `prune`, or because what their file is now cannot be read.
        unreadable: Left out because they cannot be read.
        excluded: Left out because they were removed from the gallery earlier.
        gone: Still in the gallery, and no longer on the disk; `prune` removes them.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    unreadable: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def add_images(
    store: GalleryStore,
    model: PromptedCLIP,
    files: Sequence[ImageFile],
    *,
    named: bool = False,
    **options: "Unpack[EncodingOptions]",
) -> Changes:
    """Encode images that the gallery does not have yet; refuses what it has, and what is given twice.

    Images that were removed earlier come back if they are `named` one by one.
    """
    known = store.images.rows_by_path()
    given = Counter(os.path.abspath(file.path) for file in files)
    present = [file.path for file in files if os.path.abspath(file.path) in known]
    if present:
        raise ValueError(
            f"{len(present)} of {len(files)} images are in the gallery already, such as {present[0]}; "
            "update() encodes only what is new or has changed"
        )
    path, times = given.most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path} is given twice; give each image once")
    excluded = _removed_before(store, files)
    if named and excluded:
        _forget(store, set(excluded.values()))
        excluded = {}
    new = [file for file in files if file.path not in excluded]
    unreadable = _encode(store, model, new, **options)
    if new and len(unreadable) == len(new):
        raise DatasetError(f"none of the {len(new)} images can be read; first: {', '.join(unreadable[:10])}")
    return Changes(added=len(new) - len(unreadable), unreadable=unreadable, excluded=tuple(excluded))


def update_images(
    store: GalleryStore,
    model: PromptedCLIP,
    files: Sequence[ImageFile],
    *,
    prune: Prune,
    closed: Sequence[str] = (),
    **options: "Unpack[EncodingOptions]",
) -> Changes:
    """Encode what is new or has changed; with `prune` remove what is not among the files.

    Args:
        store: The gallery.
        model: The model.
        files: The images as they are now.
        prune: `"anyway"` removes even a large share, or where `closed` is not empty.
        closed: Folders that cannot be read, which may hold more images.
        **options: Those of `encode_images`.
    """
    table = store.images
    known = table.rows_by_path()
    given: dict[str, ImageFile] = {}
    for file in files:
        given.setdefault(os.path.abspath(file.path), file)
    new = [file for path, file in given.items() if path not in known]
    sizes, modified = table.sizes.tolist(), table.modified_ns.tolist()
    stamps = {path: (sizes[row], modified[row]) for path, row in known.items()}
    both = [(file, stamps[path]) for path, file in given.items() if path in known]
    changed = [file for file, stamp in both if file_stamp(file.path) != stamp]
    absent = [path for path in known if path not in given]
    if prune:
        _check_pruning(absent, len(known), closed, anyway=prune == "anyway")
    excluded = _removed_before(store, [*new, *changed])
    unreadable = _encode(store, model, [file for file in [*new, *changed] if file.path not in excluded], **options)
    lost = {*excluded, *unreadable}
    # Features of what a file was before must not be found; where the file cannot even be asked, nothing is known.
    stale = [os.path.abspath(file.path) for file in changed if file.path in lost and file_stamp(file.path)[0] >= 0]
    removed = [*absent, *stale] if prune else stale
    if removed:
        store.change(removed=[int(table.ids[known[path]]) for path in removed])
    return Changes(
        added=sum(file.path not in lost for file in new),
        changed=sum(file.path not in lost for file in changed),
        unchanged=len(given) - len(new) - len(changed),
        removed=len(removed),
        unreadable=unreadable,
        excluded=tuple(excluded),
        gone=() if prune else tuple(path for path in absent if _is_gone(path)),
    )


def _check_pruning(absent: Sequence[str], total: int, closed: Sequence[str], *, anyway: bool) -> None:
    """Refuse to take what cannot be seen, or a wrong folder, for images that were deleted."""
    if anyway or not absent or not (closed or len(absent) > max(1, total // _PRUNED_SHARE)):
        return
    present = len(absent) - sum(_is_gone(path) for path in absent)
    why = f"{closed[0]} cannot be read, and they may be in it." if closed else "is it the right folder, and mounted?"
    raise DatasetError(
        f"pruning would remove {len(absent)} of {total} images, of which {present} are still on the disk: {why} "
        "Nothing was changed. To remove them all the same: --prune-anyway (in Python prune='anyway')"
    )


def _is_gone(path: str) -> bool:
    """Whether a file was deleted for certain, and not merely out of reach."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def remove_images(store: GalleryStore, images: Images) -> int:
    """Remove images by number, path or pattern, and with them their features: all of them, or none and a `KeyError`.

    Their paths and the digests of their files are kept, so that a later update does not bring them back.
    """
    table = store.images
    by_path = table.rows_by_path()
    rows: set[int] = set()
    for image in _listed(images):
        if isinstance(image, str | bytes | os.PathLike):
            image = os.fsdecode(image)
            found = [by_path[path] for path in _matching(by_path, image)]
        else:
            found = [row for row in table.rows_of([_number(image)]) if row >= 0]
        if not found:
            raise KeyError(f"the gallery has no image {str(image)!r}; nothing was removed")
        rows.update(found)
    if rows:
        marks = {mark["path"]: mark for mark in store.header.get("removed", [])}
        marks |= {mark["path"]: mark for mark in (_mark(table, row) for row in sorted(rows))}
        store.change(removed=table.ids[sorted(rows)].tolist(), header={"removed": list(marks.values())})
    return len(rows)


def restore_images(store: GalleryStore, images: Images) -> int:
    """Forget that images were removed, by path or pattern, so that an update takes them in again."""
    marks: dict[str, Any] = {mark["path"]: mark for mark in store.header.get("removed", [])}
    found: set[str] = set()
    for image in _listed(images):
        if not isinstance(image, str | bytes | os.PathLike):
            raise TypeError(f"{image!r} is {type(image).__name__}, expected an image's path, or a pattern of paths")
        image = os.fsdecode(image)
        matching = _matching(marks, image)
        if not matching:
            raise KeyError(f"{image!r} was not removed from the gallery; removed were: {', '.join(marks) or 'none'}")
        found.update(matching)
    _forget(store, found)
    return len(found)


def _forget(store: GalleryStore, paths: Collection[str]) -> None:
    """Forget the removal of the images of these absolute paths."""
    store.change(header={"removed": [mark for mark in store.header.get("removed", []) if mark["path"] not in paths]})


def _mark(table: ImageTable, row: int) -> dict[str, Any]:
    """What is kept of a removed image: its path, and the file's size and digest if it is still the one encoded."""
    path, size = os.path.abspath(table.paths[row]), int(table.sizes[row])
    try:
        if file_stamp(path) == (size, int(table.modified_ns[row])) and size >= 0:
            return {"path": path, "size": size, "digest": file_digest(Path(path))}
    except OSError:
        pass
    return {"path": path, "size": -1, "digest": ""}


def _removed_before(store: GalleryStore, files: Sequence[ImageFile]) -> dict[str, str]:
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

    known = {file.path: removed(file.path) for file in files} if marks else {}
    return {path: mark for path, mark in known.items() if mark is not None}


def _listed(images: Any) -> Sequence[Any]:
    """Several images as given, or the one: bytes are one name, and numpy's and torch's numbers are numbers."""
    if isinstance(images, str | bytes | os.PathLike) or not getattr(images, "ndim", hasattr(images, "__iter__")):
        return [images]
    return images


def _number(image: Any) -> int:
    try:
        return operator.index(image)
    except TypeError:
        raise TypeError(f"{image!r} is {type(image).__name__}, expected an image's path or number") from None


def _matching(paths: Collection[str], image: str | os.PathLike[str]) -> list[str]:
    """The absolute paths that a path or a pattern stands for; `*` stays in its folder, `**` does not."""
    pattern = os.path.abspath(image)
    if pattern in paths:
        return [pattern]
    if not any(letter in pattern for letter in "*?["):
        return []
    depth = pattern.count(os.sep)
    return [path for path in paths if fnmatchcase(path, pattern) and ("**" in pattern or path.count(os.sep) == depth)]


def _encode(
    store: GalleryStore, model: PromptedCLIP, files: Sequence[ImageFile], **options: "Unpack[EncodingOptions]"
) -> tuple[str, ...]:
    """Encode files and put them in, now and then and at the end; returns those that cannot be read."""
    unreadable: list[str] = []
    waiting: list[EncodedImages] = []
    # What changes while it is encoded must look changed at the next update, so files are looked at before.
    table = ImageTable.of([file.path for file in files], first_id=0, metadata=[file.metadata for file in files])
    written, pause = time.monotonic(), _WRITE_EVERY_SECONDS
    for batch in encode_images(model, table.paths, **options):
        unreadable += [table.paths[position] for position in batch.unreadable]
        waiting.append(batch)
        if store.directory is not None and time.monotonic() - written > pause:
            begin = time.monotonic()
            _put(store, table, waiting)
            waiting, written = [], time.monotonic()
            pause = max(_WRITE_EVERY_SECONDS, _WRITE_SHARE * (written - begin))
    _put(store, table, waiting)
    return tuple(unreadable)


def _put(store: GalleryStore, table: ImageTable, batches: Sequence[EncodedImages]) -> None:
    """Append encoded rows of a table to the gallery; an image that it has already keeps its number and is replaced."""
    positions = [position for batch in batches for position in batch.positions]
    if not positions:
        return
    images = table.select(positions)
    known = store.images.rows_by_path()
    rows = [known.get(path, -1) for path in images.rows_by_path()]
    first = store.take_ids(len(rows))
    ids = [first + offset if row < 0 else int(store.images.ids[row]) for offset, row in enumerate(rows)]
    store.change(
        removed=[number for number, row in zip(ids, rows, strict=True) if row >= 0],
        added=(replace(images, ids=torch.tensor(ids)), torch.cat([batch.features for batch in batches])),
    )
