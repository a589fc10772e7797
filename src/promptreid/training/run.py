"""A run on disk and in memory: its files, where it stands, and how it is resumed."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from promptreid.errors import CheckpointError
from promptreid.files import write_bytes_atomically
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.batches import random_state, set_random_state
from promptreid.training.checkpoint import (
    Checkpoint,
    RunState,
    capture,
    check_settings,
    clear_unfinished,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    read_state,
    restore,
    restore_running,
    save_checkpoint,
    save_weights,
)
from promptreid.training.processes import all_ranks, first_rank
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage


class RunFolder:
    """A folder with `log.jsonl`, `checkpoints/` and `best.safetensors`, each written whole or not at all.

    Args:
        path: The folder; made when something is first written.
        keep: How many of the last checkpoints are kept.
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path: Path = Path(path)
        self.keep = keep
        self.checkpoints: Path = self.path / "checkpoints"
        self.best: Path = self.path / "best.safetensors"

    def find(self, settings: dict[str, Any], *, resume: bool) -> Path | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            CheckpointError: The folder holds a run with other settings, or any run where `resume` is False.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            return None
        if not resume:
            raise CheckpointError(
                f"output_dir {self.path} holds a run already; give another folder, or resume=True to go on"
            )
        check_settings(read_state(found[-1])["settings"], settings, found[-1])
        return found[-1]

    def save(self, checkpoint: Checkpoint, history: Sequence[dict[str, Any]], *, step: int) -> Path:
        """Write a checkpoint, then the log."""
        path = save_checkpoint(checkpoint, self.checkpoints, step=step, keep=self.keep)
        self.write_log(history)
        return path

    def write_log(self, history: Sequence[dict[str, Any]]) -> None:
        """Write one line an entry."""
        content = "".join(json.dumps(entry) + "\n" for entry in history)
        write_bytes_atomically(self.path / "log.jsonl", content.encode())

    def tidy(self, history: Sequence[dict[str, Any]]) -> None:
        """Mend what a kill left behind: unfinished files, and a log without its last line."""
        clear_unfinished(self.checkpoints)
        for name in ("best.safetensors", "log.jsonl", "steps.jsonl"):
            for scratch in self.path.glob(f".{name}-*"):
                scratch.unlink()
        self.write_log(history)

    def save_best(self, model: nn.Module) -> None:
        """Keep a model's weights as the best so far."""
        save_weights(model, self.best)

    def load_best(self, model: nn.Module) -> None:
        """Load the best weights.

        Raises:
            CheckpointError: There are none yet, or the file is damaged.
        """
        load_weights(model, self.best)


class Run:
    """Model, stages and position of a run, to save and to go on from.

    Args:
        model: The model.
        stages: The stages.
        folder: Where checkpoints are.
        accelerator: accelerate's `Accelerator`.
        settings: What a checkpoint must agree with.
        resume: Whether a folder that holds a run may be gone on from.

    Attributes:
        state: Where the run stands.
        last: The last checkpoint, or None.

    Raises:
        CheckpointError: The folder holds another run.
    """

    def __init__(
        self,
        model: PromptedCLIP,
        stages: list[Stage],
        *,
        folder: RunFolder,
        accelerator: Any,
        settings: dict[str, Any],
        resume: bool,
    ) -> None:
        self.model = model
        self.stages = stages
        self.folder = folder
        self.state = RunState()
        self.last: Path | None = folder.find(settings, resume=resume)
        self._accelerator = accelerator
        self._settings = settings
        self._pending: Checkpoint | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self._accelerator.is_main_process

    def begin(self, *, seed: int) -> None:
        """Load the last checkpoint if there is one, else seed the generators."""
        if self.last is not None:
            self._pending = load_checkpoint(self.last)
            self.state: RunState = restore(self._pending, self.last, self.model, self.stages)
            if self.is_main:
                self.folder.tidy(self.state.history)
        self.model.to(self._accelerator.device)
        if self._pending is None:
            # Dropout differs between processes; everything that must not differ is seeded elsewhere.
            seed += self._accelerator.process_index
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)

    def go_on(self, running: RunningStage) -> None:
        """Set optimiser, schedule, scaler and generators of the first stage after `begin` to where they stood."""
        checkpoint, self._pending = self._pending, None
        if checkpoint is None:
            return
        if not self.state.between_stages:
            restore_running(checkpoint, running)
        if running.scaler is not None:
            running.scaler.load_state_dict(checkpoint.state["scaler"])
        rank = self._accelerator.process_index
        set_random_state(checkpoint.take(f"random.{rank}"), checkpoint.state["random"][rank])

    def save(self, running: RunningStage | None) -> None:
        """Write a checkpoint; `running` is None between stages."""
        everyone: list[tuple[dict[str, Tensor], dict[str, Any]]] = all_ranks(random_state())
        if self.is_main:
            checkpoint = capture(self.model, self.stages, self.state, running)
            checkpoint.state |= {"settings": self._settings, "random": [state for _, state in everyone]}
            if self._accelerator.scaler is not None:  # which goes on from stage to stage
                checkpoint.state["scaler"] = self._accelerator.scaler.state_dict()
            for rank, (states, _) in enumerate(everyone):
                checkpoint.add(f"random.{rank}", states)
            self.last = self.folder.save(checkpoint, self.state.history, step=self.state.step)
        self.last = first_rank(self.last)  # which every process names in errors; so each waits until it is written

    def keep_best(self, entry: dict[str, Any]) -> None:
        """Keep the weights as this stage's best so far."""
        self.state.best = entry
        if self.is_main:
            self.folder.save_best(self.model)

    def choose_best(self) -> None:
        """Go on with this stage's best weights, if they are not the last ones anyway."""
        self._accelerator.wait_for_everyone()
        if self.state.best is not None and self.state.best["step"] != self.state.step:
            self.folder.load_best(self.model)
