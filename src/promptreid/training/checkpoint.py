"""Checkpoints of a run: a folder each of safetensors and JSON, written whole or not at all, and how a run resumes."""

import json
import math
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from promptreid.errors import CheckpointError
from promptreid.files import file_digest, flush, rename_over, write_bytes_atomically, write_tensors_atomically
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.fingerprint import fingerprint
from promptreid.training.run_identity import describe, differences
from promptreid.training.stage import STAGE_ONE, STAGE_TWO, Stage
from promptreid.training.step import RunningStage

FORMAT = "promptreid-training"
VERSION = 2  # 2 has a digest of the state, and may hold prompts without the encoders; 1 is read too
TENSORS, STATE = "state.safetensors", "state.json"

NEEDED = ("settings", "position", "random")
_ENCODERS = "clip."

# What the stages were called in runs of version 0.1.0.
FORMER_NAMES = {STAGE_ONE: "domain_adaptation", STAGE_TWO: "task_adaptation"}

_WRITTEN, _UNFINISHED = re.compile(r"step-\d{9,}"), re.compile(r"unfinished-step-\d{9,}(-old|-replaced)?")


@dataclass
class Checkpoint:
    """The state that a run resumes from: tensors by name, and everything else as JSON holds it."""

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
    """Complete checkpoints of a folder, oldest first; anything else beside them is not ours."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and _WRITTEN.fullmatch(path.name))


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
    state = json.loads(json.dumps(state))  # as it will be read
    write_bytes_atomically(unfinished / STATE, json.dumps({**state, "digest": _digest(state)}).encode())
    replaced = folder / f"{unfinished.name}-replaced"
    if target.exists():
        rename_over(target, replaced)
    rename_over(unfinished, target)
    flush(folder)
    if replaced.exists():
        shutil.rmtree(replaced)
    for old in list_checkpoints(folder)[:-keep]:
        remove_checkpoint(old)
    return target


def _digest(state: Mapping[str, Any]) -> str:
    return sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON of one checkpoint, which is small.

    Raises:
        CheckpointError: It is incomplete, damaged, or not a checkpoint of this library.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"{STATE} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise _refusal(path, f"{STATE} does not say that it is of format {FORMAT}")
    if state.get("version") not in (1, VERSION):
        raise _refusal(path, f"it is of version {state.get('version')}, this promptreid reads versions 1 to {VERSION}")
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise _refusal(path, f"{STATE} has no {', '.join(missing)}")
    found = state.pop("digest", None)
    if found != _digest(state) and (found is not None or state["version"] != 1):
        raise _refusal(path, f"{STATE} is damaged: its digest is not that of its content")
    _rename_stages(state)
    return cast(dict[str, Any], state)


def state_digest(path: Path) -> str:
    """A digest of what `read_state` reads, the same wherever the same is read; NaN would differ from itself.

    Raises:
        CheckpointError: As `read_state`.
    """
    return _digest(read_state(path))


def _rename_stages(state: Mapping[str, Any]) -> None:
    """Give the stages of a run of an earlier version their present names."""
    with suppress(TypeError, LookupError, AttributeError):  # damage is found where the content is used
        position: Any = state["position"]
        present = {former: name for name, former in FORMER_NAMES.items()}
        named = [(stage, "name") for stage in state["settings"]["stages"]]
        named += [(entry, "stage") for entry in [*position["history"], position["best"] or {}]]
        for entry, key in named:
            if key in entry:
                entry[key] = present.get(entry[key], entry[key])


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


def check_alike(saved: Any, own: Any) -> None:
    """Refuse what was read from JSON where it is of another kind than what it is to replace; null may become anything.

    Raises:
        ValueError: Something is a number, say, and was a list.
    """
    kinds = [float if isinstance(each, int) and not isinstance(each, bool) else type(each) for each in (saved, own)]
    if isinstance(own, (list, tuple)) and isinstance(saved, (list, tuple)):
        for pair in zip(cast(Any, saved), cast(Any, own), strict=True):
            check_alike(*pair)
    elif isinstance(own, dict) and isinstance(saved, dict):
        for key in cast(dict[str, Any], own).keys() & cast(dict[str, Any], saved).keys():
            check_alike(saved[key], own[key])
    elif own is not None and kinds[0] is not kinds[1]:
        raise ValueError(f"found {saved!r} where {own!r} was expected")


@contextmanager
def readable(path: Path) -> Generator[None, None, None]:
    """Turn any error from a checkpoint's damaged content into a `CheckpointError` that says what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise _refusal(path, f"its content cannot be used ({type(error).__name__}: {error})") from error


def replaced_alone(folder: Path) -> dict[Path, Path]:
    """Whole checkpoints that a kill left under another name before what was to replace them had theirs; and theirs."""
    begin, end = "unfinished-", "-replaced"
    found = {path: folder / path.name[len(begin) : -len(end)] for path in folder.glob(f"{begin}*{end}")}
    return {path: target for path, target in found.items() if _WRITTEN.fullmatch(target.name) and not target.exists()}


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed run had not finished writing or removing; what it was replacing is restored."""
    for path, target in replaced_alone(folder).items():
        rename_over(path, target)
    for path in folder.glob("unfinished-*"):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)


def _refusal(path: Path, reason: str) -> CheckpointError:
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    mend = f"resume from {others[-1]}" if others else "start over, or give another output_dir"
    return CheckpointError(f"cannot resume from the checkpoint {path}: {reason}; delete it to {mend}")


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, whole or not at all."""
    aside = path.with_name(f"unfinished-{path.name}-old")
    rename_over(path, aside)  # a kill in the middle of removing must not leave half a checkpoint under its name
    shutil.rmtree(aside)


@dataclass
class Position:
    """The progress of a run: the next batch to train on, and the results so far.

    Attributes:
        stage: Index of the stage.
        epoch: Within the stage, from 0.
        batch: Within the epoch, from 0.
        step: Steps of the optimiser over all stages.
        sums: Losses of this epoch's batches so far, summed by name.
        seconds: Time spent on this epoch so far.
        one_person: Batches of this epoch so far that held only one person.
        history: One entry per epoch; the lines of the log.
        best: The entry with the best score of this stage so far.
        best_sha256: SHA-256 of the file of its weights.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    best: dict[str, Any] | None = None
    best_sha256: str | None = None
    one_person: int = 0

    @property
    def between_stages(self) -> bool:
        """Whether the stage has not begun, so that its optimiser has no state yet."""
        return self.epoch == self.batch == 0

    @property
    def means(self) -> dict[str, float]:
        """The epoch's mean losses so far."""
        return {name: value / self.batch for name, value in self.sums.items()}

    def check(self, stages: Sequence[Stage]) -> None:
        """Refuse numbers that no run of these stages comes to.

        Raises:
            ValueError: A value is of another kind, or out of range.
        """
        epochs = [stage.epochs for stage in stages][self.stage : self.stage + 1] or [1]
        counts = (self.stage, self.epoch, self.batch, self.step, self.one_person)
        best: Any = {"epoch": 0, "step": 0, "scores": {}} if self.best is None else self.best
        check_alike(list(counts), [0] * len(counts))
        check_alike([self.seconds, *self.sums.values()], [0.0] * (1 + len(self.sums)))
        check_alike(
            [best["epoch"], best["step"], best["scores"], *self.history], [0, 0] + [{}] * (1 + len(self.history))
        )
        if min(counts) < 0 or self.stage > len(stages) or self.epoch >= epochs[0]:
            raise ValueError(f"stage, epoch, batch, step and batches of one person are {counts}")

    def improves(self, entry: Mapping[str, Any], metric: str | None) -> bool:
        """Whether an epoch's score is the stage's highest so far; the first of equals stays."""
        best = self.best
        return metric is not None and (best is None or entry["scores"][metric] > best["scores"][metric])

    def choose(self, entry: Mapping[str, Any], metric: str | None, *, averaged: bool) -> dict[str, Any]:
        """The weights with which a stage ends whose last epoch is `entry`: of which epoch, and by what rule."""
        chosen: dict[str, Any] = {"rule": "last epoch", "epoch": entry["epoch"], "step": entry["step"]}
        if metric is not None and self.best is not None:
            chosen = {"rule": f"highest {metric}", "epoch": self.best["epoch"], "step": self.best["step"]}
            chosen[metric] = self.best["scores"][metric]
        if averaged:
            chosen["rule"] = "average of all epochs"
        return chosen

    def end_step(self, losses: Mapping[str, float], *, seconds: float, one_person: bool = False) -> None:
        """Add one step's losses to the epoch's."""
        self.one_person += one_person
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
        self.batch, self.step, self.seconds = self.batch + 1, self.step + 1, self.seconds + seconds

    def end_epoch(self, entry: dict[str, Any], *, epochs: int) -> None:
        """Keep the epoch's entry and move to the next epoch, or to the next stage after the last."""
        self.history.append(entry)
        self.batch, self.sums, self.seconds, self.one_person = 0, {}, 0.0, 0
        self.epoch += 1
        if self.epoch == epochs:
            self.stage, self.epoch = self.stage + 1, 0


def check_metric(metric: str | None, scores: Mapping[str, float]) -> None:
    """Refuse scores among which the one to choose by is missing or not finite.

    Raises:
        ValueError: The score is missing or not finite.
    """
    if metric is not None and metric not in scores:
        near = next((name for name in scores if name.casefold() == metric.casefold()), None)
        meant = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(
            f"best_metric is {metric!r}, but evaluate returned {sorted(scores)}; set best_metric to one of these{meant}"
        )
    if metric is not None and not math.isfinite(scores[metric]):
        raise ValueError(f"evaluate returned {metric}={scores[metric]}, expected a finite number to choose by")


def kept_weights(model: PromptedCLIP, stages: Sequence[Stage]) -> dict[str, Tensor]:
    """A model's weights, without its encoders' if none of the stages trains them: a resumed run has those."""
    whole = any(stage.trains_encoders for stage in stages)
    return {name: value for name, value in model.state_dict().items() if whole or not name.startswith(_ENCODERS)}


def disk_use(model: PromptedCLIP, stages: Sequence[Stage], *, keep: int, best: bool) -> tuple[int, int]:
    """Bytes that a run's checkpoints take up to during training, and those that remain when it has ended.

    Args:
        model: The model.
        stages: The stages.
        keep: Checkpoints that are kept while it trains; one more is being written.
        best: Whether the best weights are kept too, twice while they are replaced.
    """
    heads = sum(value.nbytes for stage in stages for value in stage.losses.state_dict().values())
    most = left = 0
    for number, stage in enumerate(stages, start=1):
        left = sum(value.nbytes for value in kept_weights(model, stages[:number]).values())
        trained = sum(parameter.nbytes for parameter in stage.parameters())
        moments = trained * (1 if stage.algorithm == "sgd" else 2)
        most = max(most, (keep + 1) * (left + heads + moments) + (2 * left if best else 0))
    return most, left + heads


def load_weights(model: PromptedCLIP, tensors: Mapping[str, Tensor]) -> None:
    """Load what `kept_weights` kept.

    Raises:
        CheckpointError: Names or shapes are not this model's.
    """
    whole = any(name.startswith(_ENCODERS) for name in tensors)
    own = {name: value for name, value in model.state_dict().items() if whole or not name.startswith(_ENCODERS)}
    shapes = [{name: f"of shape {tuple(value.shape)}" for name, value in each.items()} for each in (tensors, own)]
    if different := differences(*shapes):
        more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
        raise CheckpointError(f"it belongs to another model: {'; '.join(different[:5])}{more}")
    model.load_state_dict(tensors, strict=False)


def encoders_digest(model: PromptedCLIP) -> str:
    """A short text that differs where the encoders were trained further or are others."""
    return describe(torch.tensor(fingerprint(model.clip)))


def capture(
    model: PromptedCLIP, stages: Sequence[Stage], position: Position, running: RunningStage | None
) -> Checkpoint:
    """Put model, heads, optimiser, scheduler and position into a checkpoint; `running` is None between stages."""
    checkpoint = Checkpoint(state={"position": asdict(position)})
    weights = kept_weights(model, stages[: position.stage + 1])
    checkpoint.add("model", weights)
    if not any(name.startswith(_ENCODERS) for name in weights):
        checkpoint.state["encoders"] = encoders_digest(model)
    for index, stage in enumerate(stages):
        checkpoint.add(f"losses.{index}", stage.losses.state_dict())
        if stage.average is not None and index == position.stage:
            checkpoint.add(f"average.{index}", stage.average.state_dict())
    if running is not None:
        tensors, rest = _optimizer_state(running.optimizer)
        checkpoint.add("optimizer", tensors)
        checkpoint.state |= {"optimizer": rest, "scheduler": running.scheduler.state_dict()}
    return checkpoint


def restore(checkpoint: Checkpoint, path: Path, model: PromptedCLIP, stages: Sequence[Stage]) -> Position:
    """Load model and heads, and return the run's progress.

    Raises:
        CheckpointError: The weights belong to another model, or the content is damaged.
    """
    position = Position(**checkpoint.state["position"])
    position.check(stages)
    try:
        encoders = checkpoint.state.get("encoders")
        if encoders is not None and encoders != encoders_digest(model):
            raise CheckpointError(
                "it holds only prompts, and the encoders of this model are not those that they were trained with; "
                "load the model again"
            )
        load_weights(model, checkpoint.take("model"))
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot resume from the checkpoint {path}: {error}; continue with the model it was written by, or give "
            "another output_dir"
        ) from error
    for index, stage in enumerate(stages):
        try:
            stage.losses.load_state_dict(checkpoint.take(f"losses.{index}"))
        except RuntimeError as error:
            raise CheckpointError(
                f"cannot resume from the checkpoint {path}: the losses of stage {stage.name!r} hold other tensors than "
                f"those that it was written with ({' '.join(str(error).split())}); give the stage losses with parts of "
                "the same names and sizes, or give another output_dir"
            ) from error
        if stage.average is not None and index == position.stage:
            stage.average.load_state_dict(checkpoint.take(f"average.{index}"))
    return position


def restore_running(checkpoint: Checkpoint, running: RunningStage, *, between_stages: bool) -> None:
    """Load optimiser and scheduler of a stage that had begun, and the gradient scaler."""
    if not between_stages:
        # A run whose optimiser was not fused, as none was once, stays so and ends as it would have.
        own = [{**group, "fused": None} for group in running.optimizer.state_dict()["param_groups"]]
        check_alike(checkpoint.state["optimizer"]["param_groups"], own)
        check_alike(checkpoint.state["scheduler"], running.scheduler.state_dict())
        _set_optimizer_state(running.optimizer, checkpoint.take("optimizer"), checkpoint.state["optimizer"])
        running.scheduler.load_state_dict(checkpoint.state["scheduler"])
    if running.scaler is not None:
        running.scaler.load_state_dict(checkpoint.state["scaler"])


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
