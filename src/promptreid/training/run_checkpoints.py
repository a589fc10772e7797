"""The checkpoints of one run, on which all its processes agree: found, read and written."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.batches import random_state, set_random_state
from promptreid.training.checkpoint import (
    Checkpoint,
    Position,
    capture,
    load_checkpoint,
    load_weights,
    read_state,
    readable,
    restore,
    restore_running,
    state_digest,
)
from promptreid.training.processes import all_ranks, failing_together, first_rank
from promptreid.training.run_folder import RunFolder
from promptreid.training.run_identity import differences
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("promptreid.training")

_READ_BY_FIRST = {"data": None, "evaluate_function": None}


class RunCheckpoints:
    """The checkpoints of one run.

    Args:
        folder: The run's.
        accelerator: Knows this process among the others.
        settings: What the run is resumed with only, as every version has kept it.
        identity: What else it is resumed with only (`run_identity`).

    Attributes:
        newest: The newest checkpoint, or None.
        begun: Whether the run may have changed the model or a loss in this process.
    """

    def __init__(
        self, folder: RunFolder, accelerator: "Accelerator", *, settings: dict[str, Any], identity: dict[str, Any]
    ) -> None:
        self.newest: Path | None = None
        self.begun: bool = False
        self._folder = folder
        self._accelerator = accelerator
        self._settings = settings
        self._identity = identity

    def find(self, *, resume: bool) -> None:
        """Look for a checkpoint of this run, in the first process.

        Raises:
            CheckpointError: The folder holds another run, or any where `resume` is False.
        """
        if self._accelerator.is_main_process:
            self.newest = self._folder.find(self._settings, self._identity, resume=resume)

    def agree(self) -> None:
        """Take the first process's checkpoint, and stop all processes where one has other settings or files.

        Data on separate disks may have other times, so what the first process says of its data, and of the function
        that scores with some of it, counts by itself.
        """
        mine = {**self._settings, **self._identity, **_READ_BY_FIRST, "output_dir": str(self._folder.path)}
        settings, self.newest, content = first_rank((mine, self.newest, self.newest and state_digest(self.newest)))
        with failing_together():
            different = differences(settings, mine)
            if different:
                raise ValueError(
                    f"this process has other settings than the first: {'; '.join(different)}; start all of them with "
                    "the same command"
                )
            if self.newest is not None and state_digest(self.newest) != content:
                raise CheckpointError(
                    f"{self.newest} is another checkpoint here than in the first process; give an output_dir "
                    "that all processes share"
                )

    def load(self, model: PromptedCLIP, stages: Sequence[Stage], *, step: int) -> tuple[Checkpoint | None, Position]:
        """Load the newest checkpoint, if there is one, into the model; returns it and the run's progress.

        Args:
            model: The model.
            stages: The stages.
            step: Steps that the run has taken in this process.

        Raises:
            CheckpointError: The run has trained the model already, and there is no checkpoint to take it back to.
        """
        if self.newest is None:
            if self.begun:
                raise CheckpointError(
                    f"an earlier fit of this trainer failed after {step} step{'s' * (step != 1)}, before its first "
                    "checkpoint, so the model, or what a loss holds, may no longer be what the run starts from; make "
                    "the model, its stages and the trainer again"
                )
            return None, Position()
        checkpoint = load_checkpoint(self.newest)
        with readable(self.newest):
            return checkpoint, restore(checkpoint, self.newest, model, stages)

    def resume(self, checkpoint: Checkpoint, running: RunningStage, *, between_stages: bool) -> None:
        """Load optimiser, scheduler and this process's generators from the newest checkpoint."""
        rank = self._accelerator.process_index
        with readable(self.newest or self._folder.checkpoints):
            restore_running(checkpoint, running, between_stages=between_stages)
            set_random_state(checkpoint.take(f"random.{rank}"), checkpoint.state["random"][rank])

    def save(
        self, model: PromptedCLIP, stages: Sequence[Stage], position: Position, running: RunningStage | None
    ) -> None:
        """Write a checkpoint; `running` is None between stages."""
        everyone: list[tuple[dict[str, Tensor], dict[str, Any]]] = all_ranks(random_state())
        path = None
        with failing_together():
            if self._accelerator.is_main_process:
                checkpoint = capture(model, stages, position, running)
                checkpoint.state |= {"settings": self._settings, "identity": self._identity}
                checkpoint.state["random"] = [state for _, state in everyone]
                if self._accelerator.scaler is not None:  # one scaler serves all stages
                    checkpoint.state["scaler"] = self._accelerator.scaler.state_dict()
                for rank, (states, _) in enumerate(everyone):
                    checkpoint.add(f"random.{rank}", states)
                path = self._folder.save(checkpoint, position.history, step=position.step)
        self.newest = first_rank(path)  # every process names it in errors, and waits here until it is written

    def epoch_keeper(
        self, model: PromptedCLIP, stages: Sequence[Stage], position: Position, running: RunningStage, *, last: bool
    ) -> Callable[[], None]:
        """A function that writes a checkpoint from which the epoch that has just been trained is scored again.

        Call this before the epoch's weights are averaged, and what it returns where scoring fails.

        Args:
            model: The model.
            stages: The stages.
            position: The run's progress, behind the epoch's last batch.
            running: The stage.
            last: Whether it is the stage's last epoch, whose weights an average replaces.
        """
        stage, average = running.stage, running.stage.average
        sums = {} if average is None else average.state_dict()
        trained = [] if average is None or not last else [(each, each.detach().clone()) for each in stage.parameters()]

        def keep() -> None:
            if average is not None:
                average.load_state_dict(sums)
            with torch.no_grad():
                for parameter, value in trained:
                    parameter.copy_(value)
            self.save(model, stages, position, running)
            _log.warning("evaluate failed; the epoch is kept in %s, and a resumed run scores it again", self.newest)

        return keep

    def load_best(self, model: PromptedCLIP, stages: Sequence[Stage], *, digest: str | None) -> None:
        """Load the weights with the best score of the last stage; `digest` is the SHA-256 of their file.

        Raises:
            CheckpointError: There are none yet, or the file is damaged.
        """
        newest = self.newest
        ended = newest is not None and not self._folder.best.exists() and read_state(newest)["position"]
        if newest is not None and ended and ended["stage"] == len(stages) and ended["best"] is not None:
            load_weights(model, load_checkpoint(newest).take("model"))  # see `RunFolder.tidy`
        else:
            self._folder.load_best(model, digest=digest)

    def for_trackers(self) -> dict[str, Any]:
        """The settings that trackers are told."""
        return {**self._settings, "prompts": self._identity["prompts"]}
