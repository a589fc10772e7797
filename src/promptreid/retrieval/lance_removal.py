"""Removes images of a store and every byte of them, proves it, and remembers which were removed."""

import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptreid.retrieval.filters import Where
from promptreid.retrieval.lance_connection import committed, in_our_words, require_lance
from promptreid.retrieval.lance_filters import from_cell, from_stored, key_of, quoted, sql_filter, to_stored
from promptreid.retrieval.lance_store import FEW, IMAGES, REMOVED, LanceStore
from promptreid.retrieval.lance_upkeep import index_column, index_features
from promptreid.retrieval.removal import (
    Images,
    absolute_pattern,
    image_number,
    image_times,
    is_gone,
    is_pattern,
    listed_images,
    matching_paths,
    moment_before,
    older,
)

# Erased images whose bytes are looked for in files; and the bytes of a feature that are looked for.
_SOUGHT, _SOUGHT_BYTES = 64, 32
_BLOCK_BYTES = 2**24
# The letters of a pattern before the first that stands for others; `[*]` stands for itself.
_LITERAL = re.compile(r"(?:[^*?\[]|\[[*?[]\])*")
_HINT = "_versions/latest_version_hint.json"


def named_keys(store: LanceStore, images: Images | None) -> list[str]:
    """The keys of images that are named by number, key, path or pattern of paths.

    Raises:
        KeyError: A number or a pattern matches no image.
    """
    given = [] if images is None else listed_images(images)
    names = [os.fsdecode(image) for image in given if isinstance(image, str | bytes | os.PathLike)]
    known = set(store.stamps([form for name in names for form in key_forms(name)]))
    removed = removed_digests(store) if not known.issuperset(names) else frozenset[str]()
    keys: list[str] = []
    for image in given:
        if isinstance(image, str | bytes | os.PathLike):
            name = os.fsdecode(image)
            forms = key_forms(name)
            there = [form for form in forms if form in known or key_digest(form) in removed]
            found = there[:1] or (_matching_keys(store, name) if is_pattern(name) else [forms[-1]])
        else:
            found = _keys_where(store, f"id = {image_number(image)}")
        if not found:
            raise KeyError(
                f"the store has no image {str(image)!r}; nothing was erased. Check the path, as a search prints it"
            )
        keys += found
    return list(dict.fromkeys(keys))


def _matching_keys(store: LanceStore, pattern: str) -> list[str]:
    """The keys that a pattern matches; relative ones are taken from the working folder."""
    begins = map(_beginning, (pattern, absolute_pattern(pattern)))
    keys = _keys_where(store, " OR ".join(f"starts_with(key, {quoted(begin)})" for begin in begins))
    by_path = {os.path.abspath(key): key for key in keys}
    return [by_path[path] for path in matching_paths(by_path, pattern)]


def _beginning(pattern: str) -> str:
    """How everything that a pattern matches begins."""
    literal = _LITERAL.match(pattern)
    return re.sub(r"\[(.)\]", r"\1", literal[0] if literal else "")


def _keys_where(store: LanceStore, condition: str) -> list[str]:
    return [from_stored(key) for batch in store.scan(["key"], condition) for key in batch["key"].to_pylist()]


def keys_of_paths(store: LanceStore, paths: Collection[str]) -> list[str]:
    """The keys of the images that a gallery calls by these absolute paths; those that are no files may be relative."""
    paths = frozenset(paths)
    named = [key for key in _keys_where(store, "size < 0") if key_forms(key)[-1] in paths]
    return list(dict.fromkeys([*store.stamps(list(paths)), *named]))


def chosen_keys(store: LanceStore, keys: Sequence[str]) -> list[str]:
    """Those of the keys that are there; the others must have been removed."""
    if not keys:
        raise ValueError("nothing is named to be erased; give images, or where=")
    known = store.stamps(keys)
    absent = [key for key in keys if key not in known]
    removed = removed_digests(store) if absent else frozenset[str]()
    for key in absent:
        if key_digest(key) not in removed:
            raise KeyError(f"the store has no image {key!r}; nothing was erased. Check the path, as a search prints it")
    return list(known)


def passing_keys(store: LanceStore, where: Where | None, older_than: date | timedelta | None) -> list[str]:
    """The keys of the images that pass a filter and are of that age."""
    condition = None if where is None else sql_filter(where, store.columns)
    limit = None if older_than is None else moment_before(older_than)
    times = [name for name in store.columns if (key_of(name) or ("",))[0] == "time"]
    keys: list[str] = []
    for batch in store.scan(["key", "modified_ns", *times], condition):
        found = batch["key"].to_pylist()
        if limit is not None:
            old = older(_times(batch, times), limit)
            found = [key for key, is_old in zip(found, old, strict=True) if is_old]
        keys += map(from_stored, found)
    if not keys and limit is None:
        values = dict(where) if isinstance(where, Mapping) else {}
        hint = next(filter(None, map(pattern_hint, values.values())), "")
        raise ValueError(
            f"no image of the store passes {values}; nothing was erased. A search with the same filter names the "
            f"values that images have{hint}"
        )
    return keys


def pattern_hint(value: Any) -> str:
    """What is said of a value that looks like a pattern, which a store takes for what it is."""
    values: list[Any] = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    if not any(isinstance(one, str) and is_pattern(one) for one in values):
        return ""
    return "; of patterns a store takes only a beginning, such as Prefix('cam'), or 'cam*' on the command line"


def _times(batch: Any, columns: Sequence[str]) -> NDArray[np.float64]:
    """When the images of a batch were made, by these columns of times or their file."""
    known: list[Any] = [None] * batch.num_rows
    for name in columns:
        _, kind = key_of(name) or ("", "text")
        for row, cell in enumerate(batch[name].to_pylist()):
            known[row] = known[row] if cell is None else from_cell(cell, kind)
    return image_times(known, batch["modified_ns"].to_numpy())


def key_forms(name: str) -> tuple[str, ...]:
    """The keys that an image of this name may have: the name, and the full path where that is relative."""
    try:
        return name, os.path.abspath(name)
    except OSError:  # the working folder was deleted
        return (name,)


def key_digest(key: str) -> str:
    """The digest that is kept of the key of an erased image."""
    return blake2b(to_stored(key).encode(), digest_size=16).hexdigest()


def remember_removed(store: LanceStore, keys: Sequence[str]) -> None:
    """Keep digests of keys that were removed."""
    arrow: Any = import_module("pyarrow")
    data = store.place.dataset(REMOVED)
    digests = list(dict.fromkeys(map(key_digest, keys)))
    rows = arrow.Table.from_arrays([arrow.array(digests, arrow.string())], schema=data.schema)
    merge = data.merge_insert("digest").when_not_matched_insert_all()
    committed(store.place.url, lambda: merge.execute(rows))
    store.place.make_private(REMOVED)


# Before the `id` of a removal that was passed on, and its path; no path begins so.
_PASSED_ON = "passed on"


def pass_on_removals(store: LanceStore, marks: Iterable[Mapping[str, Any]], *, held: Collection[str]) -> None:
    """Erase and remember what a gallery removed, once for each removal, so that what is restored afterwards stays.

    Args:
        store: The store.
        marks: What the gallery says of each image that it removed: its `path`, and the `id` of the removal.
        held: The keys of what it holds now, which stays.
    """
    # Removals by earlier versions have no `id`: of an image, one of them is passed on.
    removals = {mark["path"]: "\0".join(filter(None, (_PASSED_ON, mark.get("id"), mark["path"]))) for mark in marks}
    known = removed_digests(store) if removals else frozenset[str]()
    fresh = {path: it for path, it in removals.items() if path not in held and key_digest(it) not in known}
    if not fresh:
        return
    remember_removed(store, list(fresh))
    if there := [key for key in keys_of_paths(store, fresh) if key not in held]:
        remove(store, there)
    remember_removed(store, list(fresh.values()))  # last: an interrupted copy begins again


def forget_removed(store: LanceStore, images: Images) -> int:
    """Forget that images were removed, by key or path, so that indexing takes them in again.

    Returns:
        How many removals were forgotten.

    Raises:
        KeyError: One was not removed; then nothing is changed.
    """
    removed, found = removed_digests(store), set[str]()
    for image in listed_images(images):
        if not isinstance(image, str | bytes | os.PathLike):
            raise TypeError(f"{image!r} is {type(image).__name__}, expected an image's key or path")
        name = os.fsdecode(image)
        known = removed & set(map(key_digest, key_forms(name)))
        if not known:
            raise KeyError(f"{name!r} was not removed from the store; nothing was restored")
        found |= known
    condition = f"digest IN ({', '.join(map(quoted, sorted(found)))})"
    committed(store.place.url, lambda: store.place.dataset(REMOVED).delete(condition))
    return len(found)


def removed_digests(store: LanceStore) -> frozenset[str]:
    """The digests of the keys of all images that were removed."""
    with in_our_words(store.place.url):
        return frozenset(store.place.dataset(REMOVED).to_table()["digest"].to_pylist())


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
    store.place.make_private(IMAGES, REMOVED)


def _rebuild(data: Any, column: str) -> None:
    if column != "vector":
        index_column(data, column, replace=True)
    elif data.count_rows() > FEW:
        index_features(data, replace=True)
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
