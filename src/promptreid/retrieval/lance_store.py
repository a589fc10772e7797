"""A gallery's images and features in a LanceDB table: a folder or an object store, for any number of processes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from promptreid.defaults import STORE_TABLE, is_gallery, is_store
from promptreid.errors import StoreError, shell_word
from promptreid.evaluation.metrics import Array, as_tensor
from promptreid.retrieval.audit import audit_line, not_logged
from promptreid.retrieval.encode import check_features, check_unit_length
from promptreid.retrieval.filters import Where
from promptreid.retrieval.gallery_files import Storage, json_bytes
from promptreid.retrieval.lance_connection import (
    Place,
    committed,
    explained,
    in_our_words,
    is_gone,
    make_store_folder,
    require_lance,
)
from promptreid.retrieval.lance_filters import from_stored, key_of, quoted, sql_filter
from promptreid.retrieval.lance_rows import (
    ARROW_NAMES,
    HEADER,
    STAMPS,
    VECTOR,
    arrow_rows,
    audit_schema,
    column_type,
    hits_of,
    images_schema,
    metadata_cells,
    pyarrow,
    removed_schema,
)
from promptreid.retrieval.table import Hit, ImageTable, path_hash

FORMAT = 1
IMAGES, REMOVED, AUDIT = STORE_TABLE.removesuffix(".lance"), "removed", "audit"

# Re-ranked exactly: so many times `k` images of an approximate search.
_REFINE = 10
# Lists that an approximate search looks through at most, unless a filter widens it; a store has so many at ten million
# images. The images nearest to a sentence are often in lists far from it, so that a part of the lists misses many
# (`benchmarks/growth_store.py`).
_LISTS = 25_000
# So few images, all or those that pass a filter, are compared one by one, which is exact and as fast.
FEW = 20_000
# Keys in one condition.
_KEYS_AT_ONCE = 2_000
_MASK = 2**63 - 1


def key_id(key: str) -> int:
    """The number of an image, which follows from its path or key: many writers need not agree on it."""
    return path_hash(key) & _MASK


class LanceStore:
    """Features of images in a LanceDB table, for any number of readers and writers at a time.

    An `Index` of a gallery (`Gallery(..., index=store)`), or by itself what `promptreid.retrieval.stored_gallery`
    searches and fills. Every search sees what was acknowledged before it. An image's key is its path.

    Example:
        >>> store = LanceStore.create("s3://bucket/crops", dimensions=512)  # doctest: +SKIP
        >>> store.add(images, features)  # doctest: +SKIP
    """

    def __init__(self, place: Place, table: Any) -> None:
        """Use `create` or `open`."""
        self.place = place
        self._table = table
        self._state: _State | None = None
        self._check_header()

    @classmethod
    def create(
        cls,
        url: str | Path,
        *,
        dimensions: int,
        storage: Storage = "float32",
        header: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> "LanceStore":
        """Make an empty store; of several processes that do so at once, one makes it and the others open it.

        Args:
            url: A folder, or `s3://bucket/name` or `gs://bucket/name`.
            dimensions: E.
            storage: `"float16"` takes half the room; scores change by less than 0.001.
            header: What else is kept, as JSON holds it: `model`, `calibration`, `notes`.
            storage_options: LanceDB's for the object store, over what the environment says.

        Raises:
            FileExistsError: There is one already, or a gallery.
            StoreError: The place cannot be reached or refuses.
            MissingExtraError: LanceDB is not installed.
        """
        place = Place.of(url, storage_options)
        if storage not in ("float32", "float16") or dimensions < 1:
            raise ValueError(
                f"storage is {storage!r} and dimensions {dimensions}, expected float32 or float16, and 1 or more"
            )
        if has_store(place):
            raise FileExistsError(f"{place.url} holds a store already; open it, or choose another place")
        if is_gallery(place.url):
            raise FileExistsError(
                f"{place.url} holds a gallery, which a search would not find beside a store; choose another place, or "
                "open the gallery: Gallery.load"
            )
        kept = {"format": FORMAT, "dimensions": dimensions, "storage": storage, "notes": {}, **(header or {})}
        make_store_folder(place, (IMAGES, REMOVED))
        connection = place.connect()
        with in_our_words(place.url):
            for name, schema in ((REMOVED, removed_schema()), (IMAGES, images_schema(kept))):
                _make_table(connection, name, schema)
        place.make_private(IMAGES, REMOVED)
        return cls.open(url, storage_options=storage_options)

    @classmethod
    def open(cls, url: str | Path, *, storage_options: Mapping[str, str] | None = None) -> "LanceStore":
        """Open a store.

        Raises:
            StoreError: There is none, it is of another format, or it cannot be reached.
            MissingExtraError: LanceDB is not installed.
        """
        place = Place.of(url, storage_options)
        require_lance()
        if not has_store(place):
            raise StoreError(f"there is no store in {place.url}; {_instead_of_a_store(place)}")
        with in_our_words(place.url):
            return cls(place, place.connect().open_table(IMAGES))

    def _check_header(self) -> None:
        header = self.header
        if header.get("format") != FORMAT:
            raise StoreError(
                f"{self.place.url} is of format {header.get('format')!r}, and this version of promptreid reads "
                f"{FORMAT}; install the version that wrote it, or index again into another place"
            )
        try:
            field = self._table.schema.field(VECTOR)
            fits = field.type.list_size == header["dimensions"] and str(field.type.value_type) in ARROW_NAMES
        except (KeyError, AttributeError):
            fits = False
        if not fits:
            raise StoreError(
                f"{self.place.url} is not a store of promptreid, or is damaged: its vectors do not fit its header"
            )

    def _now(self) -> "_State":
        """The table's description, read again when it has changed."""
        state = self._state
        version = self._reading(lambda: self._table.version)
        if state is None or state.version != version:
            state = self._state = self._reading(lambda: _read_state(self.place, version, self._table))
        return state

    @property
    def header(self) -> dict[str, Any]:
        """The entries beside the images: format, dimensions, storage, model, calibration and notes."""
        try:
            return json.loads(self._now().header)
        except ValueError:
            raise StoreError(
                f"{self.place.url} has a table that promptreid did not write; index into another place"
            ) from None

    def change_header(self, **changes: Any) -> None:
        """Keep something else beside the images; takes no copy of them.

        Raises:
            TypeError: Notes are of a kind that JSON does not take.
            StoreError: It cannot be written.
        """

        def change(data: Any) -> None:  # to what others have written by now
            data.update_schema_metadata({HEADER: json_bytes({**self.header, **changes}).decode()})

        self._commit_dataset(change)

    def keep_audit_log(self, keep: bool = True) -> None:
        """Log searches and removals from now on, by anybody who opens this store."""
        if keep:
            make_store_folder(self.place, (AUDIT,))
            with in_our_words(self.place.url):
                self.place.connect().create_table(AUDIT, schema=audit_schema(), exist_ok=True)
            self.place.make_private(AUDIT)
        self.change_header(audit=bool(keep))

    def log_action(self, action: str, **details: Any) -> None:
        """Append a line to the audit log, if one is kept.

        Raises:
            StoreError: It cannot be written; what was to be logged must not be done.
        """
        if not self.header.get("audit"):
            return
        line = pyarrow().table({"line": [audit_line(action, **details)]}, schema=audit_schema())
        try:
            committed(self.place.url, lambda: self.place.dataset(AUDIT).insert(line))
        except StoreError as error:
            raise type(error)(not_logged(self.place.table(AUDIT), error)) from error
        self.place.make_private(AUDIT)

    def audit_log(self) -> list[dict[str, Any]]:
        """The log, in the order of time; empty if no log was ever kept."""
        if "audit" not in self.header:
            return []
        with in_our_words(self.place.url):
            lines = self.place.dataset(AUDIT).to_table()["line"].to_pylist()
        return sorted(map(json.loads, lines), key=lambda entry: entry["time"])

    def _commit_dataset(self, change: Any) -> Any:
        """Commit through the table as Lance keeps it, and look at its newest version afterwards."""
        done = committed(self.place.url, lambda: change(self.place.dataset(IMAGES)))
        self.place.make_private(IMAGES)
        return done

    @property
    def dimensions(self) -> int:
        """E."""
        return int(self._now().schema.field(VECTOR).type.list_size)

    @property
    def columns(self) -> list[str]:
        """The names of the table's columns."""
        return list(self._now().schema.names)

    @property
    def keys(self) -> list[str]:
        """The keys of metadata that images may have."""
        return sorted({found[0] for found in map(key_of, self.columns) if found is not None})

    def __len__(self) -> int:
        return self.count()

    def count(self, where: Where | None = None) -> int:
        """How many images there are, or pass a filter."""
        condition = None if where is None else sql_filter(where, self.columns)
        return self._reading(lambda: self._table.count_rows(condition))

    def _reading(self, work: Any) -> Any:
        """Read, and read again if the files were cleaned up during the read."""
        for _ in range(2):
            try:
                return work()
            except (RuntimeError, OSError, ValueError) as error:
                if not is_gone(error):
                    raise explained(self.place.url, error) from error
                self._table.checkout_latest()
        with in_our_words(self.place.url):
            return work()

    def add(self, images: ImageTable, features: Tensor) -> None:
        """Take images in, in one commit; one whose key is there already is left as it is.

        Raises:
            ValueError: Features are not finite, not of unit length or of another shape, or a key is given twice.
            StoreError: They cannot be written; none of them is.
        """
        self._merge(images, features, replaces=False)

    def replace(self, images: ImageTable, features: Tensor) -> None:
        """Take images in, in one commit, in place of those of the same keys; the arguments are those of `add`."""
        self._merge(images, features, replaces=True)

    def _merge(self, images: ImageTable, features: Array, *, replaces: bool) -> None:
        features = check_features(as_tensor(features, "features"), len(images), self.dimensions)
        if len(set(images.paths)) < len(images):
            raise ValueError("a key is given twice; give each image once")
        if len(images):
            cells = metadata_cells(images)
            self._add_columns(set(cells) - set(self.columns))
            committed(self.place.url, partial(self._merge_once, images, features, cells, replaces))
            self.place.make_private(IMAGES)

    def _merge_once(self, images: ImageTable, features: Tensor, cells: dict[str, list[Any]], replaces: bool) -> None:
        rows = arrow_rows(self._table.schema, images, features, cells)
        # A merge that looks keys up in their index does not see what others merge at the same time.
        merge = self._table.merge_insert("key").use_index(False)
        merge = merge.when_matched_update_all() if replaces else merge
        merge.when_not_matched_insert_all().execute(rows)

    def _add_columns(self, names: set[str]) -> None:
        """Add columns of metadata; another writer may do the same."""
        arrow = pyarrow()

        def add(data: Any) -> None:
            missing = sorted(names - set(data.schema.names))
            if missing:
                kinds = {name: cast("tuple[str, str]", key_of(name))[1] for name in missing}
                data.add_columns([arrow.field(name, column_type(kind)) for name, kind in kinds.items()])

        if names:
            self._commit_dataset(add)

    def remove(self, ids: Sequence[int]) -> None:
        """Forget images by number; their bytes are gone when `erase` or `optimize` has rewritten the files."""
        self.delete_where([f"id IN ({', '.join(map(str, part))})" for part in _parts(list(ids))])

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Forget images by key, likewise."""
        self.delete_where([f"key IN ({', '.join(map(quoted, part))})" for part in _parts(keys)])

    def delete_where(self, sql: Sequence[str]) -> None:
        """Forget the images that pass one of these conditions in SQL, likewise."""
        for condition in sql:
            committed(self.place.url, lambda asked=condition: self._table.delete(asked))
        self.place.make_private(IMAGES)

    def stamps(self, keys: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Of those of the keys that the store has: the file's size and time when it was encoded (`file_stamp`)."""
        found: dict[str, tuple[int, int]] = {}
        for part in _parts(keys):
            condition = f"key IN ({', '.join(map(quoted, part))})"
            for batch in self.scan(("key", *STAMPS), condition):
                rows = (batch[name].to_pylist() for name in ("key", *STAMPS))
                found |= {from_stored(key): (size, when) for key, size, when in zip(*rows, strict=True)}
        return found

    def scan(self, columns: Sequence[str], condition: str | None = None, *, limit: int | None = None) -> Iterator[Any]:
        """Arrow batches of columns of the images that pass a condition in SQL."""
        with in_our_words(self.place.url):
            data = self.place.dataset(IMAGES)
            yield from data.scanner(columns=list(columns), filter=condition, limit=limit).to_batches()

    def search(self, queries: Tensor, k: int, *, where: Where | None = None) -> list[list[tuple[int, float]]]:
        """Find the images most similar to each query; see `promptreid.retrieval.index.Index`."""
        return [[(hit.id, hit.score) for hit in hits] for hits in self.nearest(queries, k, where=where)]

    def nearest(self, queries: Tensor, k: int, *, where: Where | None = None, exact: bool = False) -> list[list[Hit]]:
        """Find the images most similar to each query.

        With an index (`optimize` makes it) the search is approximate and its best are compared exactly; images that the
        index does not have yet are all compared. Scores are exact always. Up to ten million images every list of the
        index is searched; above that, lists of ten million images, and with a filter more.

        Args:
            queries: What is looked for, of unit length.
            k: How many at most for each query.
            where: Search only images with these metadata: values, lists, ranges and prefixes.
            exact: Compare every image.

        Shape:
            - queries: (Q, E) floating point

        Raises:
            ValueError: Queries are not finite or not of unit length, or the filter has a function.
            StoreError: The store cannot be read.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            raise ValueError(f"queries have shape {tuple(queries.shape)}, expected (queries, {self.dimensions})")
        vectors = check_unit_length(queries.detach().float().cpu()).numpy()
        condition = None if where is None else sql_filter(where, self.columns)
        probes = None if exact else self._probes(condition)
        k = min(k, max(1, self._now().images))  # a number beyond 64 bits is none to the engine
        return [self._nearest(vector, k, condition, probes) for vector in vectors]

    def _nearest(self, vector: Any, k: int, condition: str | None, probes: int | None) -> list[Hit]:
        columns = ["key", "id", "_distance", *(name for name in self.columns if key_of(name))]

        def ask() -> Any:
            asked = self._table.search(vector, vector_column_name=VECTOR).distance_type("cosine")
            asked = asked.limit(k).select(columns)
            asked = asked.bypass_vector_index() if probes is None else asked.nprobes(probes).refine_factor(_REFINE)
            return (asked if condition is None else asked.where(condition, prefilter=True)).to_arrow()

        return hits_of(self._reading(ask))

    def _probes(self, condition: str | None) -> int | None:
        """How many lists of the index to look through; `None` to compare every image that passes."""
        state = self._now()
        if state.partitions is None:
            return None
        passing = state.images
        if condition is not None:
            passing = self._reading(lambda: self._table.count_rows(condition))
        if passing <= FEW:
            return None
        # Where not all lists are searched, about as many images that pass are looked at as without a filter.
        return min(state.partitions, _LISTS * state.images // passing)


@dataclass(frozen=True)
class _State:
    """The description in a version of the table."""

    version: int
    header: str
    schema: Any
    images: int
    partitions: int | None


def _read_state(place: Place, version: int, table: Any) -> _State:
    schema, data = table.schema, place.dataset(IMAGES)
    header = (schema.metadata or {}).get(HEADER.encode(), b"")
    return _State(version, header.decode(), schema, data.count_rows(), index_partitions(data))


def index_partitions(data: Any) -> int | None:
    """Lists of a table's index of features; `None` if there is no index."""
    for index in data.describe_indices():
        if list(index.field_names) == [VECTOR]:
            return int(data.stats.index_stats(index.name)["indices"][0]["num_partitions"])
    return None


def _instead_of_a_store(place: Place) -> str:
    """What to do where there is no store."""
    if is_gallery(place.url):
        return "it holds a gallery: Gallery.load opens it, and promptreid index --output changes it"
    return f"make one: promptreid index CROPS --store {shell_word(place.url)}"


def _make_table(connection: Any, name: str, schema: Any) -> None:
    """Make a table, or keep the one that another process has just made, which may have more columns already."""
    try:
        connection.create_table(name, schema=schema)
    except Exception as error:
        try:
            connection.open_table(name)
        except Exception:
            raise error from None


def has_store(place: Place) -> bool:
    """Whether there is a store.

    Raises:
        StoreError: The place cannot be reached.
    """
    require_lance()
    if place.folder is not None:
        return is_store(place.url)
    connection = place.connect()
    try:
        connection.open_table(IMAGES)
    except (RuntimeError, OSError, ValueError) as error:
        if is_gone(error) and "NoSuchBucket" not in str(error):
            return False
        raise explained(place.url, error) from error
    return True


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), _KEYS_AT_ONCE):
        yield items[begin : begin + _KEYS_AT_ONCE]


def renumbered(images: ImageTable) -> ImageTable:
    """Images with numbers that follow from their keys."""
    return replace(images, ids=torch.from_numpy(images.path_hashes & _MASK))
