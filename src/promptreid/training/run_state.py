"""Where a run stands, and how it goes into a checkpoint and comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from promptreid.errors import CheckpointError
from promptreid.training.checkpoint import Checkpoint
from promptreid.training.running_stage import RunningStage
from promptreid.training.stages import Stage


@dataclass
class RunState:
    """The next batch to train on, and what has been learnt of the run so far.

    Attributes:
        stage: Index of the stage.
        epoch: Within the stage, from 0.
        batch: Within the epoch, from 0.
        step: Steps of the optimiser over all stages.
        sums: Losses of this epoch's batches so far, summed by name.
        seconds: Spent on this epoch so far.
        history: One entry an epoch; the lines of the log.
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

    def end_step(self, losses: Mapping[str, float], *, seconds: float) -> None:
        """Add one step's losses to the epoch's."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
        self.batch, self.step, self.seconds = self.batch + 1, self.step + 1, self.seconds + seconds

    @property
    def means(self) -> dict[str, float]:
        """The epoch's mean losses so far."""
        return {name: value / self.batch for name, value in self.sums.items()}

    def end_epoch(self, entry: dict[str, Any], *, epochs: int) -> None:
        """Keep the epoch's entry and go to the next epoch, or the next stage after the last."""
        self.history.append(entry)
        self.batch, self.sums, self.seconds = 0, {}, 0.0
        self.epoch += 1
        if self.epoch == epochs:
            self.stage, self.epoch = self.stage + 1, 0


def capture(model: nn.Module, stages: Sequence[Stage], state: RunState, running: RunningStage | None) -> Checkpoint:
    """Put model, heads, optimiser, scheduler and position into a checkpoint."""
    checkpoint = Checkpoint(state={"position": asdict(state)})
    checkpoint.add("model", model.state_dict())
    for index, stage in enumerate(stages):
        checkpoint.add(f"losses.{index}", stage.loss_modules.state_dict())
    if running is not None:
        tensors, rest = _optimizer_state(running.optimizer)
        checkpoint.add("optimizer", tensors)
        checkpoint.state |= {"optimizer": rest, "scheduler": running.scheduler.state_dict()}
    return checkpoint


def restore(checkpoint: Checkpoint, path: Path, model: nn.Module, stages: Sequence[Stage]) -> RunState:
    """Load model and heads, and return where the run stood.

    Raises:
        CheckpointError: The weights are of another model.
    """
    try:
        model.load_state_dict(checkpoint.take("model"))
        for index, stage in enumerate(stages):
            stage.loss_modules.load_state_dict(checkpoint.take(f"losses.{index}"))
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint {path} is of another model: {error}; continue with the model it was written by, or give "
            "another output_dir"
        ) from error
    return RunState(**checkpoint.state["position"])


def restore_running(checkpoint: Checkpoint, running: RunningStage) -> None:
    """Load optimiser and scheduler of a stage that was under way."""
    _set_optimizer_state(running.optimizer, checkpoint.take("optimizer"), checkpoint.state["optimizer"])
    running.scheduler.load_state_dict(checkpoint.state["scheduler"])


def check_settings(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Refuse to go on from a checkpoint of a run with other settings.

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
            f"the checkpoint {path} belongs to another run: {'; '.join(differences)}. Run with the settings of before "
            "to go on, or give another output_dir to start anew"
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
        # JSON knows no tuples; torch gives and expects them for everything but the parameters' indices.
        group |= {
            key: tuple(cast(list[Any], value))
            for key, value in group.items()
            if isinstance(value, list) and key != "params"
        }
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
