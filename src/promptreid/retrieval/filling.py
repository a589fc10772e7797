"""Fills a store with images: each process its part, as they are found, in commits that are worth their cost."""

import os
import time
import warnings
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptreid.data.image_files import no_images_in, walk_images
from promptreid.data.records import ReIDSplit
from promptreid.errors import DatasetError, StoreError, counted, printable
from promptreid.model.encoding import EncodingOptions, encode_images
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.editing import (
    Changes,
    ImageFile,
    ImageSource,
    Prune,
    check_pruning,
    find_images,
    image_groups,
    warn_unreadable,
)
from promptreid.retrieval.filters import Metadata
from promptreid.retrieval.lance_filters import from_stored, quoted
from promptreid.retrieval.lance_removal import key_digest, key_forms, remove, removed_digests
from promptreid.retrieval.lance_store import LanceStore, key_id, renumbered
from promptreid.retrieval.table import ImageTable, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Many small commits slow a search tenfold: so many rows, or all there are after so many seconds.
COMMIT_ROWS, COMMIT_SECONDS = 5_000, 5.0
# Files that the store is asked for at a time.
_FILES_AT_ONCE = 10_000
# What was added by a key, and never was a file, is not gone when no file has its name.
_FILES = "NOT (size < 0 AND modified_ns >= 0)"

Shard = tuple[int, int]


def shard_of_environment(variables: Mapping[str, str] = os.environ) -> Shard | None:
    """The part of the work of this process among those that torchrun or SLURM's srun started, else `None`.

    Raises:
        ValueError: The variables contradict each other.
    """
    for number, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if number in variables and count in variables:
            try:
                return check_shard((int(variables[number]), int(variables[count])))
            except ValueError as error:
                raise ValueError(
                    f"{number} is {variables[number]!r} and {count} {variables[count]!r}: {error}"
                ) from error
    return None


def check_shard(shard: Shard) -> Shard:
    """Check that a shard exists.

    Raises:
        ValueError: There is no shard of that number.
    """
    number, count = shard
    if not 0 <= number < count:
        raise ValueError(f"shard is {number} of {count}, expected a number from 0 to {max(0, count - 1)}")
    return shard


def fill(
    store: LanceStore,
    model: PromptedCLIP,
    images: ImageSource,
    *,
    metadata: Iterable[Metadata] | None = None,
    shard: Shard | None = None,
    prune: Prune = False,
    **options: "Unpack[EncodingOptions]",
) -> Changes:
    """Encode images that are new or whose file has changed, and put them in every few seconds.

    See `promptreid.retrieval.stored_gallery.StoredGallery.update`.
    """
    part = check_shard(shard or (0, 1))
    root = Path(images) if isinstance(images, str | Path) else None
    pruning = _Pruning(store, root) if prune and part[0] == 0 else None
    filling = _Filling(store, model, options)
    try:
        for files in _parts_of(_each(images, metadata, pruning), part, filling):
            filling.take(files)
    except (KeyboardInterrupt, SystemExit):
        with suppress(StoreError):
            filling.commits.flush()
        raise
    filling.commits.flush()
    if filling.seen == 0:
        if root is None:
            raise DatasetError("there are no images to add; give their folder, or a list of files")
        raise no_images_in(root)
    changes = filling.changes(pruned=0 if pruning is None else pruning.apply(anyway=prune == "anyway"))
    warn_unreadable(changes.unreadable, filling.seen)
    return changes


def put_in(store: LanceStore, images: ImageTable, features: Tensor) -> None:
    """Put features that were made elsewhere into a store; what was erased from it stays out, with a warning."""
    commits = _Commits(store)
    for rows in torch.arange(len(images)).split(COMMIT_ROWS):
        part = features[rows.to(features.device)]
        commits.put(renumbered(images.select(rows.tolist())), part, old=[False] * len(rows))
    commits.flush()
    if out := commits.excluded:
        count, first = counted(len(out), "erased image"), ", ".join(printable(path) for path in out[:10])
        warnings.warn(f"{count} left out: {first}; restore what belongs into the store first", stacklevel=3)


class _Filling:
    """Adds images to a store, and counts the results."""

    def __init__(self, store: LanceStore, model: PromptedCLIP, options: EncodingOptions) -> None:
        self.seen: int = 0
        self.commits: _Commits = _Commits(store)
        self._store, self._model, self._options = store, model, options
        self._unchanged = self._removed = 0
        self._unreadable: list[str] = []
        self._excluded: list[str] = []

    def take(self, files: Sequence[ImageFile]) -> None:
        """Encode those of some files that are new or have changed."""
        given = list({os.path.abspath(file.path): file for file in files}.items())
        known = self._store.stamps([path for path, _ in given])
        out = erased_among([path for path, _ in given], removed_digests(self._store))
        # Erased by another process while one put them in that was then interrupted.
        if back := sorted(out & known.keys()):
            remove(self._store, back)
        kept = [(path, file) for path, file in given if path not in out]
        self._excluded += [path for path, _ in given if path in out]
        wanted = [(path, file) for path, file in kept if known.get(path) != file_stamp(path)]
        self._unchanged += len(kept) - len(wanted)
        # What changes while it is encoded must look changed the next time, so files are looked at before.
        paths, files = [path for path, _ in wanted], [file for _, file in wanted]
        table = renumbered(ImageTable.of(paths, metadata=[file.metadata for file in files]))
        for batch in encode_images(self._model, paths, groups=image_groups(files, self._model), **self._options):
            if batch.positions:
                old = [paths[position] in known for position in batch.positions]
                self.commits.put(table.select(batch.positions), batch.features, old=old)
            lost = [paths[position] for position in batch.unreadable]
            self._unreadable += lost
            self._remove_stale([path for path in lost if path in known])

    def _remove_stale(self, lost: Sequence[str]) -> None:
        """Remove images whose file cannot be read any more: features of what it was before must not be found."""
        stale = [path for path in lost if file_stamp(path)[0] >= 0]
        there = list(self._store.stamps(stale)) if stale else []  # others may have removed some already
        if there:
            self._store.log_action("remove", images=len(there))
            self._store.delete_keys(there)
            self._removed += len(there)

    def changes(self, *, pruned: int) -> Changes:
        """The counts of what was done."""
        return Changes(
            added=self.commits.added,
            changed=self.commits.changed,
            unchanged=self._unchanged,
            removed=self._removed + pruned,
            unreadable=tuple(self._unreadable),
            excluded=(*self._excluded, *self.commits.excluded),
        )


class _Commits:
    """Collects rows and commits them once they are many, or have waited for long; counts them.

    What another process erases in the meantime stays out, and is `excluded`.
    """

    def __init__(self, store: LanceStore) -> None:
        self.added: int = 0
        self.changed: int = 0
        self.excluded: list[str] = []
        self._store = store
        self._waiting: list[tuple[ImageTable, Tensor]] = []
        self._old: list[bool] = []
        self._since = time.monotonic()

    def put(self, images: ImageTable, features: Tensor, *, old: Sequence[bool]) -> None:
        """Take rows; `old` says which of their keys the store has."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((images, features))
        self._old += old
        if len(self._old) >= COMMIT_ROWS or time.monotonic() - self._since >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what waits."""
        if not self._waiting:
            return
        images = ImageTable.joined([table for table, _ in self._waiting])
        features = torch.cat([part for _, part in self._waiting])
        old, self._waiting, self._old = np.array(self._old), [], []
        out = erased_among(images.paths, removed_digests(self._store))
        rows = [row for row, path in enumerate(images.paths) if path not in out]
        if rows:
            (self._store.replace if old[rows].any() else self._store.add)(images.select(rows), features[rows])
            # Whoever erases notes it before deleting, so that what came in between is known now.
            if late := erased_among([images.paths[row] for row in rows], removed_digests(self._store)):
                remove(self._store, sorted(late))
                rows = [row for row in rows if images.paths[row] not in late]
                out |= late
        self.excluded += sorted(out)
        self.changed += int(old[rows].sum())
        self.added += len(rows) - int(old[rows].sum())


def erased_among(keys: Iterable[str], digests: Collection[str]) -> set[str]:
    """Those of the keys that were erased, in either of their forms, by the digests that are kept."""
    return {key for key in keys if any(key_digest(form) in digests for form in key_forms(key))} if digests else set()


class _Pruning:
    """Finds the images of a store that are no longer among those given.

    Others may add images at the same time, which are not among those: only what the store had at the beginning is
    looked at, and of that what is in the folder, because other machines may have other folders. Images are identified
    by their numbers, of eight bytes each.
    """

    def __init__(self, store: LanceStore, folder: Path | None) -> None:
        self.closed: list[str] = []
        self._store = store
        self._given = array("q")
        self._condition = _FILES
        if folder is not None:
            below = os.path.join(os.path.abspath(folder), "")
            self._condition += f" AND starts_with(key, {quoted(below)})"
        parts = [batch["id"].to_numpy() for batch in store.scan(["id"], self._condition)]
        self._before: NDArray[Any] = np.concatenate([np.empty(0, np.int64), *parts])

    def saw(self, path: str) -> None:
        """An image is there."""
        self._given.append(key_id(os.path.abspath(path)))

    def apply(self, *, anyway: bool) -> int:
        """Remove the others; returns how many."""
        gone = np.setdiff1d(self._before, np.array(self._given, np.int64))
        keys: list[str] = []
        for batch in self._store.scan(["key", "id"], self._condition) if len(gone) else ():
            chosen = np.isin(batch["id"].to_numpy(), gone).nonzero()[0]
            keys += map(from_stored, batch["key"].take(chosen).to_pylist())
        check_pruning(keys, len(self._before), self.closed, anyway=anyway)
        return remove(self._store, keys, remember=False) if keys else 0


def _parts_of(images: Iterable[tuple[str, ImageFile]], shard: Shard, filling: _Filling) -> Iterator[list[ImageFile]]:
    """The images of a shard, some at a time."""
    number, count = shard

    def own() -> Iterator[ImageFile]:
        for name, file in images:
            filling.seen += 1
            if crc32(name.encode("utf-8", "surrogatepass")) % count == number:
                yield file

    files = own()
    while part := list(islice(files, _FILES_AT_ONCE)):
        yield part


def _each(
    images: ImageSource, metadata: Iterable[Metadata] | None, pruning: _Pruning | None
) -> Iterator[tuple[str, ImageFile]]:
    """Every image, with the name by which it belongs to a shard, wherever its folder is mounted."""
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of images, whose order is known; a folder was given")
        named = _below(Path(images), None if pruning is None else pruning.closed)
    else:
        named = _listed(images, metadata)
    for name, file in named:
        if pruning is not None:
            pruning.saw(file.path)
        yield name, file


def _below(root: Path, closed: list[str] | None) -> Iterator[tuple[str, ImageFile]]:
    if root.is_file():
        raise DatasetError(f"{root} is a file; give its folder, or a list of files: [{str(root)!r}]")
    for path in walk_images(root, unreadable=closed):
        below = path.relative_to(root)
        yield below.as_posix(), ImageFile(str(path), {"folder": below.parent.as_posix()})


def _listed(images: ReIDSplit | Iterable[Any], metadata: Iterable[Metadata] | None) -> Iterator[tuple[str, ImageFile]]:
    entries = images.records if isinstance(images, ReIDSplit) else images
    known = repeat({}) if metadata is None else metadata
    for entry, more in zip(entries, known, strict=metadata is not None):
        (file,) = find_images([entry], metadata=[more])
        yield file.path, file
