"""Adds, updates and removes images of a gallery."""

import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptreid.data.images import IMAGE_ENDINGS, list_images
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.errors import DatasetError
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.encode import encode_pictures
from promptreid.retrieval.gallery_files import GalleryStore
from promptreid.retrieval.table import Metadata, PictureTable, file_stamp

ImageSource = str | Path | ReIDSplit | Iterable[str | Path | ImageRecord]


@dataclass(frozen=True)
class PictureFile:
    """A picture to put into a gallery.

    Attributes:
        path: The file.
        metadata: What is known of it.
    """

    path: str
    metadata: Metadata


def list_pictures(images: ImageSource, *, metadata: Sequence[Metadata] | None = None) -> list[PictureFile]:
    """Find the pictures of a folder with its sub-folders, a split, a list of records or of files.

    A picture from a folder knows its sub-folder (`"folder"`), one from a record its person and split.

    Args:
        images: Where the pictures are.
        metadata: What is known of each, beside that; only with a list.

    Raises:
        DatasetError: The folder is not there, or there is no picture.
        ValueError: `metadata` has another length, or comes with a folder.
    """
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of pictures, whose order is known; a folder was given")
        return _list_folder(Path(images))
    entries = list(images.records) if isinstance(images, ReIDSplit) else list(images)
    if not entries:
        raise DatasetError("the list of images is empty; give at least one path")
    known = [{}] * len(entries) if metadata is None else list(metadata)
    if len(known) != len(entries):
        raise ValueError(f"{len(entries)} pictures but metadata for {len(known)}; give one entry a picture")
    return [_picture(entry, more) for entry, more in zip(entries, known, strict=True)]


def _picture(entry: Any, more: Metadata) -> PictureFile:
    if isinstance(entry, ImageRecord):
        return PictureFile(str(entry.path), {"person_id": entry.person_id, "split": entry.split, **more})
    if isinstance(entry, str | Path):
        return PictureFile(str(entry), dict(more))
    raise TypeError(f"images holds {type(entry).__name__}, expected paths or ImageRecord")


def _list_folder(folder: Path) -> list[PictureFile]:
    if folder.is_file():
        raise DatasetError(f"{folder} is a file; give its folder, or a list of files: [{str(folder)!r}]")
    paths = list_images(folder)
    if not paths:
        raise DatasetError(f"{folder} has no pictures ({', '.join(IMAGE_ENDINGS)}) in it or below")
    return [PictureFile(str(path), {"folder": path.parent.relative_to(folder).as_posix()}) for path in paths]


# Between two writes of a long run at least this long, and at least so many times as long as the last write took.
_WRITE_EVERY_SECONDS = 60.0

_WRITE_SHARE = 20.0


@dataclass(frozen=True)
class Changes:
    """What became of the pictures given.

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

    def warn_unreadable(self, total: int) -> None:
        """Count and name unreadable pictures in one warning."""
        if self.unreadable:
            first = ", ".join(self.unreadable[:10])
            warnings.warn(
                f"{len(self.unreadable)} of {total} pictures cannot be read and are left out: {first}", stacklevel=3
            )


@dataclass(frozen=True)
class Pace:
    """How pictures are encoded: pictures a batch, threads that read ahead, a progress bar or not."""

    batch_size: int
    num_threads: int
    progress: bool


def add_pictures(store: GalleryStore, model: PromptedCLIP, files: Sequence[PictureFile], pace: Pace) -> Changes:
    """Encode pictures that the gallery does not have yet.

    Raises:
        ValueError: It has one of them already, or one is given twice.
        DatasetError: None of them can be read.
    """
    known = _rows_by_place(store.state[0])
    given = [_place(file.path) for file in files]
    there = [file.path for file, place in zip(files, given, strict=True) if place in known]
    if there:
        raise ValueError(
            f"{len(there)} of {len(files)} pictures are in the gallery already, such as {there[0]}; "
            "update() encodes only what is new or has changed"
        )
    if len(set(given)) < len(given):
        twice = next(file.path for file, place in zip(files, given, strict=True) if given.count(place) > 1)
        raise ValueError(f"{twice} is given twice; give each picture once")
    unreadable = _encode(store, model, files, pace)
    if len(unreadable) == len(files):
        raise DatasetError(f"none of the {len(files)} pictures can be read; first: {', '.join(unreadable[:10])}")
    return Changes(added=len(files) - len(unreadable), unreadable=unreadable)


def update_pictures(
    store: GalleryStore, model: PromptedCLIP, files: Sequence[PictureFile], pace: Pace, *, prune: bool
) -> Changes:
    """Encode what is new or has changed; with `prune` remove what is not among the files."""
    table = store.state[0]
    known = _rows_by_place(table)
    sizes, modified = table.sizes.tolist(), table.modified_ns.tolist()
    new: list[PictureFile] = []
    changed: list[PictureFile] = []
    seen: set[str] = set()
    for file in files:
        place = _place(file.path)
        if place in seen:
            continue
        seen.add(place)
        row = known.get(place)
        if row is None:
            new.append(file)
        elif file_stamp(file.path) != (sizes[row], modified[row]):
            changed.append(file)
    missing = [row for place, row in known.items() if place not in seen] if prune else []
    if missing:
        _keep_rows(store, set(range(len(table))) - set(missing))
    unreadable = _encode(store, model, [*new, *changed], pace) if new or changed else ()
    lost = set(unreadable)
    return Changes(
        added=sum(file.path not in lost for file in new),
        changed=sum(file.path not in lost for file in changed),
        unchanged=len(seen) - len(new) - len(changed),
        removed=len(missing),
        unreadable=unreadable,
    )


def remove_pictures(store: GalleryStore, pictures: Sequence[int | str | Path]) -> int:
    """Remove pictures by number or path, and with them their features.

    Raises:
        KeyError: One is not in the gallery; then none is removed.
    """
    table = store.state[0]
    by_id: Mapping[int, int] = {number: row for row, number in enumerate(table.ids.tolist())}
    by_place = _rows_by_place(table)
    rows: set[int] = set()
    for picture in pictures:
        row = by_id.get(picture) if isinstance(picture, int) else by_place.get(_place(str(picture)))
        if row is None:
            raise KeyError(f"the gallery has no picture {picture!r}; nothing was removed")
        rows.add(row)
    if rows:
        _keep_rows(store, set(range(len(table))) - rows)
    return len(rows)


def _keep_rows(store: GalleryStore, rows: set[int]) -> None:
    table, features = store.state
    kept = sorted(rows)
    store.replace(table.select(kept), features[torch.tensor(kept, dtype=torch.int64, device=features.device)])


def _encode(store: GalleryStore, model: PromptedCLIP, files: Sequence[PictureFile], pace: Pace) -> tuple[str, ...]:
    """Encode files and put them in, now and then and at the end; returns those that cannot be read."""
    unreadable: list[str] = []
    waiting: list[tuple[list[PictureFile], PictureTable, Tensor]] = []
    # What changes while it is encoded must look changed at the next update, so files are looked at before.
    stamps = PictureTable.of([file.path for file in files], first_id=0, metadata=[file.metadata for file in files])
    written, pause = time.monotonic(), _WRITE_EVERY_SECONDS
    batches = encode_pictures(
        model,
        [file.path for file in files],
        batch_size=pace.batch_size,
        num_threads=pace.num_threads,
        progress=pace.progress,
    )
    for batch in batches:
        unreadable += [files[place].path for place in batch.unreadable]
        waiting.append(([files[place] for place in batch.places], stamps.select(batch.places), batch.features))
        if store.directory is not None and time.monotonic() - written > pause:
            begin = time.monotonic()
            _put(store, waiting)
            waiting, written = [], time.monotonic()
            pause = max(_WRITE_EVERY_SECONDS, _WRITE_SHARE * (written - begin))
    _put(store, waiting)
    return tuple(unreadable)


def _put(store: GalleryStore, batches: Sequence[tuple[list[PictureFile], PictureTable, Tensor]]) -> None:
    """Append batches to the gallery; a picture that it has already keeps its number and is replaced."""
    table, features = store.state
    rows = _rows_by_place(table)
    ids = table.ids.tolist()
    replaced: set[int] = set()
    for files, stamps, encoded in batches:
        numbers = torch.empty(len(files), dtype=torch.int64)
        first = store.take_ids(len(files))
        for place, file in enumerate(files):
            row = rows.get(_place(file.path))
            numbers[place] = first + place if row is None else ids[row]
            replaced |= set() if row is None else {row}
        own = PictureTable(stamps.paths, numbers, stamps.sizes, stamps.modified_ns, stamps.metadata)
        table = table.joined(own)
        features = torch.cat([features, encoded.to(features.device, features.dtype)])
    if replaced:
        kept = [row for row in range(len(table)) if row not in replaced]
        table, features = table.select(kept), features[torch.tensor(kept, device=features.device)]
    if len(table) != len(store.state[0]) or replaced:
        store.replace(table, features)


def _rows_by_place(table: PictureTable) -> dict[str, int]:
    return {_place(path): row for row, path in enumerate(table.paths)}


def _place(path: str) -> str:
    return os.path.abspath(path)
