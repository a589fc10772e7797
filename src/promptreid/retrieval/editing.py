"""Adds, updates and removes images of a gallery."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from promptreid.data.images import IMAGE_ENDINGS, list_images
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.errors import DatasetError
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.encode import EncodedImages, EncodingOptions, encode_images
from promptreid.retrieval.gallery_files import GalleryStore
from promptreid.retrieval.table import ImageTable, Metadata, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Unpack

ImageSource = str | Path | ReIDSplit | Iterable[str | Path | ImageRecord]

# Between two writes of a long run at least this long, and at least this many times as long as the last write took.
_WRITE_EVERY_SECONDS = 60.0
_WRITE_SHARE = 20.0


@dataclass(frozen=True)
class ImageFile:
    """An image to put into a gallery, and what is known of it."""

    path: str
    metadata: Metadata


def find_images(images: ImageSource, *, metadata: Sequence[Metadata] | None = None) -> list[ImageFile]:
    """Find the images of a folder with its sub-folders, a split, a list of records or of files.

    An image from a folder knows its sub-folder (`"folder"`), one from a record its person and split; `metadata` is what
    else is known of each, only with a list.
    """
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of images, whose order is known; a folder was given")
        return _list_folder(Path(images))
    entries = list(images.records) if isinstance(images, ReIDSplit) else list(images)
    if not entries:
        raise DatasetError("the list of images is empty; give at least one path")
    known = [{}] * len(entries) if metadata is None else list(metadata)
    if len(known) != len(entries):
        raise ValueError(f"{len(entries)} images but metadata for {len(known)}; give one entry per image")
    return [_image_file(entry, more) for entry, more in zip(entries, known, strict=True)]


def _image_file(entry: Any, more: Metadata) -> ImageFile:
    if isinstance(entry, ImageRecord):
        return ImageFile(str(entry.path), {"person_id": entry.person_id, "split": entry.split, **more})
    if isinstance(entry, str | Path):
        return ImageFile(str(entry), dict(more))
    raise TypeError(f"images holds {type(entry).__name__}, expected paths or ImageRecord")


def _list_folder(folder: Path) -> list[ImageFile]:
    if folder.is_file():
        raise DatasetError(f"{folder} is a file; give its folder, or a list of files: [{str(folder)!r}]")
    paths = list_images(folder)
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
        removed: No longer in the gallery.
        unreadable: Left out because they cannot be read.
    """

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    unreadable: tuple[str, ...] = ()


def add_images(
    store: GalleryStore, model: PromptedCLIP, files: Sequence[ImageFile], **options: "Unpack[EncodingOptions]"
) -> Changes:
    """Encode images that the gallery does not have yet; refuses what it has, and what is given twice."""
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
    unreadable = _encode(store, model, files, **options)
    if len(unreadable) == len(files):
        raise DatasetError(f"none of the {len(files)} images can be read; first: {', '.join(unreadable[:10])}")
    return Changes(added=len(files) - len(unreadable), unreadable=unreadable)


def update_images(
    store: GalleryStore,
    model: PromptedCLIP,
    files: Sequence[ImageFile],
    *,
    prune: bool,
    **options: "Unpack[EncodingOptions]",
) -> Changes:
    """Encode what is new or has changed; with `prune` remove what is not among the files."""
    table = store.images
    known = table.rows_by_path()
    sizes, modified = table.sizes.tolist(), table.modified_ns.tolist()
    given: dict[str, ImageFile] = {}
    new: list[ImageFile] = []
    changed: list[ImageFile] = []
    for file in files:
        path = os.path.abspath(file.path)
        if given.setdefault(path, file) is not file:
            continue
        row = known.get(path)
        if row is None:
            new.append(file)
        elif file_stamp(file.path) != (sizes[row], modified[row]):
            changed.append(file)
    missing = [int(table.ids[row]) for path, row in known.items() if path not in given] if prune else []
    if missing:
        store.change(removed=missing)
    unreadable = _encode(store, model, [*new, *changed], **options)
    lost = set(unreadable)
    return Changes(
        added=sum(file.path not in lost for file in new),
        changed=sum(file.path not in lost for file in changed),
        unchanged=len(given) - len(new) - len(changed),
        removed=len(missing),
        unreadable=unreadable,
    )


def remove_images(store: GalleryStore, images: Sequence[int | str | Path]) -> int:
    """Remove images by number or path, and with them their features: all of them, or none and a `KeyError`."""
    table = store.images
    by_path = table.rows_by_path()
    rows: set[int] = set()
    for image in images:
        row = table.rows_of([image])[0] if isinstance(image, int) else by_path.get(os.path.abspath(image), -1)
        if row < 0:
            raise KeyError(f"the gallery has no image {image!r}; nothing was removed")
        rows.add(row)
    if rows:
        store.change(removed=table.ids[sorted(rows)].tolist())
    return len(rows)


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
