"""A store's tables: their columns, and images as rows of them and back."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from promptreid.retrieval.gallery_files import json_bytes
from promptreid.retrieval.lance_filters import cell, column_name, from_cell, from_stored, key_of, kind_of, to_stored
from promptreid.retrieval.table import Hit, ImageTable

HEADER, VECTOR, STAMPS = "promptreid", "vector", ("size", "modified_ns")
# Merges of several processes are told apart by this column, which must not be nullable (Lance's table format,
# "unenforced primary key"): without it each would add the same new image.
PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
_TYPES = {"text": "string", "integer": "int64", "large": "string", "float": "float64", "json": "string"}
ARROW_NAMES = {"float": "float32", "halffloat": "float16"}


def pyarrow() -> Any:
    """The module of that name, which LanceDB brings."""
    return import_module("pyarrow")


def column_type(kind: str) -> Any:
    """The type of a column of metadata of a kind."""
    return getattr(pyarrow(), _TYPES[kind])()


def images_schema(header: Mapping[str, Any]) -> Any:
    """The columns of images, before any has metadata."""
    arrow = pyarrow()
    vector = arrow.list_(getattr(arrow, header["storage"])(), header["dimensions"])
    fields = [
        arrow.field("key", arrow.string(), nullable=False, metadata=PRIMARY_KEY),
        arrow.field("id", arrow.int64(), nullable=False),
        *(arrow.field(name, arrow.int64(), nullable=False) for name in STAMPS),
        arrow.field(VECTOR, vector, nullable=False),
    ]
    return arrow.schema(fields, metadata={HEADER: json_bytes(header)})


def removed_schema() -> Any:
    """The column of digests of images that were removed."""
    arrow = pyarrow()
    return arrow.schema([arrow.field("digest", arrow.string(), nullable=False, metadata=PRIMARY_KEY)])


def audit_schema() -> Any:
    """The column of lines of the audit log."""
    arrow = pyarrow()
    return arrow.schema([arrow.field("line", arrow.string(), nullable=False)])


def metadata_cells(images: ImageTable) -> dict[str, list[Any]]:
    """The metadata of images by column, as the store holds it."""
    cells: dict[str, list[Any]] = {}
    for row, known in enumerate(images.metadata):
        for key, value in known.items():
            kind = kind_of(value)
            cells.setdefault(column_name(key, kind), [None] * len(images))[row] = cell(value, kind)
    return cells


def arrow_rows(schema: Any, images: ImageTable, features: Tensor, cells: Mapping[str, list[Any]]) -> Any:
    """Images as rows of the table."""
    arrow = pyarrow()
    storage = schema.field(VECTOR).type
    vectors = features.detach().cpu().numpy().astype(ARROW_NAMES[str(storage.value_type)])
    fixed = {
        "key": [to_stored(path) for path in images.paths],
        "id": images.ids.numpy(),
        "size": images.sizes.numpy(),
        "modified_ns": images.modified_ns.numpy(),
        VECTOR: arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), storage.list_size),
    }
    empty = [None] * len(images)
    columns = [fixed.get(field.name, cells.get(field.name, empty)) for field in schema]
    arrays = [
        column if isinstance(column, arrow.Array) else arrow.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return arrow.Table.from_arrays(arrays, schema=schema.remove_metadata())


def hits_of(found: Any) -> list[Hit]:
    """The rows that a search found as hits, the best first."""
    hits: list[Hit] = []
    for row in found.to_pylist():
        known = ((key_of(name), value) for name, value in row.items() if value is not None)
        metadata = {named[0]: from_cell(value, named[1]) for named, value in known if named is not None}
        key = from_stored(row["key"])
        hits.append(Hit(Path(key), 1.0 - row["_distance"], -1, row["id"], metadata, key))
    return sorted(hits, key=lambda hit: -hit.score)
