"""Writes and reads a folder of prompts: safetensors and JSON, never a pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import write_bytes_atomically, write_tensors_atomically
from promptreid.hub.manifest import PromptManifest, parse_manifest

MANIFEST = "prompt_config.json"
PROMPTS = "prompts.safetensors"
ENCODERS = "open_clip_model.safetensors"
ENCODERS_CONFIG = "open_clip_config.json"
_MAX_CONFIG_BYTES = 2**20
# safetensors' own header and its padding, for a file that holds two tensors.
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class PromptFiles:
    """What a folder of prompts holds.

    Attributes:
        manifest: Which model the prompts belong to.
        tensors: The prompts by name.
        encoders: The fine-tuned weights, or `None` where the base's own are meant.
        open_clip_config: open_clip's configuration of the fine-tuned model, or `None`.
    """

    manifest: PromptManifest
    tensors: Mapping[str, Tensor]
    encoders: Mapping[str, Tensor] | None
    open_clip_config: Mapping[str, Any] | None


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_prompt_files(
    directory: Path,
    manifest: PromptManifest,
    tensors: Mapping[str, Tensor],
    *,
    encoders: Mapping[str, Tensor] | None = None,
    open_clip_config: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder of prompts; the manifest comes last, so a folder without one is not complete.

    Args:
        directory: The folder; made if it is not there.
        manifest: Its `sha256` is filled in here.
        tensors: The prompts by name.
        encoders: Fine-tuned weights to go with them.
        open_clip_config: open_clip's configuration of the fine-tuned model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    digests = {PROMPTS: digest(write_tensors_atomically(directory / PROMPTS, tensors))}
    for stale in (ENCODERS, ENCODERS_CONFIG):
        (directory / stale).unlink(missing_ok=True)
    if encoders is not None:
        digests[ENCODERS] = digest(write_tensors_atomically(directory / ENCODERS, encoders))
        text = json.dumps(open_clip_config, indent=2) + "\n"
        write_bytes_atomically(directory / ENCODERS_CONFIG, text.encode())
    complete = replace(manifest, sha256=digests)
    write_bytes_atomically(directory / MANIFEST, complete.to_json().encode())


def read_prompt_files(directory: Path) -> PromptFiles:
    """Read a folder of prompts, checking every file before it is used.

    Raises:
        CheckpointError: A file is missing, corrupt, foreign or newer than this library.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{directory} has no {MANIFEST}; it is not a folder of prompts, or saving was cut short")
    manifest = parse_manifest(_read(path, limit=2**20), source=str(path))
    shapes = {"vision.prompts.tokens": manifest.vision_shape, "text.prompts.tokens": manifest.text_shape}
    expected = sum(4 * shape[0] * shape[1] * shape[2] for shape in shapes.values())
    content = _read(directory / PROMPTS, limit=expected + _HEADER_BYTES)
    tensors = _parse(directory / PROMPTS, content, manifest.sha256[PROMPTS])
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != shapes:
        raise CheckpointError(
            f"{directory / PROMPTS} holds {found}, but {MANIFEST} says {shapes}; save the prompts again"
        )
    for name, value in tensors.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise CheckpointError(f"{directory / PROMPTS}: {name} is not finite floating point; save the prompts again")
    if ENCODERS not in manifest.sha256:
        return PromptFiles(manifest, tensors, None, None)
    encoders = _parse(directory / ENCODERS, _read(directory / ENCODERS), manifest.sha256[ENCODERS])
    return PromptFiles(manifest, tensors, encoders, _read_open_clip_config(directory / ENCODERS_CONFIG))


def _read(path: Path, *, limit: int | None = None) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy or download the whole folder again")
    size = path.stat().st_size
    if limit is not None and size > limit:
        raise CheckpointError(f"{path} has {size} bytes, expected at most {limit}; copy or download the folder again")
    return path.read_bytes()


def _parse(path: Path, content: bytes, expected: str) -> dict[str, Tensor]:
    if digest(content) != expected:
        raise CheckpointError(f"{path} is corrupt (its SHA-256 is not {MANIFEST}'s); copy or download it again")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error}); save the prompts again") from error


def _read_open_clip_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path, limit=_MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); save the prompts again") from error
    entries = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
    if not isinstance(entries.get("model_cfg"), dict) or not isinstance(entries.get("preprocess_cfg"), dict):
        raise CheckpointError(f"{path} has no model_cfg and preprocess_cfg; save the prompts again")
    return entries
