"""A gallery in a store: filled by any number of processes, searched as a `Gallery` is."""

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from promptreid.data.images import walk_images
from promptreid.data.records import ReIDSplit
from promptreid.errors import DatasetError, StoreError, listed, printable
from promptreid.evaluation.calibration import Calibration, calibrate_threshold
from promptreid.evaluation.metrics import Array, as_tensor
from promptreid.evaluation.splits import encode_split
from promptreid.model.encoding import EncodingOptions, encode_images
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.editing import Changes, ImageFile, ImageSource, check_keys, find_images, known_metadata
from promptreid.retrieval.encode import Query, check_identity, encode_queries, is_one_query, model_identity, needed
from promptreid.retrieval.filters import Metadata, Where, plain_metadata
from promptreid.retrieval.gallery_store import GalleryStore, checked_count, lowest_score
from promptreid.retrieval.lance_filters import column_name, from_cell, key_of
from promptreid.retrieval.lance_store import LanceStore, Storage, renumbered
from promptreid.retrieval.lance_upkeep import (
    KEPT,
    Erasure,
    StoreInfo,
    describe,
    erase,
    forget_removed,
    key_digest,
    optimize,
    remember_removed,
    removed_digests,
)
from promptreid.retrieval.table import ImageTable, file_stamp

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Many small commits slow a search tenfold: so many rows, or all there are after so many seconds.
COMMIT_ROWS, COMMIT_SECONDS = 5_000, 5.0
# Files that the store is asked for at a time.
_FILES_AT_ONCE = 10_000
# Rows that are looked at to name values of metadata in an error.
_SAMPLE = 10_000

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
    """A shard that there is.

    Raises:
        ValueError: There is none of that number.
    """
    number, count = shard
    if not 0 <= number < count:
        raise ValueError(f"shard is {number} of {count}, expected a number from 0 to {max(0, count - 1)}")
    return shard


class StoredGallery:
    """Features of images in a store, to be searched and filled by any number of processes and machines.

    What `Gallery` is in a folder of one machine: the same sentences, filters and thresholds, on LanceDB's tables.

    Attributes:
        store: The table.
        model: Encodes queries and images; `None` allows only features.

    Example:
        >>> gallery = StoredGallery.create("s3://bucket/crops", model)  # doctest: +SKIP
        >>> gallery.update("crops/", shard=(0, 4))  # doctest: +SKIP
        >>> gallery.search("a woman in a red coat", k=5)  # doctest: +SKIP
    """

    def __init__(self, store: LanceStore, model: PromptedCLIP | None = None) -> None:
        """Use `create` or `load`.

        Raises:
            CheckpointError: The store was encoded by another model.
            StoreError: Its dimension is not the model's.
        """
        header = store.header
        if model is not None:
            check_identity(header.get("model"), model, source=store.place.url)
            if model.embed_dim != store.dimensions:
                raise StoreError(
                    f"{store.place.url} has features of {store.dimensions} dimensions, and the model gives "
                    f"{model.embed_dim}; load the model that encoded it"
                )
        try:
            _calibration(header)
        except TypeError as error:
            raise StoreError(f"{store.place.url} has a damaged calibration ({error}); calibrate it again") from error
        self.store = store
        self.model = model

    @classmethod
    def create(
        cls,
        url: str | Path,
        model: PromptedCLIP,
        *,
        storage: Storage = "float32",
        notes: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> "StoredGallery":
        """Make an empty store. Of several processes that do so at once one makes it, and the others open it.

        Args:
            url: A folder, or `s3://bucket/name` or `gs://bucket/name`.
            model: The model.
            storage: `"float16"` takes half the room.
            notes: Whatever is to be kept with it, as JSON holds it.
            storage_options: LanceDB's for the object store, over what the environment says.

        Raises:
            FileExistsError: There is a store already.
            StoreError: The place cannot be reached or refuses.
            MissingExtraError: LanceDB is not installed.
        """
        header = {"model": model_identity(model), "notes": plain_metadata(notes or {}, "notes")}
        dimensions = model.embed_dim
        store = LanceStore.create(
            url, dimensions=dimensions, storage=storage, header=header, storage_options=storage_options
        )
        return cls(store, model)

    @classmethod
    def load(
        cls, url: str | Path, model: PromptedCLIP | None = None, *, storage_options: Mapping[str, str] | None = None
    ) -> "StoredGallery":
        """Open a store.

        Raises:
            StoreError: There is none, it cannot be reached, or it is of another format or dimension.
            CheckpointError: It was encoded by another model.
        """
        return cls(LanceStore.open(url, storage_options=storage_options), model)

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {self.store.dimensions} dimensions, {self.url})"

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.place.url

    @property
    def keys(self) -> list[str]:
        """The keys of metadata that images may have."""
        return self.store.keys

    @property
    def notes(self) -> dict[str, Any]:
        """What is kept with the store; a copy: `store.change_header(notes=...)` writes."""
        return dict(self.store.header.get("notes", {}))

    @property
    def calibration(self) -> Calibration | None:
        """The calibrated threshold."""
        return _calibration(self.store.header)

    def update(
        self,
        images: ImageSource,
        *,
        metadata: Iterable[Metadata] | None = None,
        shard: Shard | None = None,
        **options: "Unpack[EncodingOptions]",
    ) -> Changes:
        """Encode images that are new or whose file has changed, and put them in every few seconds.

        What was put in before it was killed is not encoded again. Images that were erased stay out. A folder or an
        iterator is never held in memory.

        Args:
            images: A folder, a split, or paths or records.
            metadata: What is known of each, with a list or an iterator; those of a folder know their sub-folder.
            shard: Only the part `(number, count)` of them, the number from 0: the other parts are for other processes,
                which may run at the same time, on any machine that has the same folder.
            **options: Those of `Gallery.build`.

        Returns:
            What was done.

        Raises:
            DatasetError: There is no image.
            StoreUnreachableError: The network was lost; what was put in stays, and the same call resumes.
            ValueError: There is no such shard, or the store was loaded without a model.
        """
        model, part = needed(self.model), check_shard(shard or (0, 1))
        removed, commits, counted = removed_digests(self.store), _Commits(self.store), _Counted()
        for files in _parts_of(_each(images, metadata), part, counted):
            self._update(model, files, removed, commits, counted, options)
        commits.flush()
        if counted.seen == 0:
            raise DatasetError(f"{images} has no images in it or below")
        _warn_unreadable(counted)
        return Changes(
            added=counted.added,
            changed=counted.changed,
            unchanged=counted.unchanged,
            unreadable=tuple(counted.unreadable),
            excluded=tuple(counted.excluded),
        )

    def _update(
        self,
        model: PromptedCLIP,
        files: Sequence[ImageFile],
        removed: frozenset[str],
        commits: "_Commits",
        counted: "_Counted",
        options: EncodingOptions,
    ) -> None:
        """Encode those of some files that are new or have changed."""
        given = list({os.path.abspath(file.path): file for file in files}.items())
        known = self.store.stamps([path for path, _ in given])
        kept = [(path, file) for path, file in given if key_digest(path) not in removed]
        counted.excluded += [path for path, _ in given if key_digest(path) in removed]
        wanted = [(path, file) for path, file in kept if known.get(path) != file_stamp(path)]
        counted.unchanged += len(kept) - len(wanted)
        # What changes while it is encoded must look changed the next time, so files are looked at before.
        paths = [path for path, _ in wanted]
        table = renumbered(ImageTable.of(paths, metadata=[file.metadata for _, file in wanted]))
        for batch in encode_images(model, paths, **options):
            old = [paths[position] in known for position in batch.positions]
            counted.changed += sum(old)
            counted.added += len(old) - sum(old)
            if batch.positions:
                commits.put(table.select(batch.positions), batch.features, replaces=any(old))
            lost = [paths[position] for position in batch.unreadable]
            counted.unreadable += lost
            # Features of what a file was before must not be found.
            self.store.delete_keys([path for path in lost if path in known and file_stamp(path)[0] >= 0])

    def add_features(self, features: Array, keys: Sequence[str], *, metadata: Sequence[Metadata] | None = None) -> None:
        """Add features that were made elsewhere by the model of this store; those of known keys are left as they are.

        Args:
            features: The features, of unit length.
            keys: What to call each image: a path, or any name.
            metadata: What is known of each.

        Shape:
            - features: (images, E) floating point

        Raises:
            ValueError: Features are not finite, not of unit length or of another shape, or a key is given twice.
        """
        features = as_tensor(features, "features")
        keys = check_keys(keys, len(features), "features")
        table = renumbered(ImageTable.of_keys(keys, metadata=known_metadata(keys, metadata)))
        for rows in torch.arange(len(keys)).split(COMMIT_ROWS):
            self.store.add(table.select(rows.tolist()), features[rows])

    def search(
        self,
        query: Query | Array | list[Query] | list[str],
        k: int = 10,
        *,
        threshold: float | str | None = None,
        where: Where | None = None,
        exact: bool = False,
    ) -> Any:
        """Find the images most similar to a query, or to each of several; as `Gallery.search`.

        Args:
            query: A sentence, an image or features; or a list of them, for a list of results.
            k: How many at most.
            threshold: Leave out scores below it; `"calibrated"` takes the one that `calibrate` chose.
            where: Search only images with these metadata: values, lists, ranges and prefixes.
            exact: Compare every image instead of those that the index proposes.

        Returns:
            Hits, the best first. Their `index` is -1: a store has no order.

        Raises:
            ValueError: The store is empty, no image passes `where` or it has a function; and as `Gallery.search`.
            StoreError: The store cannot be read.
        """
        lowest, k = lowest_score(self.calibration, threshold), checked_count(k)
        query = as_tensor(query, "query") if isinstance(query, np.ndarray) else query
        queries = encode_queries(self.model, query, dimensions=self.store.dimensions)
        found = self.store.nearest(queries, k, where=where, exact=exact)
        if not any(found):
            self.check_filter(where)
        kept = [[hit for hit in hits if hit.score >= lowest] for hits in found]
        return kept[0] if is_one_query(query) else kept

    def check_filter(self, where: Where | None) -> None:
        """Refuse a filter that no image passes.

        Raises:
            ValueError: No image passes; names what is unknown, and what is known. Or the store is empty.
        """
        if where is not None and self.store.count(where):
            return
        if not len(self):
            raise ValueError("the store is empty; add images first")
        for key, value in (where or {}).items() if isinstance(where, Mapping) else ():
            if key not in self.keys:
                raise ValueError(f"no image of the store has {key}; known are: {', '.join(self.keys) or 'none'}")
            if not self.store.count({key: value}):
                known = listed(self._values(key), most=20)
                raise ValueError(f"no image of the store has {key} {value}; known are, among others: {known}")
        if where is not None:
            raise ValueError("no image of the store passes the filter; it was not searched")

    def _values(self, key: str) -> list[str]:
        """Some values of a key."""
        columns = {column_name(key, "text"), column_name(key, "integer")} & set(self.store.columns)
        found: dict[str, None] = {}
        for column in sorted(columns):
            _, kind = key_of(column) or (key, "text")
            for batch in self.store.scan([column], f"{column} IS NOT NULL", limit=_SAMPLE):
                found |= dict.fromkeys(str(from_cell(value, kind)) for value in batch[column].unique().to_pylist())
        return list(found)

    def calibrate(self, split: ReIDSplit, *, false_alarm_rate: float = 0.05, progress: bool = True) -> Calibration:
        """Choose the threshold of `search(threshold="calibrated")` on a labelled split; as `Gallery.calibrate`."""
        encoded = encode_split(needed(self.model), split, progress=progress)
        chosen = calibrate_threshold(
            encoded.text_features,
            encoded.image_features,
            encoded.text_ids,
            encoded.image_ids,
            false_alarm_rate=false_alarm_rate,
        )
        self.store.change_header(calibration=asdict(chosen))
        return chosen

    def optimize(self, *, keep: timedelta = KEPT) -> StoreInfo:
        """Join small files and build or refresh the indexes; see `promptreid.retrieval.lance_upkeep.optimize`."""
        return optimize(self.store, keep=keep)

    def erase(
        self, images: str | Path | Iterable[str | Path] = (), *, where: Where | None = None, alone: bool = False
    ) -> Erasure:
        """Remove images and every byte of them, and prove it; see `promptreid.retrieval.lance_upkeep.erase`."""
        return erase(self.store, self._keys_of(images), where=where, alone=alone)

    def restore(self, images: str | Path | Iterable[str | Path]) -> None:
        """Let images that were erased be indexed again by the next `update`."""
        names = [os.fspath(images)] if isinstance(images, str | Path) else [os.fspath(image) for image in images]
        forget_removed(self.store, [*names, *map(os.path.abspath, names)])

    def _keys_of(self, images: str | Path | Iterable[str | Path]) -> list[str]:
        """The keys of images: as they are named, else their absolute paths."""
        names = [os.fspath(images)] if isinstance(images, str | Path) else [os.fspath(image) for image in images]
        known = self.store.stamps(names)
        return [name if name in known else os.path.abspath(name) for name in names]

    def info(self) -> StoreInfo:
        """The state of the store."""
        return describe(self.store)


def _calibration(header: Mapping[str, Any]) -> Calibration | None:
    values = header.get("calibration")
    return None if values is None else Calibration(**values)


@dataclass
class _Counted:
    """What became of images so far."""

    seen: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    unreadable: list[str] = field(default_factory=list[str])
    excluded: list[str] = field(default_factory=list[str])


def _warn_unreadable(counted: _Counted) -> None:
    if counted.unreadable:
        first = ", ".join(printable(path) for path in counted.unreadable[:10])
        count = f"{len(counted.unreadable)} of {counted.seen} images"
        warnings.warn(f"{count} cannot be read and are left out: {first}; copy them again", stacklevel=3)


class _Commits:
    """Collects rows and commits them once they are many, or have waited for long."""

    def __init__(self, store: LanceStore) -> None:
        self._store = store
        self._waiting: list[tuple[ImageTable, Tensor]] = []
        self._rows, self._replaces, self._since = 0, False, time.monotonic()

    def put(self, images: ImageTable, features: Tensor, *, replaces: bool) -> None:
        """Take rows."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((images, features))
        self._rows += len(images)
        self._replaces |= replaces
        if self._rows >= COMMIT_ROWS or time.monotonic() - self._since >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what waits."""
        if self._waiting:
            images = ImageTable.joined([table for table, _ in self._waiting])
            features = torch.cat([part for _, part in self._waiting])
            (self._store.replace if self._replaces else self._store.add)(images, features)
            self._waiting, self._rows, self._replaces = [], 0, False


def _parts_of(images: Iterable[tuple[str, ImageFile]], shard: Shard, counted: _Counted) -> Iterator[list[ImageFile]]:
    """The images of a shard, some at a time."""
    number, count = shard

    def own() -> Iterator[ImageFile]:
        for name, file in images:
            counted.seen += 1
            if crc32(name.encode("utf-8", "surrogatepass")) % count == number:
                yield file

    files = own()
    while part := list(islice(files, _FILES_AT_ONCE)):
        yield part


def _each(images: ImageSource, metadata: Iterable[Metadata] | None) -> Iterator[tuple[str, ImageFile]]:
    """Every image, with the name by which it belongs to a shard, wherever its folder is mounted."""
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of images, whose order is known; a folder was given")
        root = Path(images)
        if root.is_file():
            raise DatasetError(f"{root} is a file; give its folder, or a list of files: [{str(root)!r}]")
        for path in walk_images(root):
            below = path.relative_to(root)
            yield below.as_posix(), ImageFile(str(path), {"folder": below.parent.as_posix()})
        return
    entries = images.records if isinstance(images, ReIDSplit) else images
    known = repeat({}) if metadata is None else metadata
    for entry, more in zip(entries, known, strict=metadata is not None):
        (file,) = find_images([entry], metadata=[more])
        yield file.path, file


def copy_to_store(
    gallery: GalleryStore,
    model: PromptedCLIP | None,
    url: str | Path,
    storage_options: Mapping[str, str] | None = None,
) -> StoredGallery:
    """Copy a gallery into a new store, or complete a copy that was interrupted."""
    exact, header = gallery.exact, gallery.header
    kept = {key: header[key] for key in ("model", "calibration", "notes") if header.get(key) is not None}
    storage: Storage = "float16" if exact.dtype == torch.float16 else "float32"
    try:
        store = LanceStore.create(
            url, dimensions=exact.dimensions, storage=storage, header=kept, storage_options=storage_options
        )
    except FileExistsError:
        store = LanceStore.open(url, storage_options=storage_options)
        if store.header.get("model") != header.get("model") or store.dimensions != exact.dimensions:
            raise
    for segment in exact.segments:
        for rows in torch.arange(len(segment)).split(COMMIT_ROWS):
            images = _with_full_paths(segment.images.select(rows.tolist()))
            store.add(images, segment.features[rows.to(segment.features.device)])
    if removed := [mark["path"] for mark in header.get("removed", [])]:
        remember_removed(store, removed)
    return StoredGallery(store, model)


def _with_full_paths(images: ImageTable) -> ImageTable:
    """Images whose files are named as they are from every folder; keys of what never was a file stay."""
    sizes = images.sizes.tolist()
    paths = [os.path.abspath(path) if size >= 0 else path for path, size in zip(images.paths, sizes, strict=True)]
    return renumbered(ImageTable(paths, images.ids, images.sizes, images.modified_ns, images.metadata))
