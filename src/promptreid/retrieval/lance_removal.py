"""Finds the keys of images to remove from a store, and of those that were removed."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from hashlib import blake2b
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptreid.retrieval.filters import Where
from promptreid.retrieval.lance_engine import committed, in_our_words
from promptreid.retrieval.lance_filters import from_cell, from_stored, key_of, quoted, sql_filter, to_stored
from promptreid.retrieval.lance_store import REMOVED, LanceStore
from promptreid.retrieval.removal import (
    Images,
    image_number,
    image_times,
    is_pattern,
    listed_images,
    matching_paths,
    moment_before,
    older,
)


def named_keys(store: LanceStore, images: Images | None) -> list[str]:
    """The keys of images that are named by number, key, path or pattern of paths.

    Raises:
        KeyError: A number or a pattern matches no image.
    """
    given = [] if images is None else listed_images(images)
    names = [os.fsdecode(image) for image in given if isinstance(image, str | bytes | os.PathLike)]
    known = set(store.stamps([form for name in names for form in (name, os.path.abspath(name))]))
    removed = removed_digests(store) if not known.issuperset(names) else frozenset[str]()
    keys: list[str] = []
    for image in given:
        if isinstance(image, str | bytes | os.PathLike):
            name = os.fsdecode(image)
            forms = (name, os.path.abspath(name))
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
    begins = (re.split(r"[*?\[]", form)[0] for form in (pattern, os.path.abspath(pattern)))
    keys = _keys_where(store, " OR ".join(f"starts_with(key, {quoted(begin)})" for begin in begins))
    by_path = {os.path.abspath(key): key for key in keys}
    return [by_path[path] for path in matching_paths(by_path, pattern)]


def _keys_where(store: LanceStore, condition: str) -> list[str]:
    return [from_stored(key) for batch in store.scan(["key"], condition) for key in batch["key"].to_pylist()]


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
        raise ValueError(
            f"no image of the store passes {dict(where) if isinstance(where, Mapping) else where}; nothing was erased. "
            "A search with the same filter names the values that images have"
        )
    return keys


def _times(batch: Any, columns: Sequence[str]) -> NDArray[np.float64]:
    """When the images of a batch were made, by these columns of times or their file."""
    known: list[Any] = [None] * batch.num_rows
    for name in columns:
        _, kind = key_of(name) or ("", "text")
        for row, cell in enumerate(batch[name].to_pylist()):
            known[row] = known[row] if cell is None else from_cell(cell, kind)
    return image_times(known, batch["modified_ns"].to_numpy())


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
    store.place.make_private()


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
        known = removed & {key_digest(name), key_digest(os.path.abspath(name))}
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
