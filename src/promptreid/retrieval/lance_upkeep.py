"""Keeps a store in order: joins files, builds and refreshes indexes, and describes its state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from promptreid.retrieval.lance_connection import committed, in_our_words
from promptreid.retrieval.lance_filters import key_of
from promptreid.retrieval.lance_store import AUDIT, FEW, IMAGES, REMOVED, LanceStore, index_partitions

# A list of the index of features has about so many images; with twice as many as planned it is built again.
_LIST_IMAGES = 400
_OUTGROWN = 2
# Parts of an index, of which each search looks into every one.
_MOST_PARTS = 8
# Versions that another process may still be reading or writing.
KEPT = timedelta(hours=1)


@dataclass(frozen=True)
class StoreInfo:
    """The state of a store.

    Attributes:
        url: Where it is.
        images: How many.
        dimensions: Of a feature.
        storage: float32 or float16.
        model: The name of the model that encoded the images.
        calibrated: Whether there is a calibrated threshold.
        keys: Of metadata.
        fragments: Files of images and features; many small ones slow a search.
        deleted: Removed images whose bytes are still in files.
        indexed: Images in the index of features; 0 without one.
        partitions: Lists of that index.
        versions: Versions that can still be read.
        num_bytes: All files.
    """

    url: str
    images: int
    dimensions: int
    storage: str
    model: str | None
    calibrated: bool
    keys: tuple[str, ...]
    fragments: int
    deleted: int
    indexed: int
    partitions: int
    versions: int
    num_bytes: int


def describe(store: LanceStore) -> StoreInfo:
    """The state of a store."""
    header, data = store.header, store.place.dataset(IMAGES)
    with in_our_words(store.place.url):
        fragments = data.get_fragments()
        indexed = [index.num_rows_indexed for index in data.describe_indices() if _is_of_features(index)]
        return StoreInfo(
            url=store.place.url,
            images=data.count_rows(),
            dimensions=header["dimensions"],
            storage=header["storage"],
            model=_model_name(header),
            calibrated=bool(header.get("calibration")),
            keys=tuple(store.keys),
            fragments=len(fragments),
            deleted=sum(fragment.num_deletions for fragment in fragments),
            indexed=sum(indexed),
            partitions=index_partitions(data) or 0,
            versions=len(data.versions()),
            num_bytes=sum(sum(batch["size_bytes"].to_pylist()) for batch in data.all_files()),
        )


def _model_name(header: Mapping[str, Any]) -> str | None:
    """The name by which the command line loads the model, else that of its base."""
    noted = header.get("notes", {}).get("model")
    name = noted.get("model") if isinstance(noted, dict) else None
    return name if isinstance(name, str) else (header.get("model") or {}).get("name")


def _is_of_features(index: Any) -> bool:
    return list(index.field_names) == ["vector"]


def optimize(store: LanceStore, *, keep: timedelta = KEPT) -> StoreInfo:
    """Join small files, build or refresh the indexes, and delete versions that nobody can be reading any more.

    Let one process do this from time to time, and after many additions; others may search and write. Where they
    are faster, it tries again.

    Args:
        store: The store.
        keep: Versions of this age stay.

    Raises:
        StoreError: The store cannot be reached, or others are faster every time.
    """
    url = store.place.url
    committed(url, lambda: store.place.dataset(IMAGES).optimize.compact_files())
    for column in ["key", *filter(key_of, store.columns)]:
        committed(url, lambda name=column: index_column(store.place.dataset(IMAGES), name))
    committed(url, lambda: index_features(store.place.dataset(IMAGES)))
    committed(url, lambda: _refresh_indexes(store.place.dataset(IMAGES)))
    if store.header.get("audit"):  # each search has added a file to it
        committed(url, lambda: store.place.dataset(AUDIT).optimize.compact_files())
        committed(url, lambda: store.place.dataset(AUDIT).cleanup_old_versions(keep))
    for name in (IMAGES, REMOVED):
        committed(url, lambda table=name: store.place.dataset(table).cleanup_old_versions(keep))
    store.place.make_private(IMAGES, REMOVED, AUDIT)
    return describe(store)


def _refresh_indexes(data: Any) -> None:
    """Take new images into the indexes, as a part of their own; many parts become one."""
    for index in data.describe_indices():
        if index.num_rows_indexed < data.count_rows():
            merged = _MOST_PARTS if len(index.segments) >= _MOST_PARTS else 0
            data.optimize.optimize_indices(num_indices_to_merge=merged, index_names=[index.name])


def index_column(data: Any, column: str, *, replace: bool = False) -> None:
    """Index keys or metadata, so that a filter does not read them all."""
    known = {tuple(index.field_names) for index in data.describe_indices()}
    if replace or (column,) not in known:
        data.create_scalar_index(column, "BTREE", name=f"{column}_index", replace=True)


def index_features(data: Any, *, replace: bool = False) -> None:
    """Index features where there are so many that comparing all would take longer."""
    images, partitions = data.count_rows(), index_partitions(data)
    if images <= FEW:
        return
    wanted = math.ceil(images / _LIST_IMAGES)
    if replace or partitions is None or wanted > _OUTGROWN * partitions:
        data.create_index("vector", "IVF_SQ", name="vector_index", metric="cosine", num_partitions=wanted, replace=True)
