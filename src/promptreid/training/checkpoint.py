"""Checkpoints of a run: a folder each of safetensors and JSON, written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from promptreid.errors import CheckpointError
from promptreid.files import file_digest, flush, write_bytes_atomically, write_tensors_atomically

FORMAT = "promptreid-training"
VERSION = 1
TENSORS, STATE = "state.safetensors", "state.json"
NEEDED = ("settings", "position", "random")


@dataclass
class Checkpoint:
    """What a run needs to go on: tensors by name, and all the rest as JSON holds it."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    state: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under `prefix.name`; they are not copied, so save them before they change."""
        self.tensors |= {f"{prefix}.{name}": value.detach() for name, value in tensors.items()}

    def take(self, prefix: str) -> dict[str, Tensor]:
        """The tensors kept under a prefix, by their names without it."""
        start = f"{prefix}."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def save_checkpoint(checkpoint: Checkpoint, folder: Path, *, step: int, keep: int = 2) -> Path:
    """Write `folder/step-<step>` and remove the oldest beyond `keep`.

    It is written under another name, flushed to the disk and renamed, so a kill at any moment leaves either all of it
    or nothing under its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_unfinished(folder)
    target = folder / f"step-{step:09d}"
    unfinished = folder / f"unfinished-{target.name}"
    unfinished.mkdir()
    write_tensors_atomically(unfinished / TENSORS, checkpoint.tensors)
    state = {"format": FORMAT, "version": VERSION, "sha256": file_digest(unfinished / TENSORS), **checkpoint.state}
    write_bytes_atomically(unfinished / STATE, json.dumps(state).encode())
    if target.exists():
        _remove(target)
    unfinished.rename(target)
    flush(folder)
    for old in list_checkpoints(folder)[:-keep]:
        _remove(old)
    return target


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON of one checkpoint, which is small.

    Raises:
        CheckpointError: It is incomplete, damaged, or not a checkpoint of this library.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refusal(path, f"{STATE} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _refusal(path, f"{STATE} does not say that it is of format {FORMAT}")
    if state.get("version") != VERSION:
        raise _refusal(path, f"it is of version {state.get('version')}, this promptreid reads version {VERSION}")
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise _refusal(path, f"{STATE} has no {', '.join(missing)}")
    return cast(dict[str, Any], state)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        CheckpointError: It is incomplete, damaged, or not a checkpoint of this library.
    """
    state = read_state(path)
    try:
        if file_digest(path / TENSORS) != state.get("sha256"):
            raise _refusal(path, f"{TENSORS} is truncated or damaged: its SHA-256 is not the one {STATE} holds")
        return Checkpoint(load_file(path / TENSORS), state)
    except (OSError, SafetensorError) as error:
        raise _refusal(path, f"{TENSORS} cannot be read: {error}") from error


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's whole state to one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors_atomically(path, model.state_dict())


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote.

    Raises:
        CheckpointError: The file is not there, damaged, or of another model.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load the weights {path}: {error}; they are written once evaluate has given a best_metric"
        ) from error


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed run had not finished writing."""
    for path in folder.glob("unfinished-*"):
        shutil.rmtree(path)


def _refusal(path: Path, reason: str) -> CheckpointError:
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    mend = f"delete it to go on from {others[-1]}" if others else "delete it to start over, or give another output_dir"
    return CheckpointError(f"cannot go on from the checkpoint {path}: {reason}; {mend}")


def _remove(path: Path) -> None:
    # Renamed first: a kill in the middle of removing must not leave half a checkpoint under its name.
    doomed = path.with_name(f"unfinished-{path.name}-old")
    path.rename(doomed)
    shutil.rmtree(doomed)
