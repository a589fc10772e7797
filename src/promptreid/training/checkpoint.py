"""Checkpoints of a run: a folder each of safetensors and JSON, written whole or not at all, and how a run resumes."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from promptreid.errors import CheckpointError
from promptreid.files import (
    file_digest,
    flush,
    remove_scratch,
    write_bytes_atomically,
    write_tensors_atomically,
)
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage

FORMAT = "promptreid-training"

VERSION = 1

TENSORS, STATE = "state.safetensors", "state.json"

NEEDED = ("settings", "position", "random")


@dataclass
class Checkpoint:
    """What a run needs to resume: tensors by name, and everything else as JSON holds it."""

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
    """Complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def save_checkpoint(checkpoint: Checkpoint, folder: Path, *, step: int, keep: int = 2) -> Path:
    """Write `folder/step-<step>` and remove the oldest beyond `keep`.

    It is written under another name, flushed to the disk and renamed, so a kill at any moment leaves either all of it
    or nothing under its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _clear_unfinished(folder)
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


def _clear_unfinished(folder: Path) -> None:
    """Remove what a killed run had not finished writing."""
    for path in folder.glob("unfinished-*"):
        shutil.rmtree(path)


def _refusal(path: Path, reason: str) -> CheckpointError:
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    mend = f"resume from {others[-1]}" if others else "start over, or give another output_dir"
    return CheckpointError(f"cannot resume from the checkpoint {path}: {reason}; delete it to {mend}")


def _remove(path: Path) -> None:
    # Renamed first: a kill in the middle of removing must not leave half a checkpoint under its name.
    doomed = path.with_name(f"unfinished-{path.name}-old")
    path.rename(doomed)
    shutil.rmtree(doomed)


class RunFolder:
    """A folder with `log.jsonl`, `checkpoints/` and `best.safetensors`, each written whole or not at all.

    Args:
        path: The folder; made when something is first written.
        keep: Number of checkpoints that are kept.
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path: Path = Path(path)
        self.keep = keep
        self.checkpoints: Path = self.path / "checkpoints"
        self.best: Path = self.path / "best.safetensors"

    def find(self, settings: dict[str, Any], *, resume: bool) -> Path | None:
        """The checkpoint to resume from, if there is one.

        Raises:
            CheckpointError: The folder holds a run with other settings, or any run where `resume` is False.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            return None
        if not resume:
            raise CheckpointError(
                f"output_dir {self.path} holds a run already; give another folder, or resume=True to resume it"
            )
        _check_settings(read_state(found[-1])["settings"], settings, found[-1])
        return found[-1]

    def save(self, checkpoint: Checkpoint, history: Sequence[dict[str, Any]], *, step: int) -> Path:
        """Write a checkpoint, then the log."""
        path = save_checkpoint(checkpoint, self.checkpoints, step=step, keep=self.keep)
        self.write_log(history)
        return path

    def write_log(self, history: Sequence[dict[str, Any]]) -> None:
        """Write one line per entry."""
        content = "".join(json.dumps(entry) + "\n" for entry in history)
        write_bytes_atomically(self.path / "log.jsonl", content.encode())

    def repair(self, history: Sequence[dict[str, Any]]) -> None:
        """Repair what a kill left behind: unfinished files, and a log without its last line."""
        _clear_unfinished(self.checkpoints)
        for name in (self.best.name, "log.jsonl", "steps.jsonl"):
            remove_scratch(self.path / name)
        self.write_log(history)

    def save_best(self, model: nn.Module) -> None:
        """Keep a model's weights as the best so far."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_tensors_atomically(self.best, model.state_dict())

    def load_best(self, model: nn.Module) -> None:
        """Load the best weights.

        Raises:
            CheckpointError: There are none yet, or the file is damaged or belongs to another model.
        """
        try:
            model.load_state_dict(load_file(self.best))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot load the weights {self.best}: {error}; they are written once evaluate has given a best_metric"
            ) from error


@dataclass
class Position:
    """Where a run stands: the next batch to train on, and the results so far.

    Attributes:
        stage: Index of the stage.
        epoch: Within the stage, from 0.
        batch: Within the epoch, from 0.
        step: Steps of the optimiser over all stages.
        sums: Losses of this epoch's batches so far, summed by name.
        seconds: Time spent on this epoch so far.
        history: One entry per epoch; the lines of the log.
        best: The entry with the best score of this stage so far.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    best: dict[str, Any] | None = None

    @property
    def between_stages(self) -> bool:
        """Whether the stage has not begun, so that its optimiser has no state yet."""
        return self.epoch == self.batch == 0

    @property
    def means(self) -> dict[str, float]:
        """The epoch's mean losses so far."""
        return {name: value / self.batch for name, value in self.sums.items()}

    def end_step(self, losses: Mapping[str, float], *, seconds: float) -> None:
        """Add one step's losses to the epoch's."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
        self.batch, self.step, self.seconds = self.batch + 1, self.step + 1, self.seconds + seconds

    def end_epoch(self, entry: dict[str, Any], *, epochs: int) -> None:
        """Keep the epoch's entry and move to the next epoch, or to the next stage after the last."""
        self.history.append(entry)
        self.batch, self.sums, self.seconds = 0, {}, 0.0
        self.epoch += 1
        if self.epoch == epochs:
            self.stage, self.epoch = self.stage + 1, 0


def capture(model: nn.Module, stages: Sequence[Stage], position: Position, running: RunningStage | None) -> Checkpoint:
    """Put model, heads, optimiser, scheduler and position into a checkpoint; `running` is None between stages."""
    checkpoint = Checkpoint(state={"position": asdict(position)})
    checkpoint.add("model", model.state_dict())
    for index, stage in enumerate(stages):
        checkpoint.add(f"losses.{index}", stage.loss_modules.state_dict())
    if running is not None:
        tensors, rest = _optimizer_state(running.optimizer)
        checkpoint.add("optimizer", tensors)
        checkpoint.state |= {"optimizer": rest, "scheduler": running.scheduler.state_dict()}
    return checkpoint


def restore(checkpoint: Checkpoint, path: Path, model: nn.Module, stages: Sequence[Stage]) -> Position:
    """Load model and heads, and return where the run stood.

    Raises:
        CheckpointError: The weights belong to another model.
    """
    try:
        model.load_state_dict(checkpoint.take("model"))
        for index, stage in enumerate(stages):
            stage.loss_modules.load_state_dict(checkpoint.take(f"losses.{index}"))
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another model: {error}; continue with the model it was written by, or "
            "give another output_dir"
        ) from error
    return Position(**checkpoint.state["position"])


def restore_running(checkpoint: Checkpoint, running: RunningStage, *, between_stages: bool) -> None:
    """Load optimiser and scheduler of a stage that had begun, and the gradient scaler."""
    if not between_stages:
        _set_optimizer_state(running.optimizer, checkpoint.take("optimizer"), checkpoint.state["optimizer"])
        running.scheduler.load_state_dict(checkpoint.state["scheduler"])
    if running.scaler is not None:
        running.scaler.load_state_dict(checkpoint.state["scaler"])


def _check_settings(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Refuse to resume from a checkpoint of a run with other settings.

    Raises:
        CheckpointError: Settings differ; all of them are listed.
    """
    before, now = _flatten(saved), _flatten(current)
    differences = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another run: {'; '.join(differences)}. Use the earlier settings to "
            "resume it, or give another output_dir to start a new run"
        )


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{name}.{key}" if name else key)
    return flat


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                others[f"{index}.{key}"] = value
    return tensors, {"param_groups": state["param_groups"], "others": others}


def _set_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in (tensors | rest["others"]).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    for group in rest["param_groups"]:
        # JSON has no tuples; torch gives and expects them for everything but the parameters' indices.
        group |= {
            key: tuple(cast(list[Any], value))
            for key, value in group.items()
            if isinstance(value, list) and key != "params"
        }
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
