"""Hands a gallery's features to other programs."""

import io
import json
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from promptreid.errors import missing_extra
from promptreid.files import remove_scratch, replaced
from promptreid.retrieval.table import ImageTable

# Texts that are padded to one length at a time.
_TEXTS_AT_ONCE = 1024


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
    remove_scratch(path)  # of an export that was killed
    with replaced(path, mode=0o600) as scratch:
        (_write_npz if path.suffix == ".npz" else _write_parquet)(scratch, columns, vectors)
    return path


def check_ending(path: Path) -> None:
    """Refuse a file that would be of no known kind."""
    if path.suffix not in {".npz", ".parquet"}:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}, expected .parquet or .npz")


def _write_npz(path: Path, columns: dict[str, Any], vectors: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in {"ids": columns["id"], "features": vectors}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, values, allow_pickle=False)
        for name in ("path", "metadata"):
            _write_texts(archive, {"path": "paths"}.get(name, name), columns[name])


def _write_texts(archive: zipfile.ZipFile, name: str, texts: Sequence[str]) -> None:
    """Write an array of texts, all of which numpy pads to the longest: the padding is compressed, a part at a time."""
    kind = np.dtype(f"U{max(1, *map(len, texts))}") if texts else np.dtype("U1")
    header = {"descr": kind.str, "fortran_order": False, "shape": (len(texts),)}
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        for begin in range(0, len(texts), _TEXTS_AT_ONCE):
            stream.write(np.array(texts[begin : begin + _TEXTS_AT_ONCE], dtype=kind).tobytes())


def _write_parquet(path: Path, columns: dict[str, Any], vectors: Any) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("Parquet", "pyarrow", "parquet", instead="export to a .npz file") from error
    arrow: Any = pyarrow
    # Names outside of UTF-8, which Parquet's text cannot hold, are written with the byte in hexadecimal.
    names = [os.fsencode(name).decode(errors="backslashreplace") for name in columns["path"]]
    if odd := sum(name != given for name, given in zip(names, columns["path"], strict=True)):
        warnings.warn(f"{odd} file names are not UTF-8; their paths in the table are not those on disk", stacklevel=4)
    lists = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), vectors.shape[1])
    stream = io.BytesIO()
    parquet.write_table(arrow.table({**columns, "path": names, "features": lists}), stream)
    path.write_bytes(stream.getvalue())
