"""Writes and reads a folder of prompts: safetensors and JSON, never a pickle."""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file
from torch import Tensor

from promptreid.errors import CheckpointError, CorruptFileError, HubError
from promptreid.files import (
    file_digest,
    locked,
    rename_over,
    write_bytes_atomically,
    write_tensors_atomically,
)
from promptreid.hub.manifest import (
    ENCODERS,
    ENCODERS_CONFIG,
    MAX_MANIFEST_BYTES,
    PROMPTS,
    PromptManifest,
    check_preprocessing,
    parse_manifest,
    parse_object,
)
from promptreid.hub.repository import Repository, is_not_found
from promptreid.prompts.config import MOST_LAYERS
from promptreid.towers.weights import check_architecture
from promptreid.values import given_path

MANIFEST = "prompt_config.json"
FILES = (MANIFEST, PROMPTS, ENCODERS_CONFIG, ENCODERS)
MAX_CONFIG_BYTES = 2**20

_LOCK = ".prompts.lock"
_LOCK_SECONDS = 300
_LEFT = re.compile(r"new|[0-9a-f]{64}|(new-)?[0-9a-f]{16}")  # how names of what a killed save left end
_READS = 3
_LENGTH_BYTES = 8
# open_clip's largest model has some 1,500 tensors, whose header is 0.2 MB; safetensors itself would take 100 MB.
_MAX_HEADER_BYTES = 2**22
# open_clip's largest model has 5 billion weights.
MAX_WEIGHTS_BYTES = 2**35
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

_REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Shapes = Mapping[str, tuple[int, ...]]


def read_small_tensors(path: Path, *, digest: str, shapes: Shapes) -> dict[str, Tensor]:
    """Read a file of float32 tensors whose names and shapes are known.

    Args:
        path: The file.
        digest: Its SHA-256.
        shapes: The name and shape of every tensor.

    Raises:
        CheckpointError: The file is missing, or holds anything else; `CorruptFileError` if it is damaged or too long.
    """
    content = read_bytes(path, limit=most_bytes(shapes), digest=digest)
    _check_header_length(path, len(content), content[:_LENGTH_BYTES], limit=_header_bytes(shapes))
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


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no floating-point tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())


def most_bytes(shapes: Shapes) -> int:
    """How many bytes a file of float32 tensors of these shapes may have."""
    return 4 * sum(math.prod(shape) for shape in shapes.values()) + _header_bytes(shapes)


def _header_bytes(shapes: Shapes) -> int:
    # safetensors' own header and its padding; each tensor's entry has its name, type, shape and offsets.
    return 4096 + 256 * max(0, len(shapes) - 2)


def read_shapes(path: Path, *, digest: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file of weights, read only from its header.

    Raises:
        CheckpointError: The file is missing or corrupt, or holds something other than numbers.
    """
    _check_size(path, limit=MAX_WEIGHTS_BYTES)
    if path.stat().st_size < _LENGTH_BYTES or file_digest(path) != digest:
        raise _corrupt(path)
    with path.open("rb") as stream:
        _check_header_length(path, path.stat().st_size, stream.read(_LENGTH_BYTES), limit=_MAX_HEADER_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
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
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_safetensors(path, error) from error
    if not is_finite(tensors):
        raise CheckpointError(f"{path} holds NaN or infinity; save the prompts again")
    return tensors


def read_bytes(path: Path, *, limit: int, digest: str | None = None) -> bytes:
    """Read a file of at most `limit` bytes, whose SHA-256 is `digest` if that is known.

    Raises:
        CheckpointError: It is missing; `CorruptFileError` if it is longer, or its digest is another.
    """
    _check_size(path, limit=limit)
    with path.open("rb") as stream:
        # No more than its size, which is 0 for what /proc holds, and that may be without end. The size of what was
        # opened, and not of the path, where another file may be by now.
        content = stream.read(min(limit, os.fstat(stream.fileno()).st_size))
    # Of what was read, and not of the file, which others may have changed since.
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise _corrupt(path)
    return content


def _check_size(path: Path, *, limit: int) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy or download the whole folder again")
    size = path.stat().st_size
    if size > limit:
        raise CorruptFileError(f"{path} has {size} bytes, expected at most {limit}; copy or download the folder again")


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


@dataclass(frozen=True)
class SavedEncoders:
    """Fine-tuned weights in a folder, not read yet.

    Attributes:
        path: The safetensors file; its digest is right.
        shapes: Name and shape of every tensor, from its header.
        open_clip_config: open_clip's configuration of the model.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    open_clip_config: Mapping[str, Any]


@dataclass(frozen=True)
class PromptFiles:
    """The contents of a folder of prompts.

    Attributes:
        manifest: Which model the prompts belong to.
        tensors: The prompts by name.
        encoders: The fine-tuned weights, or `None` where the base's own are meant or they were not asked for.
        commit: The commit of the Hub repository that they are from; `None` for a folder.
    """

    manifest: PromptManifest
    tensors: Mapping[str, Tensor]
    encoders: SavedEncoders | None
    commit: str | None = None


def write_prompt_files(
    directory: Path,
    manifest: PromptManifest,
    tensors: Mapping[str, Tensor],
    *,
    encoders: Mapping[str, Tensor] | None = None,
    open_clip_config: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder of prompts over an older one; killed at any moment, it leaves the old or the new one.

    Args:
        directory: The folder; made if it is not there.
        manifest: Its `sha256` is filled in here.
        tensors: The prompts by name.
        encoders: Fine-tuned weights to go with them.
        open_clip_config: open_clip's configuration of the fine-tuned model.

    Raises:
        FileExistsError: The folder holds files of these names that are not part of prompts saved there.
        OSError: The disk is full, or the folder cannot be written.
        ValueError: What would be written could not be read again.
    """
    _check_readable(manifest, open_clip_config)
    directory.mkdir(parents=True, exist_ok=True)
    with _kept_still(directory):
        replaceable = check_replaceable(directory)
        digests = {PROMPTS: _stage(directory, PROMPTS, tensors)}
        if encoders is not None:
            config = (json.dumps(open_clip_config or {}, indent=2) + "\n").encode()
            digests |= {ENCODERS: _stage(directory, ENCODERS, encoders)}
            digests |= {ENCODERS_CONFIG: _stage(directory, ENCODERS_CONFIG, config)}
        complete = replace(manifest, sha256=digests)
        write_bytes_atomically(directory / MANIFEST, complete.to_json().encode())
        _settle(directory, digests, superseded=replaceable - digests.keys() - {MANIFEST})


def check_replaceable(directory: Path) -> Set[str]:
    """Names of the files that prompts saved in a folder consist of, and that a save may replace.

    Raises:
        FileExistsError: A file that a save would write is there and not part of them, such as another model's.
    """
    replaceable = _saved_files(directory)
    foreign = [name for name in FILES if name not in replaceable and os.path.lexists(directory / name)]
    if foreign:
        raise FileExistsError(
            f"{directory} holds {', '.join(foreign)}, which no {MANIFEST} there lists and saving would lose; choose "
            "another folder, or move them away first"
        )
    return replaceable


def _saved_files(directory: Path) -> Set[str]:
    if not (directory / MANIFEST).is_file():
        return frozenset()
    try:
        manifest, _ = _look(directory)
    except CheckpointError:
        return frozenset(FILES)  # what is damaged is to be saved again
    # A save that was killed before it had cleared up left files of the one before, which its manifest does not list.
    if any(_staged(directory, name, digest).is_file() for name, digest in manifest.sha256.items()):
        return frozenset(FILES)
    return frozenset({MANIFEST, *manifest.sha256})


def read_prompt_files(directory: Path, *, with_encoders: bool = True) -> PromptFiles:
    """Read a folder of prompts, checking every file before it is used.

    Args:
        directory: The folder.
        with_encoders: Also look at fine-tuned weights, if there are any.

    Raises:
        CheckpointError: A file is missing, corrupt, foreign or newer than this library.
    """
    seen = _look(directory)
    for _ in range(_READS):
        try:
            return _read(*seen, with_encoders=with_encoders)
        except (CheckpointError, FileNotFoundError):
            # If it was overwritten during the read, half of each version was read, and it is worth reading again.
            now = _look(directory)
            if now == seen:
                break
            seen = now
    lock = directory / _LOCK
    # A folder that we may not write to is taken as it is.
    writable = lock.is_file() and not lock.is_symlink() and os.access(lock, os.W_OK)
    with _kept_still(directory) if writable else nullcontext():
        return _read(*_look(directory), with_encoders=with_encoders)


def _kept_still(directory: Path) -> AbstractContextManager[None]:
    """Keep others from saving into a folder."""
    return locked(directory / _LOCK, action=f"saving into {directory}", timeout_seconds=_LOCK_SECONDS)


def _look(directory: Path) -> tuple[PromptManifest, dict[str, Path]]:
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no {MANIFEST}; give a folder that save_prompts wrote, or save the prompts again"
        )
    manifest = parse_manifest(read_bytes(path, limit=MAX_MANIFEST_BYTES), source=str(path))
    return manifest, {name: find_file(directory, name, digest) for name, digest in manifest.sha256.items()}


def _read(manifest: PromptManifest, paths: Mapping[str, Path], *, with_encoders: bool) -> PromptFiles:
    tensors = read_small_tensors(paths[PROMPTS], digest=manifest.sha256[PROMPTS], shapes=manifest.shapes)
    if ENCODERS not in paths or not with_encoders:
        return PromptFiles(manifest, tensors, None)
    path = paths[ENCODERS_CONFIG]
    content = read_bytes(path, limit=MAX_CONFIG_BYTES, digest=manifest.sha256[ENCODERS_CONFIG])
    config = _parse_open_clip_config(content, source=str(path))
    shapes = read_shapes(paths[ENCODERS], digest=manifest.sha256[ENCODERS])
    return PromptFiles(manifest, tensors, SavedEncoders(paths[ENCODERS], shapes, config))


def find_file(directory: Path, name: str, digest: str) -> Path:
    """Path of a file of a folder: under its own name, or still under the one that a killed save gave it."""
    staged = _staged(directory, name, digest)
    return staged if staged.is_file() else directory / name


def _staged(directory: Path, name: str, digest: str) -> Path:
    return directory / f".{name}-{digest}"


def _stage(directory: Path, name: str, content: bytes | Mapping[str, Tensor]) -> str:
    """Write a file under a name that no reader looks for yet, and return its SHA-256."""
    unnamed = directory / f".{name}-new"
    if isinstance(content, bytes):
        write_bytes_atomically(unnamed, content)
    else:
        write_tensors_atomically(unnamed, content)
    digest = file_digest(unnamed)
    rename_over(unnamed, _staged(directory, name, digest))
    return digest


def _settle(directory: Path, digests: Mapping[str, str], *, superseded: Set[str]) -> None:
    """Give the files that count their own names, and clear what older and killed saves left."""
    for name in superseded:  # first, so that a staged file tells the next save that this one was killed
        (directory / name).unlink(missing_ok=True)
    for name, digest in digests.items():
        rename_over(_staged(directory, name, digest), directory / name)
    for name in FILES:
        for left in directory.glob(f".{name}-*"):
            if _LEFT.fullmatch(left.name.removeprefix(f".{name}-")):  # a copy that a user keeps there is not ours
                left.unlink(missing_ok=True)


def _parse_open_clip_config(content: bytes, *, source: str) -> dict[str, Any]:
    config = parse_object(content, source=source)
    parts = [cast("object", config.get(name)) for name in ("model_cfg", "preprocess_cfg")]
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{source} has no model_cfg and preprocess_cfg; save the prompts again")
    try:
        check_architecture(config["model_cfg"], most_layers=MOST_LAYERS)
        check_preprocessing(config["preprocess_cfg"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}; save the prompts again") from error
    return config


def _check_readable(manifest: PromptManifest, open_clip_config: Mapping[str, Any] | None) -> None:
    """Refuse to write what the bounds on reading would refuse."""
    digests = dict.fromkeys((PROMPTS,) if open_clip_config is None else (PROMPTS, ENCODERS, ENCODERS_CONFIG), "0" * 64)
    try:
        replace(manifest, sha256=digests).check_readable()
        if open_clip_config is not None:
            _parse_open_clip_config(json.dumps(open_clip_config).encode(), source=ENCODERS_CONFIG)
    except CheckpointError as error:
        raise ValueError(f"what would be saved could not be loaded again: {error}") from error


def read_prompts(repository: Repository, *, with_encoders: bool) -> PromptFiles:
    """Read prompts from a folder or a repository; a damaged copy in the cache is downloaded again.

    Args:
        repository: The folder or the repository.
        with_encoders: Also get fine-tuned weights, if there are any.

    Raises:
        FileNotFoundError: There is no such folder, and it is not a repository's id either.
        TypeError: The name is neither text nor a path.
        ValueError: A revision was given for a folder, or the name is empty.
        HubError: The repository, its revision or a file is not there, or the Hub cannot be reached.
        CheckpointError: The files are corrupt, foreign or newer than this library.
    """
    folder = _folder_of(repository)
    if folder is not None:
        return read_prompt_files(folder, with_encoders=with_encoders)
    from promptreid.hub.transfer import download_prompts  # which a folder does not need

    def read(*, again: bool) -> PromptFiles:
        folder = download_prompts(repository, with_encoders=with_encoders, again=again)
        return replace(read_prompt_files(folder, with_encoders=with_encoders), commit=folder.name)

    try:
        return read(again=False)
    except CorruptFileError:
        if repository.local_files_only:
            raise
        return read(again=True)
    except HubError as error:
        if not is_not_found(error.__cause__):
            raise
        raise HubError(f"{error}; there is no folder {repository.name} here either") from error.__cause__


def _folder_of(repository: Repository) -> Path | None:
    """The folder that is meant; `None` where it is a repository."""
    name = repository.name
    if not isinstance(name, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"source is {type(name).__name__}, which is neither a folder nor the id of a Hub repository")
    folder = given_path("source", name)
    if folder.is_dir():
        if repository.revision is not None:
            raise ValueError(f"{folder} is a folder, which has no revision {repository.revision!r}; leave revision out")
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file; give the folder that it is in, {folder.parent}")
    if isinstance(name, Path) or not _REPOSITORY_ID.fullmatch(name):
        raise FileNotFoundError(
            f"there is no folder {folder}; give a folder that save_prompts wrote, or the id of a Hub repository such "
            "as 'user/name'"
        )
    return None
