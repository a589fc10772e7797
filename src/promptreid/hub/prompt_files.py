"""Writes and reads a folder of prompts: safetensors and JSON, never a pickle.

A save over an older one must leave either of the two behind, whenever it is killed. So new files are first written
beside the old ones, under names that end in their digests; replacing `prompt_config.json`, which holds the digests,
is the moment from which the new ones count; only then do they take their own names. A reader looks for a file under
the name with the digest first, and where it keeps finding half of each, it waits for the writer.
"""

import json
import math
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import file_digest, write_bytes_atomically, write_tensors_atomically
from promptreid.hub.manifest import MAX_MANIFEST_BYTES, PromptManifest, parse_manifest, parse_object
from promptreid.hub.manifest_values import ENCODERS, ENCODERS_CONFIG, PROMPTS, check_architecture, check_preprocessing
from promptreid.hub.tensor_files import read_bytes, read_shapes, read_small_tensors

MANIFEST = "prompt_config.json"
FILES = (MANIFEST, PROMPTS, ENCODERS_CONFIG, ENCODERS)
MAX_CONFIG_BYTES = 2**20
# safetensors' own header and its padding, for a file that holds the prompts of two towers.
HEADER_BYTES = 4096
_LOCK = ".prompts.lock"
_LOCK_SECONDS = 300
_READS = 3


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
    """What a folder of prompts holds.

    Attributes:
        manifest: Which model the prompts belong to.
        tensors: The prompts by name.
        encoders: The fine-tuned weights, or `None` where the base's own are meant or they were not asked for.
    """

    manifest: PromptManifest
    tensors: Mapping[str, Tensor]
    encoders: SavedEncoders | None


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
        OSError: The disk is full, or the folder cannot be written.
        ValueError: What would be written could not be read again.
    """
    _check_readable(manifest, open_clip_config)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        digests = {PROMPTS: _stage_tensors(directory, PROMPTS, tensors)}
        if encoders is not None:
            digests[ENCODERS] = _stage_tensors(directory, ENCODERS, encoders)
            digests[ENCODERS_CONFIG] = _stage_json(directory, ENCODERS_CONFIG, open_clip_config or {})
        complete = replace(manifest, sha256=digests)
        write_bytes_atomically(directory / MANIFEST, complete.to_json().encode())
        _settle(directory, digests)


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
            # If somebody saved over it meanwhile, what was read is half of each, and worth another look.
            now = _look(directory)
            if now == seen:
                break
            seen = now
    with _kept_still(directory):
        return _read(*_look(directory), with_encoders=with_encoders)


@contextmanager
def _kept_still(directory: Path) -> Generator[None, None, None]:
    """Keep others from saving into a folder; one that we may not write to is taken as it is."""
    lock = directory / _LOCK
    if lock.is_file() and not lock.is_symlink() and os.access(lock, os.W_OK):
        with _locked(directory):
            yield
    else:
        yield


@contextmanager
def _locked(directory: Path) -> Generator[None, None, None]:
    lock = directory / _LOCK
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        # Taking a lock may empty the file, and a link in somebody else's folder may lead to any file of ours.
        raise OSError(f"{lock} is not a file of its own; remove it, and save again")
    with ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(lock, timeout=_LOCK_SECONDS))
        except TimeoutError as error:
            raise TimeoutError(
                f"another process has been saving into {directory} for {_LOCK_SECONDS} s; wait for it or end it, and "
                "try again"
            ) from error
        yield


def _look(directory: Path) -> tuple[PromptManifest, dict[str, Path]]:
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no {MANIFEST}; give a folder that save_prompts wrote, or save the prompts again"
        )
    manifest = parse_manifest(read_bytes(path, limit=MAX_MANIFEST_BYTES), source=str(path))
    return manifest, {name: find_file(directory, name, digest) for name, digest in manifest.sha256.items()}


def _read(manifest: PromptManifest, places: Mapping[str, Path], *, with_encoders: bool) -> PromptFiles:
    tensors = read_small_tensors(
        places[PROMPTS], digest=manifest.sha256[PROMPTS], shapes=manifest.shapes, header_bytes=HEADER_BYTES
    )
    if ENCODERS not in places or not with_encoders:
        return PromptFiles(manifest, tensors, None)
    config = _read_open_clip_config(places[ENCODERS_CONFIG], manifest.sha256[ENCODERS_CONFIG])
    shapes = read_shapes(places[ENCODERS], digest=manifest.sha256[ENCODERS])
    return PromptFiles(manifest, tensors, SavedEncoders(places[ENCODERS], shapes, config))


def largest_prompts(manifest: PromptManifest) -> int:
    """How many bytes `prompts.safetensors` may have."""
    return 4 * sum(math.prod(shape) for shape in manifest.shapes.values()) + HEADER_BYTES


def find_file(directory: Path, name: str, digest: str) -> Path:
    """Where a file of a folder is: under its own name, or still under the one that a killed save gave it."""
    staged = _staged(directory, name, digest)
    return staged if staged.is_file() else directory / name


def _staged(directory: Path, name: str, digest: str) -> Path:
    return directory / f".{name}-{digest}"


def _stage_tensors(directory: Path, name: str, tensors: Mapping[str, Tensor]) -> str:
    unnamed = directory / f".{name}-new"
    write_tensors_atomically(unnamed, tensors)
    digest = file_digest(unnamed)
    unnamed.replace(_staged(directory, name, digest))
    return digest


def _stage_json(directory: Path, name: str, entries: Mapping[str, Any]) -> str:
    unnamed = directory / f".{name}-new"
    write_bytes_atomically(unnamed, (json.dumps(entries, indent=2) + "\n").encode())
    digest = file_digest(unnamed)
    unnamed.replace(_staged(directory, name, digest))
    return digest


def _settle(directory: Path, digests: Mapping[str, str]) -> None:
    """Give the files that count their own names, and clear what older and killed saves left."""
    for name, digest in digests.items():
        _staged(directory, name, digest).replace(directory / name)
    for name in FILES:
        if name not in digests and name != MANIFEST:
            (directory / name).unlink(missing_ok=True)
        for left in directory.glob(f".{name}-*"):
            left.unlink(missing_ok=True)


def _read_open_clip_config(path: Path, digest: str) -> dict[str, Any]:
    content = read_bytes(path, limit=MAX_CONFIG_BYTES, digest=digest)
    return _parse_open_clip_config(content, source=str(path))


def _parse_open_clip_config(content: bytes, *, source: str) -> dict[str, Any]:
    config = parse_object(content, source=source)
    parts = [cast("object", config.get(name)) for name in ("model_cfg", "preprocess_cfg")]
    if not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(f"{source} has no model_cfg and preprocess_cfg; save the prompts again")
    try:
        check_architecture(config["model_cfg"])
        check_preprocessing(config["preprocess_cfg"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}; save the prompts again") from error
    return config


def _check_readable(manifest: PromptManifest, open_clip_config: Mapping[str, Any] | None) -> None:
    """Refuse to write what the bounds on reading would refuse."""
    digests = dict.fromkeys((PROMPTS,) if open_clip_config is None else (PROMPTS, ENCODERS, ENCODERS_CONFIG), "0" * 64)
    try:
        parse_manifest(replace(manifest, sha256=digests).to_json().encode(), source=MANIFEST)
        if open_clip_config is not None:
            _parse_open_clip_config(json.dumps(open_clip_config).encode(), source=ENCODERS_CONFIG)
    except CheckpointError as error:
        raise ValueError(f"what would be saved could not be loaded again: {error}") from error
