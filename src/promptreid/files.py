"""Writes files so that a reader sees the old one or the new one, never half of it."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_bytes_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write beside `path`, flush to disk, and rename over it; `mode` is the file's permissions."""
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, mode)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def write_tensors_atomically(path: Path, tensors: Mapping[str, Tensor], *, mode: int = 0o644) -> bytes:
    """Write tensors as safetensors in the same way; returns the file's bytes."""
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_bytes_atomically(path, content, mode=mode)
    return content
