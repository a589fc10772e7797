"""Keeps a store in order: joins files, builds and refreshes indexes, erases for good and proves it."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptreid.retrieval.filters import Where
from promptreid.retrieval.lance_engine import committed, in_our_words, require_lance
from promptreid.retrieval.lance_filters import key_of, quoted
from promptreid.retrieval.lance_removal import chosen_keys, passing_keys, remember_removed
from promptreid.retrieval.lance_store import AUDIT, FEW, IMAGES, REMOVED, LanceStore, index_partitions
from promptreid.retrieval.removal import is_gone

# A list of the index of features has about so many images; with twice as many as planned it is built again.
_LIST_IMAGES = 400
_OUTGROWN = 2
# Parts of an index, of which each search looks into every one.
_MOST_PARTS = 8
# Versions that another process may still be reading or writing.
KEPT = timedelta(hours=1)
# Erased images whose bytes are looked for in files; and the bytes of a feature that are looked for.
_SOUGHT, _SOUGHT_BYTES = 64, 32
_BLOCK_BYTES = 2**24
_HINT = "_versions/latest_version_hint.json"


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
            model=(header.get("model") or {}).get("name"),
            calibrated=bool(header.get("calibration")),
            keys=tuple(store.keys),
            fragments=len(fragments),
            deleted=sum(fragment.num_deletions for fragment in fragments),
            indexed=sum(indexed),
            partitions=index_partitions(data) or 0,
            versions=len(data.versions()),
            num_bytes=sum(sum(batch["size_bytes"].to_pylist()) for batch in data.all_files()),
        )


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
        committed(url, lambda name=column: _index_column(store.place.dataset(IMAGES), name))
    committed(url, lambda: _index_features(store.place.dataset(IMAGES)))
    committed(url, lambda: _refresh_indexes(store.place.dataset(IMAGES)))
    if store.header.get("audit"):  # each search has added a file to it
        committed(url, lambda: store.place.dataset(AUDIT).optimize.compact_files())
        committed(url, lambda: store.place.dataset(AUDIT).cleanup_old_versions(keep))
    for name in (IMAGES, REMOVED):
        committed(url, lambda table=name: store.place.dataset(table).cleanup_old_versions(keep))
    store.place.make_private()
    return describe(store)


def _refresh_indexes(data: Any) -> None:
    """Take new images into the indexes, as a part of their own; many parts become one."""
    for index in data.describe_indices():
        if index.num_rows_indexed < data.count_rows():
            merged = _MOST_PARTS if len(index.segments) >= _MOST_PARTS else 0
            data.optimize.optimize_indices(num_indices_to_merge=merged, index_names=[index.name])


def _index_column(data: Any, column: str, *, replace: bool = False) -> None:
    """Index keys or metadata, so that a filter does not read them all."""
    known = {tuple(index.field_names) for index in data.describe_indices()}
    if replace or (column,) not in known:
        data.create_scalar_index(column, "BTREE", name=f"{column}_index", replace=True)


def _index_features(data: Any, *, replace: bool = False) -> None:
    """Index features where there are so many that comparing all would take longer."""
    images, partitions = data.count_rows(), index_partitions(data)
    if images <= FEW:
        return
    wanted = math.ceil(images / _LIST_IMAGES)
    if replace or partitions is None or wanted > _OUTGROWN * partitions:
        data.create_index("vector", "IVF_SQ", name="vector_index", metric="cosine", num_partitions=wanted, replace=True)


@dataclass(frozen=True)
class Erasure:
    """The result of an erasure.

    Attributes:
        images: How many were erased.
        proven: Whether nothing is left of them, as far as can be found out.
        left: What is left, in words; empty if nothing is.
        searched_bytes: Bytes of files that were searched for the features and keys of what was erased; 0 where they
            are not on this machine.
    """

    images: int
    proven: bool
    left: tuple[str, ...]
    searched_bytes: int


def erase(
    store: LanceStore,
    keys: Sequence[str] = (),
    *,
    where: Where | None = None,
    older_than: date | timedelta | None = None,
    alone: bool = False,
    remember: bool = True,
) -> Erasure:
    """Remove images and every byte of them, and prove that nothing is left.

    What holds them is written again without them: files of features, indexes and all older versions. The proof is in
    the table's description (no version but the newest, no removed row in any file, no file that it does not name, no
    index with more entries than images) and, where the files are on this machine, in their bytes.

    Args:
        store: The store.
        keys: The images; those that were erased before may be named again, to complete and prove that.
        where: Instead, all images with these metadata.
        older_than: Instead, or of those, the images from before this date, or older than this age.
        alone: No other process is writing, so files that a killed one left, which may hold the images, go too.
        remember: Keep digests of the keys, so that indexing leaves the images out from now on; with `older_than` only
            of those whose file is still there.

    Raises:
        KeyError: The store has no such image; then none is erased.
        ValueError: No image passes the filter, or the time of one is unknown; then none is erased.
        StoreError: The store cannot be reached, others change it all the time, or the audit log cannot be written.
    """
    erased = (
        chosen_keys(store, keys) if where is None and older_than is None else passing_keys(store, where, older_than)
    )
    sought = _needles(store, erased)
    if erased:
        store.log_action("remove", images=len(erased))
        if remember:
            remember_removed(store, erased if older_than is None else [key for key in erased if not is_gone(key)])
        store.delete_keys(erased)
    rewrite(store, alone=alone)
    left = _remains(store, erased)
    searched, found = _search_bytes(store, sought)
    left += [f"bytes of an erased image are in {name}" for name in found]
    return Erasure(len(erased), not left, tuple(left), searched)


def remove(store: LanceStore, keys: Sequence[str] = (), **options: Any) -> int:
    """Erase images, and warn if it cannot be proven that nothing is left; the arguments are those of `erase`.

    Returns:
        How many were erased.
    """
    done = erase(store, keys, **options)
    if not done.proven:
        left = "; ".join(done.left)
        warnings.warn(f"not proven that nothing is left of {done.images} images: {left}", stacklevel=3)
    return done.images


def rewrite(store: LanceStore, *, alone: bool) -> None:
    """Write everything that holds removed images again without them, and delete what there was."""
    url = store.place.url

    def compact(data: Any) -> None:
        data.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)

    committed(url, lambda: compact(store.place.dataset(IMAGES)))
    for column in _stale_indexes(store):
        committed(url, lambda name=column: _rebuild(store.place.dataset(IMAGES), name))
    # The newest commit names what it removed, unless there is another after it.
    store.change_header()
    for name in (IMAGES, REMOVED):
        committed(
            url,
            lambda table=name: store.place.dataset(table).cleanup_old_versions(timedelta(0), delete_unverified=alone),
        )
    store.place.make_private()


def _rebuild(data: Any, column: str) -> None:
    if column != "vector":
        _index_column(data, column, replace=True)
    elif data.count_rows() > FEW:
        _index_features(data, replace=True)
    else:
        data.drop_index("vector_index")


def _stale_indexes(store: LanceStore) -> list[str]:
    """Columns whose index has entries of removed images: those of a file of which nothing is left stay in it."""
    data, stale = store.place.dataset(IMAGES), []
    with in_our_words(store.place.url):
        for index in data.describe_indices():
            entries = sum(_entries(store, str(segment.uuid)) for segment in index.segments)
            if entries > index.num_rows_indexed:
                stale.append(str(index.field_names[0]))
    return stale


def _entries(store: LanceStore, uuid: str) -> int:
    """How many entries the files of an index have."""
    require_lance()
    from importlib import import_module

    reader: Any = import_module("lance.file").LanceFileReader
    folder, entries = f"_indices/{uuid}/", 0
    for name in ("auxiliary.idx", "page_data.lance"):
        path = f"{store.place.table(IMAGES)}/{folder}{name}"
        if store.place.folder is not None and not os.path.exists(path):
            continue
        try:
            entries += int(reader(path, storage_options=store.place.options or None).metadata().num_rows)
        except (OSError, ValueError, RuntimeError) as error:
            if "not found" not in str(error).lower():
                raise
    return entries


def _remains(store: LanceStore, erased: Sequence[str]) -> list[str]:
    """The remains of erased images, according to the table's description."""
    left: list[str] = []
    present = store.stamps(erased)
    if present:
        left.append(f"{len(present)} images were added again during the erasure")
    data = store.place.dataset(IMAGES)
    with in_our_words(store.place.url):
        if len(data.versions()) > 1:
            left.append(f"{len(data.versions()) - 1} older versions, made during the erasure; erase again")
        if removed := sum(fragment.num_deletions for fragment in data.get_fragments()):
            left.append(f"{removed} removed images in files, by other processes during the erasure; erase again")
        named = {path for batch in data.tracked_files() for path in batch["path"].to_pylist()}
        files = {path for batch in data.all_files() for path in batch["path"].to_pylist()}
    if unnamed := files - named - {_HINT}:
        left.append(
            f"{len(unnamed)} files of writers that are at work or were killed, which may hold the images; when nobody "
            "writes, erase with alone=True"
        )
    return left + [f"the index of {column} has entries of removed images" for column in _stale_indexes(store)]


def _needles(store: LanceStore, keys: Sequence[str]) -> list[tuple[bytes, bytes, NDArray[Any]]]:
    """Of some images, what is looked for in files: the key and the beginning of the feature; and the whole feature."""
    if store.place.folder is None or not keys:
        return []
    some = keys[:: max(1, len(keys) // _SOUGHT)][:_SOUGHT]
    condition = f"key IN ({', '.join(map(quoted, some))})"
    found: list[tuple[bytes, bytes, NDArray[Any]]] = []
    for batch in store.scan(["key", "vector"], condition):
        width = len(batch["vector"][0])
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        for key, vector in zip(batch["key"].to_pylist(), vectors, strict=True):
            found.append((key.encode(), vector.tobytes()[:_SOUGHT_BYTES], vector))
    return found


def _search_bytes(store: LanceStore, sought: Sequence[tuple[bytes, bytes, NDArray[Any]]]) -> tuple[int, list[str]]:
    """Bytes that were searched, and files that hold something of what is looked for and of no image that is left."""
    searched, found = 0, []
    if not sought:
        return 0, []
    for path in sorted(Path(store.place.table(IMAGES)).rglob("*")):
        if not path.is_file():
            continue
        for key, feature, vector in sought:
            has_feature, has_key = _has(path, feature), _has(path, key)
            if (has_feature and not _has_twin(store, vector)) or (has_key and not _is_in_other_key(store, key)):
                found.append(str(path.relative_to(store.place.table(IMAGES))))
                break
        searched += path.stat().st_size
    return searched, found


def _has(path: Path, needle: bytes) -> bool:
    return any(needle in block for block in _blocks(path, len(needle)))


def _blocks(path: Path, overlap: int) -> Iterator[bytes]:
    """A file in blocks, each with the end of the one before."""
    with path.open("rb") as stream:
        end = b""
        while block := stream.read(_BLOCK_BYTES):
            yield end + block
            end = block[-overlap:]


def _has_twin(store: LanceStore, vector: NDArray[Any]) -> bool:
    """Whether an image that is left has the same feature, as a copy of the file has."""
    import torch

    query = torch.from_numpy(vector.astype(np.float32))[None]
    hits = store.nearest(torch.nn.functional.normalize(query, dim=-1), 1, exact=True)[0]
    return bool(hits) and hits[0].score > 1 - 1e-5


def _is_in_other_key(store: LanceStore, key: bytes) -> bool:
    """Whether the key of an image that is left contains this one."""
    condition = f"contains(key, '{key.decode().replace(chr(39), chr(39) * 2)}')"
    return any(batch.num_rows for batch in store.scan(["key"], condition, limit=1))
