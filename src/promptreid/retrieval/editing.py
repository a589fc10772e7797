"""Adds images to a gallery and updates them."""

import os
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from promptreid.data.image_files import first_reasons, list_images, no_images_in
from promptreid.data.images import inspect_image
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.errors import DatasetError
from promptreid.model.encoding import EncodedImages, EncodingOptions, encode_images
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.encode import check_features
from promptreid.retrieval.filters import Metadata, plain_metadata
from promptreid.retrieval.gallery_state import GalleryState
from promptreid.retrieval.removal import forget, is_gone, removed_before
from promptreid.retrieval.table import ImageTable, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Unpack

ImageSource = str | Path | ReIDSplit | Iterable[str | Path | ImageRecord]

CAMERA = "camera"  # key of an image's metadata: its camera, which grouped prompts ask for

# Between two writes of a long run at least this long, and at least this many times as long as the last write took.
_WRITE_EVERY_SECONDS = 60.0
_WRITE_SHARE = 20.0

# How long an interrupted run waits for another writer to keep what it has encoded: a second signal may be ignored.
_LAST_WAIT_SECONDS = 5.0

# More than this share of a gallery is not pruned unasked.
_PRUNED_SHARE = 4

Prune = bool | Literal["anyway"]


@dataclass(frozen=True)
class ImageFile:
    """An image to put into a gallery, and what is known of it; one in memory has a key for a path."""

    path: str
    metadata: Metadata
    image: Any = None


def find_images(
    images: ImageSource, *, metadata: Sequence[Metadata] | None = None, closed: list[str] | None = None
) -> list[ImageFile]:
    """Find the images of a folder with its sub-folders, a split, a list of records or of files.

    An image from a folder knows its sub-folder (`"folder"`), one from a record its person, split and, if the dataset
    says it, `"camera"`; `metadata` is what else is known of each, only with a list. `closed` gets the sub-folders that
    cannot be read.
    """
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of images, whose order is known; a folder was given")
        return _list_folder(Path(images), closed)
    if not isinstance(images, ReIDSplit) and not isinstance(images, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = ", such as dataset.test" if hasattr(images, "test") else ""
        raise TypeError(f"images is {type(images).__name__}, expected a folder, a list of files, or a split{hint}")
    entries = list(images.records) if isinstance(images, ReIDSplit) else list(images)
    if not entries:
        raise DatasetError("the list of images is empty; give at least one path")
    known = [{}] * len(entries) if metadata is None else list(metadata)
    if len(known) != len(entries):
        raise ValueError(f"{len(entries)} images but metadata for {len(known)}; give one entry per image")
    return [_image_file(entry, more) for entry, more in zip(entries, known, strict=True)]


def _image_file(entry: Any, more: Metadata) -> ImageFile:
    if isinstance(entry, ImageRecord):
        own = {"person_id": entry.person_id, "split": entry.split}
        if entry.camera is not None:
            own[CAMERA] = entry.camera
        entry, more = entry.path, {**own, **plain_metadata(more, f"metadata of {entry.path}")}
    if isinstance(entry, str | Path):
        return ImageFile(str(entry), plain_metadata(more, f"metadata of {entry}"))
    raise TypeError(f"images holds {type(entry).__name__}, expected paths or ImageRecord")


def _list_folder(folder: Path, closed: list[str] | None) -> list[ImageFile]:
    if folder.is_file():
        raise DatasetError(f"{folder} is a file; give its folder, or a list of files: [{str(folder)!r}]")
    paths = list_images(folder, unreadable=closed)
    if not paths:
        raise no_images_in(folder)
    return [ImageFile(str(path), {"folder": path.parent.relative_to(folder).as_posix()}) for path in paths]


def keyed_images(images: Any, keys: Sequence[str], metadata: Sequence[Metadata] | None) -> list[ImageFile]:
    """Images in memory, each with the key that stands for its path.

    Raises:
        TypeError: One is a file's name or no image, or a key is not text.
        ValueError: There is not one key, and one entry of metadata, per image, or a key is empty.
    """
    single = isinstance(images, Image.Image) or getattr(images, "ndim", 0) == 3
    given: list[Any] = [images] if single else list(images)  # pyright: ignore[reportArgumentType]
    keys = check_keys(keys, len(given), "images")
    if any(isinstance(image, str | Path | ImageRecord) for image in given):
        raise TypeError("keys goes with images in memory, such as PIL images and uint8 arrays; leave it out for files")
    if odd := [image for image in given if not isinstance(image, Image.Image | np.ndarray | Tensor)]:
        raise TypeError(f"images holds {type(odd[0]).__name__}, expected PIL images, uint8 arrays or uint8 tensors")
    known = known_metadata(keys, metadata)
    return [ImageFile(key, more, image) for key, more, image in zip(keys, known, given, strict=True)]


def check_keys(keys: Any, count: int, what: str) -> list[str]:
    """Keys as a list of texts, one for each of `count` things."""
    listed: list[Any] = [keys] if isinstance(keys, str | os.PathLike) else list(keys)
    if len(listed) != count:
        raise ValueError(f"{count} {what} but {len(listed)} keys; give one key per image")
    if not count:
        raise DatasetError(f"the list of {what} is empty; give at least one")
    if odd := [key for key in listed if not isinstance(key, str | os.PathLike)]:
        raise TypeError(f"keys holds {type(odd[0]).__name__}, expected texts, such as 'cam_a/000017'")
    texts = [os.fspath(key) for key in listed]
    if not all(texts):
        raise ValueError("a key is empty; a key is the name by which an image is found, such as 'cam_a/000017'")
    return texts


def known_metadata(keys: Sequence[str], metadata: Sequence[Metadata] | None) -> list[Metadata]:
    """The metadata of each image, in types that JSON takes; empty without `metadata`.

    Raises:
        ValueError: There is not one entry per image.
        TypeError: A value is of a kind that JSON does not take; names the image.
    """
    if metadata is not None and len(metadata) != len(keys):
        raise ValueError(f"{len(keys)} images but metadata for {len(metadata)}; give one entry per image")
    known: Sequence[Metadata] = [{}] * len(keys) if metadata is None else metadata
    return [plain_metadata(more, f"metadata of {key}") for key, more in zip(keys, known, strict=True)]


@dataclass(frozen=True)
class Changes:
    """The result of an update: what became of the images.

    Attributes:
        added: New in the gallery.
        changed: Encoded again because their file had changed.
        unchanged: Left as they were.
        removed: Taken out of the gallery by this update, because of `prune`, or because what their file is now cannot
            be read.
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
    store: GalleryState,
    model: PromptedCLIP,
    files: Sequence[ImageFile],
    *,
    named: bool = False,
    **options: "Unpack[EncodingOptions]",
) -> Changes:
    """Encode images that the gallery does not have yet; refuses what it has, and what is given twice.

    Images that were removed earlier come back if they are `named` one by one.
    """
    with store.turn():
        _check_new(store, [file.path for file in files])
    excluded = removed_before(store, [file.path for file in files])
    if named and excluded:
        forget(store, set(excluded.values()))
        excluded = {}
    new = [file for file in files if file.path not in excluded]
    unreadable, since = _encode(store, model, new, named=named, **options)
    if new and len(unreadable) == len(new):
        raise DatasetError(f"none of the {len(new)} images can be read: {why_unreadable(unreadable)}")
    warn_unreadable(unreadable, len(files))
    added = len(new) - len(unreadable) - len(since)
    return Changes(added=added, unreadable=unreadable, excluded=(*excluded, *since))


def warn_unreadable(unreadable: Sequence[str], total: int) -> None:
    """Count unreadable images in one warning, which says of the first ones why."""
    if unreadable:
        count = f"{len(unreadable)} of {total} images cannot be read and are left out"
        warnings.warn(f"{count}: {why_unreadable(unreadable)}", stacklevel=4)


def why_unreadable(paths: Sequence[str]) -> str:
    """The first ten images that could not be read, each with its reason, which their files are asked for again."""
    reasons = dict.fromkeys(map(Path, paths), "")
    for path in list(reasons)[:10]:
        errors = [problem.message for problem in inspect_image(path).problems if problem.severity == "error"]
        reasons[path] = errors[0] if errors else "could not be read, and can be now"
    return first_reasons(reasons)


def _check_new(store: GalleryState, paths: Sequence[str]) -> None:
    """Refuse what the gallery has, and what is given twice."""
    present = [path for path, number in zip(paths, store.exact.ids_of(paths), strict=True) if number >= 0]
    if present:
        raise ValueError(
            f"{len(present)} of {len(paths)} images are in the gallery already, such as {present[0]}; "
            "update() encodes only what is new or has changed"
        )
    path, times = Counter(os.path.abspath(path) for path in paths).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path} is given twice; give each image once")


def add_features(
    store: GalleryState, features: Tensor, keys: Sequence[str], metadata: Sequence[Metadata] | None
) -> Changes:
    """Append features that were made elsewhere; refuses keys that the gallery has, or that are given twice."""
    keys = check_keys(keys, len(features), "features")
    features = check_features(features, len(keys), store.exact.dimensions)
    table = ImageTable.of_keys(keys, metadata=known_metadata(keys, metadata))
    with store.turn():
        _check_new(store, keys)
        forget(store, {os.path.abspath(key) for key in keys})
        ids = torch.arange(len(keys)) + store.take_ids(len(keys))
        # A copy, because the caller may change the argument later.
        store.change(added=(replace(table, ids=ids), features.detach().clone()))
    return Changes(added=len(keys))


def update_images(
    store: GalleryState,
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
    with store.turn():
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
    # What never was a file is none of `files`, and not gone either.
    absent = [path for path in known if path not in given and not (stamps[path][0] < 0 <= stamps[path][1])]
    if prune:
        check_pruning(absent, len(known), closed, anyway=prune == "anyway")
    excluded = removed_before(store, [file.path for file in [*new, *changed]])
    wanted = [file for file in [*new, *changed] if file.path not in excluded]
    unreadable, since = _encode(store, model, wanted, **options)
    lost = {*excluded, *since, *unreadable}
    # Features of what a file was before must not be found; where the file cannot even be asked, nothing is known.
    stale = [os.path.abspath(file.path) for file in changed if file.path in lost and file_stamp(file.path)[0] >= 0]
    going = [*absent, *stale] if prune else stale
    removed = store.change(removed=[int(table.ids[known[path]]) for path in going]) if going else 0
    warn_unreadable(unreadable, len(files))
    return Changes(
        added=sum(file.path not in lost for file in new),
        changed=sum(file.path not in lost for file in changed),
        unchanged=len(given) - len(new) - len(changed),
        removed=removed,
        unreadable=unreadable,
        excluded=(*excluded, *since),
        gone=() if prune else tuple(path for path in absent if is_gone(path)),
    )


def check_pruning(absent: Sequence[str], total: int, closed: Sequence[str], *, anyway: bool) -> None:
    """Refuse to take what cannot be seen, or a wrong folder, for images that were deleted."""
    if anyway or not absent or not (closed or len(absent) > max(1, total // _PRUNED_SHARE)):
        return
    present = len(absent) - sum(is_gone(path) for path in absent)
    why = f"{closed[0]} cannot be read, and they may be in it." if closed else "is it the right folder, and mounted?"
    raise DatasetError(
        f"pruning would remove {len(absent)} of {total} images, of which {present} are still on the disk: {why} "
        "Nothing was removed. To remove them all the same: --prune-anyway (in Python prune='anyway')"
    )


def _encode(
    store: GalleryState,
    model: PromptedCLIP,
    files: Sequence[ImageFile],
    *,
    named: bool = False,
    **options: "Unpack[EncodingOptions]",
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Encode files and save them, at intervals and at the end.

    Where Ctrl-C or a signal that is raised as an exit ends it, those are saved that are encoded by then, unless they
    were just being written or another process is writing.

    Returns:
        Those that cannot be read, and those that others removed in the meantime, which stay out unless they are `named`
        one by one.
    """
    unreadable: list[str] = []
    removed: list[str] = []
    waiting: list[EncodedImages] = []
    table = _table_of(files)
    written, pause = time.monotonic(), _WRITE_EVERY_SECONDS
    images = [file.path if file.image is None else file.image for file in files]
    try:
        for batch in encode_images(model, images, groups=image_groups(files, model), **options):
            unreadable += [table.paths[position] for position in batch.unreadable]
            waiting.append(batch)
            if store.directory is not None and time.monotonic() - written > pause:
                begin = time.monotonic()
                full, waiting = waiting, []  # what interrupts the write, or the wait for it, does not begin it again
                removed += _put(store, table, full, named=named)
                written = time.monotonic()
                pause = max(_WRITE_EVERY_SECONDS, _WRITE_SHARE * (written - begin))
    except (KeyboardInterrupt, SystemExit):
        if store.directory is not None and waiting:
            with suppress(TimeoutError), store.turn(timeout_seconds=_LAST_WAIT_SECONDS):
                _put(store, table, waiting, named=named)
        raise
    removed += _put(store, table, waiting, named=named)
    return tuple(unreadable), tuple(removed)


def _table_of(files: Sequence[ImageFile]) -> ImageTable:
    """The files as they are now: what changes while it is encoded must look changed at the next update."""
    paths, metadata = [file.path for file in files], [file.metadata for file in files]
    if any(file.image is not None for file in files):
        return ImageTable.of_keys(paths, metadata=metadata)
    return ImageTable.of(paths, first_id=0, metadata=metadata)


def image_groups(files: Sequence[ImageFile], model: PromptedCLIP) -> list[str | None] | None:
    """Of each image its group, where the model's prompts are grouped."""
    return [_group_of(file.metadata, model.groups) for file in files] if model.groups else None


def _group_of(metadata: Metadata, groups: Sequence[str]) -> str | None:
    """The group of an image: its camera, or the sub-folder that it is from where that is a group."""
    camera, folder = metadata.get(CAMERA), metadata.get("folder")
    if camera is None and folder in groups:
        return str(folder)
    return None if camera is None else str(camera)


def _put(store: GalleryState, table: ImageTable, batches: Sequence[EncodedImages], *, named: bool) -> Collection[str]:
    """Append encoded rows of a table to the gallery; an image that it has already keeps its number and is replaced.

    Returns:
        The images that are left out, because they were removed while they were encoded and are not `named`.
    """
    positions = [position for batch in batches for position in batch.positions]
    if not positions:
        return []
    images, features = table.select(positions), torch.cat([batch.features for batch in batches])
    with store.turn():
        out: Collection[str] = () if named else removed_before(store, images.paths)
        if out:
            kept = [row for row, path in enumerate(images.paths) if path not in out]
            images, features = images.select(kept), features[kept]
        images = images if store.directory is None else images.with_full_paths()
        known = store.exact.ids_of(images.paths)
        first = store.take_ids(len(known))
        ids = [first + offset if number < 0 else number for offset, number in enumerate(known)]
        if ids:
            added = replace(images, ids=torch.tensor(ids)), features
            store.change(removed=[number for number in known if number >= 0], added=added)
    return out
