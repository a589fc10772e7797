"""The training loop: stages in order, checkpoints, a log, and resuming after a kill."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.modes import recomputed_activations
from promptreid.training.batches import Batches, MakeSampler, check_training_data
from promptreid.training.interruption import Interruption
from promptreid.training.log import EpochBar, RunLog
from promptreid.training.processes import make_accelerator
from promptreid.training.run import Run, RunFolder
from promptreid.training.selection import Evaluate, Selection
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage

_log = logging.getLogger("promptreid.training")


class StageLoop:
    """Runs what is left of the stage that a run has come to.

    Args:
        run: The run.
        running: The stage with its optimiser.
        batches: The training data.
        selection: Which epoch's weights the stage ends with.
        log: Told of every step and epoch.
        held: Asked after each step whether to stop.
        checkpoint_every_steps: Write checkpoints within epochs too.
        bars: Whether progress is shown.
    """

    def __init__(
        self,
        run: Run,
        running: RunningStage,
        *,
        batches: Batches,
        selection: Selection,
        log: RunLog,
        held: Interruption,
        checkpoint_every_steps: int | None,
        bars: bool,
    ) -> None:
        self.run = run
        self.running = running
        self.batches = batches
        self.selection = selection
        self.log = log
        self.held = held
        self.checkpoint_every_steps = checkpoint_every_steps
        self.bars = bars

    def finish(self) -> None:
        """Run the epochs that are left.

        Raises:
            SystemExit: Ctrl-C or SIGTERM; a checkpoint has been written.
        """
        if self.run.state.between_stages:
            self.run.state.best = None
        self.run.go_on(self.running)
        for _ in range(self.run.state.epoch, self.running.stage.epochs):
            self._run_epoch()
            self._end_epoch()

    def _run_epoch(self) -> None:
        state, stage = self.run.state, self.running.stage
        earlier = sum(stage.epochs for stage in self.run.stages[: state.stage])
        later = sum(stage.epochs for stage in self.run.stages[state.stage :]) - state.epoch - 1
        label = f"{stage.name} {state.epoch + 1}/{stage.epochs}"
        steps = len(self.batches)
        with EpochBar(label, batches=steps, done=state.batch, left_after=later * steps, shown=self.bars) as bar:
            before = time.perf_counter()
            for batch in self.batches.epoch(state.epoch + earlier, start=state.batch):
                before = self._step(batch, before)
                del batch  # else it takes memory while the next one is loaded
                bar.step(state.means)
                if state.batch < steps:
                    self._save_within_epoch()

    def _step(self, batch: Any, before: float) -> float:
        state, stage = self.run.state, self.running.stage
        rate = self.running.learning_rate
        where = f"step {state.step} (stage {stage.name}, epoch {state.epoch + 1}, batch {state.batch + 1})"
        losses, norm = self.running.step(batch, where=where, last_checkpoint=self.run.last)
        now = time.perf_counter()
        state.end_step(losses, seconds=now - before)
        self.log.write_step(
            stage=stage.name,
            epoch=state.epoch + 1,
            step=state.step,
            losses=losses,
            gradient_norm=norm,
            learning_rate=rate,
            seconds=now - before,
        )
        return now

    def _save_within_epoch(self) -> None:
        wanted = self.held.wanted()
        if wanted or (self.checkpoint_every_steps and self.run.state.step % self.checkpoint_every_steps == 0):
            self.run.save(self.running)
        if wanted:
            self._leave()

    def _end_epoch(self) -> None:
        state, stage = self.run.state, self.running.stage
        entry: dict[str, Any] = {
            "stage": stage.name,
            "epoch": state.epoch + 1,
            "step": state.step,
            "losses": state.means,
            "learning_rate": self.running.learning_rate,
            "seconds": round(state.seconds, 3),
        }
        last = state.epoch + 1 == stage.epochs
        scores = self.selection.scores(self.run.model, stage, last=last)
        if scores is not None:
            entry["scores"] = scores
        if self.selection.prefers(scores, state.best):
            self.run.keep_best(entry)
        if last:
            entry["chosen"] = self._choose(entry)
        state.end_epoch(entry, epochs=stage.epochs)
        self.run.save(None if last else self.running)
        self.log.write_epoch(entry)
        if self.held.wanted():
            self._leave()

    def _choose(self, entry: dict[str, Any]) -> dict[str, Any]:
        chosen = self.selection.verdict(entry, self.run.state.best)
        if self.selection.metric is not None:
            self.run.choose_best()
        _log.info("stage %s ends with the weights of epoch %d (%s)", entry["stage"], chosen["epoch"], chosen["rule"])
        return chosen

    def _leave(self) -> None:
        self.held.exit(f"the checkpoint is {self.run.last}; give the same command again to go on")


class Trainer:
    """Runs stages one after another, on one device or, under `accelerate launch` or `torchrun`, on many.

    A run that was killed goes on from its last checkpoint when the same command is given again, and ends as it would
    have ended (bit for bit on the CPU). Ctrl-C and SIGTERM end the step under way, write a checkpoint and leave the
    program; the same command goes on from there.

    Each stage ends with the weights of its best epoch by `best_metric`, or, without one, of its last; `history` and
    the log say which.

    Args:
        model: The model to train.
        stages: What to run, in order: a `TwoStageSchedule` or any sequence of `Stage`.
        train_data: Items with `"images"` (3, H, W), `"tokens"` (L,) and `"person_ids"` (), such as `CaptionedImages`.
        batch_size: Pairs a step, over all processes.
        output_dir: Gets `steps.jsonl` (a line a step), `log.jsonl` (a line an epoch), `checkpoints/`,
            `best.safetensors` and `trackers/`. Processes on several machines must share it.
        seed: Of order, augmentation and dropout. Draw the model and the schedule under a seed of your own.
        device: For example `"cpu"` or `"cuda:1"`; the best there is if None.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        num_workers: Processes that load data; what they load does not depend on it.
        make_sampler: Makes the batch sampler from `seed`, `num_replicas` and `rank`, for example `functools.partial`
            of a sampler with its other settings; all pairs in random order if None.
        chunk_size: Pairs that each process encodes at a time; of a batch larger than that each pair is encoded twice
            and gradients are cached, so that memory stays near that of a chunk. The whole batch if None.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        compile: Let torch.compile make the encoders' code.
        evaluate: From the model, in eval mode, to scores by name; called after each stage.
        evaluate_every_epoch: Call it after every epoch.
        best_metric: The score whose highest value chooses each stage's weights, such as `"mAP"` of the validation
            split; never one of the test split. None where there is no validation split.
        checkpoint_every_steps: Write checkpoints within epochs too.
        keep_checkpoints: How many of the last checkpoints are kept.
        trackers: Names that accelerate knows, such as `"tensorboard"` or `"wandb"`, or trackers of its own kind.
        progress: Show a bar for each epoch.
        resume: Go on from the checkpoints in `output_dir`; if False, a folder that holds a run is refused.

    Attributes:
        history: One entry an epoch: stage, epoch, step, losses, learning rate, seconds, scores, and for a stage's last
            epoch which weights were chosen and why.
        best: The entry with the best score of the last stage, or None.

    Raises:
        MissingExtraError: accelerate or a tracker is not installed.
        ValueError: Settings do not fit together or the device; the batch is larger than the data set or does not
            divide by the processes; fewer than two persons, or labels that a loss has no output for.
        CheckpointError: `output_dir` holds another run.

    Example:
        ```python
        schedule = TwoStageSchedule(model, num_identities=data.num_identities)
        trainer = Trainer(model, schedule, train_data=pairs, batch_size=64, output_dir="runs/first")
        history = trainer.fit()
        ```
    """

    def __init__(
        self,
        model: PromptedCLIP,
        stages: Sequence[Stage],
        *,
        train_data: Dataset[dict[str, Tensor]],
        batch_size: int,
        output_dir: str | Path,
        seed: int = 0,
        device: str | torch.device | None = None,
        mixed_precision: Literal["no", "bf16", "fp16"] = "no",
        num_workers: int = 0,
        make_sampler: MakeSampler | None = None,
        chunk_size: int | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        evaluate: Evaluate | None = None,
        evaluate_every_epoch: bool = False,
        best_metric: str | None = None,
        checkpoint_every_steps: int | None = None,
        keep_checkpoints: int = 2,
        trackers: Sequence[Any] = ("tensorboard",),
        progress: bool = True,
        resume: bool = True,
    ) -> None:
        if not stages or any(stage.model is not model for stage in stages):
            raise ValueError("stages must be at least one Stage, each made for the model given here")
        _check_counts(0, seed=seed, num_workers=num_workers)
        _check_counts(
            1, chunk_size=chunk_size, checkpoint_every_steps=checkpoint_every_steps, keep_checkpoints=keep_checkpoints
        )
        check_training_data(train_data, stages)
        self.folder: RunFolder = RunFolder(output_dir, keep=keep_checkpoints)
        self.seed = seed
        self.checkpoint_every_steps = checkpoint_every_steps
        self.chunk_size = chunk_size
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self._selection = Selection(evaluate, every_epoch=evaluate_every_epoch, metric=best_metric)
        self._accelerator = make_accelerator(device, mixed_precision, trackers=trackers, folder=self.folder.path)
        self._bars = progress and self._accelerator.is_main_process
        self._batches = Batches(
            train_data,
            batch_size=batch_size,
            seed=seed,
            make_sampler=make_sampler,
            num_workers=num_workers,
            num_replicas=self._accelerator.num_processes,
            rank=self._accelerator.process_index,
            pin_memory=self._accelerator.device.type == "cuda",
        )
        self._run = Run(
            model,
            list(stages),
            folder=self.folder,
            accelerator=self._accelerator,
            settings=self._settings(stages),
            resume=resume,
        )

    @property
    def model(self) -> PromptedCLIP:
        """The model."""
        return self._run.model

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order."""
        return self._run.stages

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry an epoch, oldest first."""
        return self._run.state.history

    @property
    def best(self) -> dict[str, Any] | None:
        """The entry with the highest `best_metric` of the last stage that was run."""
        return self._run.state.best

    def fit(self) -> list[dict[str, Any]]:
        """Run what is left of the stages and return the history.

        Raises:
            CheckpointError: The checkpoint to go on from is damaged or of another model.
            FloatingPointError: A loss or gradient is no longer finite.
            SystemExit: Ctrl-C or SIGTERM; a checkpoint has been written.
        """
        self._run.begin(seed=self.seed)
        log = RunLog(self.folder.path, self._accelerator, step=self._run.state.step)
        try:
            with (
                Interruption(self._accelerator.device) as held,
                recomputed_activations(self.model.clip, enable=self.gradient_checkpointing),
            ):
                for stage in self.stages[self._run.state.stage :]:
                    self._run_stage(stage, log, held)
        finally:
            log.close()
        self.model.eval()
        return self.history

    def load_best(self) -> None:
        """Load the weights with the best score of the last stage into the model.

        Raises:
            CheckpointError: There are none yet, or the file is damaged.
        """
        self.folder.load_best(self.model)

    def _run_stage(self, stage: Stage, log: RunLog, held: Interruption) -> None:
        running = RunningStage(
            stage,
            self._accelerator,
            steps_per_epoch=len(self._batches),
            chunk_size=self.chunk_size,
            compile=self.compile,
        )
        loop = StageLoop(
            self._run,
            running,
            batches=self._batches,
            selection=self._selection,
            log=log,
            held=held,
            checkpoint_every_steps=self.checkpoint_every_steps,
            bars=self._bars,
        )
        loop.finish()
        self._accelerator.free_memory()

    def _settings(self, stages: Sequence[Stage]) -> dict[str, Any]:
        settings = {
            **self._batches.settings(),
            "seed": self.seed,
            "processes": self._accelerator.num_processes,
            "mixed_precision": self._accelerator.mixed_precision,
            "stages": [stage.settings() for stage in stages],
        }
        return json.loads(json.dumps(settings))


def _check_counts(minimum: int, **counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < minimum:
            raise ValueError(f"{name} is {count}, expected at least {minimum}")
