"""Reads safetensors files that somebody else wrote: sizes and shapes first, tensors afterwards."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from promptreid.errors import CheckpointError, CorruptFileError
from promptreid.files import file_digest, is_finite

_LENGTH_BYTES = 8
# open_clip's largest model has some 1,500 tensors, whose header is 0.2 MB; safetensors itself would take 100 MB.
_MAX_HEADER_BYTES = 2**22
# open_clip's largest model has 5 billion weights.
MAX_WEIGHTS_BYTES = 2**35
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

Shapes = Mapping[str, tuple[int, ...]]


def read_small_tensors(path: Path, *, digest: str, shapes: Shapes, header_bytes: int) -> dict[str, Tensor]:
    """Read a file of float32 tensors whose names and shapes are known.

    Args:
        path: The file.
        digest: Its SHA-256.
        shapes: The name and shape of every tensor.
        header_bytes: How long the header may be.

    Raises:
        CheckpointError: The file is missing, too long, or holds anything else; `CorruptFileError` if damaged.
    """
    most = 4 * sum(math.prod(shape) for shape in shapes.values()) + header_bytes
    content = read_bytes(path, limit=most, digest=digest)
    _check_header_length(path, len(content), content[:_LENGTH_BYTES], limit=header_bytes)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _not_safetensors(path, error) from error
    found = {name: (str(value.dtype), tuple(value.shape)) for name, value in tensors.items()}
    expected = {name: ("torch.float32", tuple(shape)) for name, shape in shapes.items()}
    if found != expected:
        raise CheckpointError(f"{path} holds {_short(found)}, expected {_short(expected)}; save the prompts again")
    if not is_finite(tensors):
        raise CheckpointError(f"{path} holds NaN or infinity; save the prompts again")
    return tensors


def read_shapes(path: Path, *, digest: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file of weights, from its header alone.

    Raises:
        CheckpointError: The file is missing or corrupt, or holds something other than numbers.
    """
    check_size(path, limit=MAX_WEIGHTS_BYTES)
    if path.stat().st_size < _LENGTH_BYTES:
        raise _corrupt(path)
    check_digest(path, digest)
    with path.open("rb") as stream:
        _check_header_length(path, path.stat().st_size, stream.read(_LENGTH_BYTES), limit=_MAX_HEADER_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_safetensors(path, error) from error
    strange = {name: kind for name, kind in kinds.items() if kind not in _FLOATS and kind not in ("I64", "I32", "BOOL")}
    if strange:
        raise CheckpointError(f"{path} holds {_short(strange)}, which no open_clip model has; save the prompts again")
    return shapes


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file whose shapes `read_shapes` told.

    Raises:
        CheckpointError: The file changed since, or holds NaN or infinity.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_safetensors(path, error) from error
    if not is_finite(tensors):
        raise CheckpointError(f"{path} holds NaN or infinity; save the prompts again")
    return tensors


def read_bytes(path: Path, *, limit: int, digest: str | None = None) -> bytes:
    """Read a file of at most `limit` bytes, whose SHA-256 is `digest` if that is known.

    Raises:
        CheckpointError: It is missing, or longer; `CorruptFileError` if its digest is another.
    """
    check_size(path, limit=limit)
    with path.open("rb") as stream:
        # No more than its size, which is 0 for what /proc holds, and that may be without end. The size of what was
        # opened, and not of the path, where another file may stand by now.
        content = stream.read(min(limit, os.fstat(stream.fileno()).st_size))
    # Of what was read, and not of the file, which others may write meanwhile.
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise _corrupt(path)
    return content


def check_size(path: Path, *, limit: int) -> None:
    """Refuse a file that is missing or too long.

    Raises:
        CheckpointError: It is not there, is no file, or has more than `limit` bytes.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy or download the whole folder again")
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(f"{path} has {size} bytes, expected at most {limit}; copy or download the folder again")


def check_digest(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not `expected`.

    Raises:
        CorruptFileError: It is another.
    """
    if file_digest(path) != expected:
        raise _corrupt(path)


def _corrupt(path: Path) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is corrupt: its SHA-256 is not the one that prompt_config.json says; copy or download it again"
    )


def _check_header_length(path: Path, size: int, prefix: bytes, *, limit: int) -> None:
    length = int.from_bytes(prefix, "little")
    most = min(limit, size - _LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES or length > most:
        raise _not_safetensors(path, f"its header says that it has {length} bytes, expected at most {max(most, 0)}")


def _not_safetensors(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{path} is not a sound safetensors file ({str(reason)[:200]}); save the prompts again")


def _short(value: Mapping[str, Any]) -> str:
    text = str(dict(sorted(value.items())))
    return text if len(text) <= 300 else f"{text[:300]}…"
