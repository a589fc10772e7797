"""Hands a gallery's features to other programs."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from promptreid.errors import missing_extra
from promptreid.files import write_bytes_atomically
from promptreid.retrieval.table import ImageTable


def export_features(path: Path, features: Tensor, table: ImageTable) -> Path:
    """Write ids, paths, metadata (as JSON text) and features; the ending chooses the format.

    Args:
        path: A new file ending in `.parquet` (features as a list column) or `.npz` (arrays `ids`, `paths`,
            `metadata`, `features`, to be read without pickle).
        features: (G, E).
        table: The images.
    """
    check_ending(path)
    columns: dict[str, Any] = {
        "id": table.ids.numpy(),
        "path": list(table.paths),
        "metadata": [json.dumps(entry, sort_keys=True) for entry in table.metadata],
    }
    vectors = features.detach().cpu().contiguous().numpy()
    content = _npz(columns, vectors) if path.suffix == ".npz" else _parquet(columns, vectors)
    write_bytes_atomically(path, content, mode=0o600)
    return path


def check_ending(path: Path) -> None:
    """Refuse a file that would be of no known kind."""
    if path.suffix not in {".npz", ".parquet"}:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}, expected .parquet or .npz")


def _npz(columns: dict[str, Any], vectors: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(
        stream,
        ids=columns["id"],
        paths=np.array(columns["path"], dtype=np.str_),
        metadata=np.array(columns["metadata"], dtype=np.str_),
        features=vectors,
    )
    return stream.getvalue()


def _parquet(columns: dict[str, Any], vectors: Any) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("Parquet", "pyarrow", "export", instead="export to a .npz file") from error
    arrow: Any = pyarrow
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), vectors.shape[1])
    stream = io.BytesIO()
    parquet.write_table(arrow.table({**columns, "features": lists}), stream)
    return stream.getvalue()
