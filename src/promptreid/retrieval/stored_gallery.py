"""A gallery in a store: filled by any number of processes, searched as a `Gallery` is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from promptreid.data.records import ReIDSplit
from promptreid.errors import StoreError, listed
from promptreid.evaluation.calibration import Calibration
from promptreid.evaluation.metrics import Array, as_tensor
from promptreid.model.encoding import EncodingOptions
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.audit import search_details
from promptreid.retrieval.editing import Changes, ImageSource, Prune, check_keys, known_metadata
from promptreid.retrieval.encode import Query, check_identity, encode_queries, is_one_query, model_identity, needed
from promptreid.retrieval.filling import Shard, fill, put_in
from promptreid.retrieval.filters import Metadata, Where, check_where, plain_metadata
from promptreid.retrieval.gallery_files import Storage
from promptreid.retrieval.gallery_state import (
    GalleryState,
    choose_threshold,
    kept_calibration,
    lowest_score,
)
from promptreid.retrieval.lance_connection import Place
from promptreid.retrieval.lance_filters import column_name, from_cell, key_of
from promptreid.retrieval.lance_removal import (
    Erasure,
    erase,
    forget_removed,
    named_keys,
    pass_on_removals,
    pattern_hint,
    remove,
)
from promptreid.retrieval.lance_store import LanceStore, has_store
from promptreid.retrieval.lance_upkeep import KEPT, StoreInfo, describe, optimize
from promptreid.retrieval.removal import Images, check_named
from promptreid.retrieval.table import ImageTable
from promptreid.values import whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Rows that are looked at to name values of metadata in an error.
_SAMPLE = 10_000


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
        self.store = store
        self.model = model
        _ = self.calibration  # refuses a damaged one

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
            notes: Anything to keep with it, as JSON holds it.
            storage_options: LanceDB's for the object store, over what the environment says.

        Raises:
            FileExistsError: There is a store already, or a gallery.
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
        """The notes kept with the store; a copy: `store.change_header(notes=...)` writes."""
        return dict(self.store.header.get("notes", {}))

    @property
    def calibration(self) -> Calibration | None:
        """The calibrated threshold."""
        return kept_calibration(self.store.header, self.url, damaged=StoreError)

    def update(
        self,
        images: ImageSource,
        *,
        metadata: Iterable[Metadata] | None = None,
        shard: Shard | None = None,
        prune: Prune = False,
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
            prune: Remove images that the store had when this began and that are not among `images`; if that is a
                folder, only those that were in it. More than a quarter, or images that may be in a folder that cannot
                be read, only `"anyway"` removes. Of several parts, that of number 0 does it.
            **options: Those of `Gallery.build`.

        Returns:
            What was done.

        Raises:
            DatasetError: There is no image, or `prune` needs to be `"anyway"`; then nothing was removed.
            StoreUnreachableError: The network was lost; what was put in stays, and the same call resumes.
            ValueError: There is no such shard, or the store was loaded without a model.
        """
        return fill(self.store, needed(self.model), images, metadata=metadata, shard=shard, prune=prune, **options)

    def add_features(self, features: Array, keys: Sequence[str], *, metadata: Sequence[Metadata] | None = None) -> None:
        """Add features that were made elsewhere by the model of this store; those of known keys are left as they are.

        What was removed or erased stays out, with a warning, until it is restored.

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
        put_in(self.store, ImageTable.of_keys(keys, metadata=known_metadata(keys, metadata)), features)

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
            StoreError: The store cannot be read, or its audit log not be written; then nothing is returned.
        """
        lowest, k = lowest_score(self.calibration, threshold, query), whole_number("k", k, minimum=1)
        if where is not None:
            check_where(where)
        query = as_tensor(query, "query") if isinstance(query, np.ndarray) else query
        queries = encode_queries(self.model, query, dimensions=self.store.dimensions)
        found = self.store.nearest(queries, k, where=where, exact=exact)
        if not any(found):
            self.check_filter(where)
        kept = [[hit for hit in hits if hit.score >= lowest] for hits in found]
        self.store.log_action("search", **search_details(query, where, kept))
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
                raise ValueError(
                    f"no image of the store has {key} {value}; known are, among others: {known}{pattern_hint(value)}"
                )
        if where is not None:
            names = ", ".join(where) if isinstance(where, Mapping) else "a function"
            raise ValueError(
                f"each condition matches some images, but no image matches all of them ({names}); drop one; the store "
                "was not searched"
            )

    def _values(self, key: str) -> list[str]:
        """Some values of a key."""
        columns = {column_name(key, "text"), column_name(key, "integer")} & set(self.store.columns)
        found: dict[str, None] = {}
        for column in sorted(columns):
            _, kind = key_of(column) or (key, "text")
            for batch in self.store.scan([column], f"{column} IS NOT NULL", limit=_SAMPLE):
                found |= dict.fromkeys(str(from_cell(value, kind)) for value in batch[column].unique().to_pylist())
        return list(found)

    def calibrate(
        self,
        split: ReIDSplit | None = None,
        *,
        sentences: Sequence[str] | None = None,
        false_alarm_rate: float = 0.05,
        progress: bool = True,
    ) -> Calibration:
        """Choose the threshold of `search(threshold="calibrated")`; as `Gallery.calibrate`."""
        chosen = choose_threshold(
            needed(self.model),
            split,
            sentences=sentences,
            false_alarm_rate=false_alarm_rate,
            best_scores=lambda queries: [found[0].score for found in self.store.nearest(queries, 1)],
            images=len(self),
            progress=progress,
        )
        self.store.change_header(calibration=asdict(chosen))
        return chosen

    def optimize(self, *, keep: timedelta = KEPT) -> StoreInfo:
        """Join small files and build or refresh the indexes; see `promptreid.retrieval.lance_upkeep.optimize`."""
        return optimize(self.store, keep=keep)

    def remove(
        self,
        images: Images | None = None,
        *,
        where: Where | None = None,
        older_than: date | timedelta | None = None,
    ) -> int:
        """Remove images and every byte of them, as `Gallery.remove` does; warns if that cannot be proven (`erase`).

        Digests of their keys are kept, so that `update` leaves them out; with `older_than` only of those whose file is
        still there.

        Args:
            images: One or several: numbers, paths, or patterns of paths in which `*` matches a part of a name and
                `**` for folders too.
            where: Instead, all images with these metadata, as in `search`.
            older_than: Instead, or of those, the images from before this date, or older than this age; the time of an
                image is that of `Gallery.remove`.

        Returns:
            How many were removed; with `older_than` it may be 0.

        Raises:
            KeyError: One of `images` is not in the store; then none is removed.
            ValueError: No image passes `where`, or the time of one is unknown; then none is removed.
            TypeError: Nothing is named, or something else than images and numbers.
            StoreError: The store or its audit log cannot be written.
        """
        check_named(images, where, older_than)
        return remove(self.store, named_keys(self.store, images), where=where, older_than=older_than)

    def keep_audit_log(self, keep: bool = True) -> None:
        """Log searches and removals from now on, by anybody who opens this store; as `Gallery.keep_audit_log`."""
        self.store.keep_audit_log(keep)

    def audit_log(self) -> list[dict[str, Any]]:
        """The log, in the order of time: when, who, the sentences and filter, how many; no images."""
        return self.store.audit_log()

    def erase(
        self,
        images: Images | None = None,
        *,
        where: Where | None = None,
        older_than: date | timedelta | None = None,
        alone: bool = False,
    ) -> Erasure:
        """`remove`, with what was found out about what is left; see `promptreid.retrieval.lance_removal.erase`."""
        check_named(images, where, older_than)
        return erase(self.store, named_keys(self.store, images), where=where, older_than=older_than, alone=alone)

    def restore(self, images: Images) -> int:
        """Forget that images were removed, so that `update` takes them in again; as `Gallery.restore`, only by path.

        Raises:
            KeyError: One was not removed; then nothing is changed.
        """
        return forget_removed(self.store, images)

    def info(self) -> StoreInfo:
        """The state of the store."""
        return describe(self.store)


def copy_to_store(
    gallery: GalleryState,
    model: PromptedCLIP | None,
    url: str | Path,
    storage_options: Mapping[str, str] | None = None,
) -> StoredGallery:
    """Copy a gallery into a new store, or complete a copy, in which what was removed since is erased."""
    exact, header = gallery.exact, gallery.header
    kept = {key: header[key] for key in ("model", "calibration", "notes") if header.get(key) is not None}
    storage: Storage = "float16" if exact.dtype == torch.float16 else "float32"
    try:
        store = LanceStore.create(
            url, dimensions=exact.dimensions, storage=storage, header=kept, storage_options=storage_options
        )
    except FileExistsError:
        if not has_store(Place.of(url, storage_options)):  # but a gallery
            raise
        store = LanceStore.open(url, storage_options=storage_options)
        if store.header.get("model") != header.get("model") or store.dimensions != exact.dimensions:
            raise
    for segment in exact.segments:
        put_in(store, segment.images.with_full_paths(), segment.features)
    pass_on_removals(store, header.get("removed", []), held=_held(gallery))
    return StoredGallery(store, model)


def _held(gallery: GalleryState) -> set[str]:
    """What the gallery holds, by every name that it may have in a store."""
    tables = [segment.images for segment in gallery.exact.segments]
    return {str(path) for table in tables for form in (table, table.with_full_paths()) for path in form.paths}
