"""The training loop: stages in order, checkpoints, a log, and resuming after a kill."""

import copy
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptreid.errors import NotFiniteError, spoken
from promptreid.model.encoding import check_prompted
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.modes import recomputed_activations
from promptreid.training.batches import (
    Batches,
    MakeSampler,
    batch_keys,
    check_persons_per_batch,
    check_training_data,
    comparing_losses,
    report_one_person,
    seed_generators,
)
from promptreid.training.callbacks import Evaluate, OnEpochEnd, scores_of, undisturbed
from promptreid.training.checkpoint import Checkpoint, Position, kept_weights
from promptreid.training.display import RunDisplay
from promptreid.training.interruption import Interruption
from promptreid.training.log import RunLog
from promptreid.training.processes import (
    every_batch_a_step,
    failing_together,
    first_rank,
    forget_earlier,
    in_precision,
    make_accelerator,
)
from promptreid.training.run_checkpoints import RunCheckpoints
from promptreid.training.run_folder import RunFolder
from promptreid.training.run_identity import Undescribed, evaluate_identity, run_identity, settings_held
from promptreid.training.stage import Stage, as_stages
from promptreid.training.step import RunningStage, check_chunk_size, diverged
from promptreid.values import given_path, optional_whole_number, whole_number

_log = logging.getLogger("promptreid.training")


class Trainer(Undescribed):
    """Runs stages one after another, on one device or, under `accelerate launch` or `torchrun`, on many.

    A killed run resumes from its last checkpoint when the same command is run again, and ends as it would have ended
    (bit for bit on the CPU). Ctrl-C, SIGTERM and SIGHUP finish the current step, write a checkpoint and leave the
    program; the same command resumes from there. What went into the run (data, base, losses, settings) is kept with
    it, and a run is not resumed with anything else.

    Each stage ends with the weights of its best epoch by `best_metric`, or, without one, of its last; `history` and the
    log say which. A stage with an `average` ends with the averaged weights, and its last epoch's scores are those of
    the average.

    Args:
        model: The model to train.
        stages: What to run, in order: a `TwoStageSchedule`, any sequence of `Stage`, or one `Stage`.
        train_data: Items with `"images"` (3, H, W), `"tokens"` (L,) and `"person_ids"` (), such as `CaptionedImages`.
        batch_size: Pairs per step, over all processes.
        output_dir: Gets `steps.jsonl` (a line per step), `log.jsonl` (a line per epoch), `checkpoints/`,
            `best.safetensors` and `trackers/`. Processes on several machines must share it.
        seed: Seed of order, augmentation and dropout. Seed the creation of the model and the schedule yourself.
        device: For example `"cpu"` or `"cuda:1"`; the best one available if None.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        num_workers: Processes that load data; what they load does not depend on it.
        make_sampler: Makes the batch sampler from `seed`, `num_replicas` and `rank`, for example `functools.partial`
            of a sampler with its other settings; all pairs in random order if None.
        steps_per_epoch: Steps after which an epoch ends, to try out a long run; all batches if None.
        chunk_size: Pairs that each process encodes at a time. In a larger batch each pair is encoded twice and
            gradients are cached, so that memory stays near that of a chunk; not where BatchNorm trains, as in RN50's
            stage 2. The whole batch if None.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        compile: Compile the encoders with torch.compile.
        evaluate: From the model, in eval mode, to scores by name; called after each stage. A run is resumed with the
            same one only: of its code and what it was made with. Where that says too much, give it what counts:
            `evaluate.settings = lambda: {"k": 10}`. If it fails, the epoch is kept in a checkpoint and scored when the
            run is resumed; before the first scores with another `evaluate` and `best_metric` too.
        evaluate_every_epoch: Call it after every epoch.
        best_metric: The score whose highest value chooses each stage's weights, such as `"mAP"` of the validation
            split; never one of the test split. None where there is no validation split.
        on_epoch_end: Called after every epoch, in every process, with a copy of the epoch's entry in `history` and
            the model in eval mode without gradients, after a stage's last epoch with the weights that were chosen.
            What it returns is ignored. Random numbers that it draws change nothing in the run. It is called before
            the epoch's checkpoint is written, so again if a kill repeats the epoch.
        checkpoint_every_steps: Write checkpoints within epochs too.
        keep_checkpoints: Number of checkpoints that are kept while it trains; a run that has ended keeps its last.
        trackers: Names that accelerate knows, such as `"tensorboard"` or `"wandb"`, or its `GeneralTracker` objects.
        project: Under which trackers keep the run; its name is that of `output_dir` and of the folder that it is in.
        progress: Print one line per epoch on standard error and, on a terminal or in a notebook, show a progress bar.
        resume: Resume from the checkpoints in `output_dir`; if False, a folder that holds a run is refused.

    Attributes:
        position: The run's progress.
        baseline: Scores before the first epoch, by name, for its line; may be set.
        on_validation: Whether `evaluate` scores the validation split, for the words of its lines; may be set.
        epochs_after: Epochs that other trainers of the same run train after this one, for the time left; may be set.

    Raises:
        MissingExtraError: accelerate or a tracker is not installed.
        ValueError: Settings do not fit together or the device; the batch is larger than the dataset or does not
            divide by the processes; fewer than two persons, or one in every batch where a loss tells those of a batch
            apart; labels for which a loss has no output.
        TypeError: A count is not a whole number, or `model` or `stages` is something else.
        CheckpointError: `output_dir` holds another run.

    Example:
        ```python
        schedule = TwoStageSchedule(model, num_identities=data.train.num_identities)
        trainer = Trainer(model, schedule, train_data=pairs, batch_size=64, output_dir="runs/first")
        history = trainer.fit()
        ```
    """

    def __init__(
        self,
        model: PromptedCLIP,
        stages: Stage | Iterable[Stage],
        *,
        train_data: Dataset[dict[str, Tensor]],
        batch_size: int,
        output_dir: str | Path,
        seed: int = 0,
        device: str | torch.device | None = None,
        mixed_precision: Literal["no", "bf16", "fp16"] = "no",
        num_workers: int = 0,
        make_sampler: MakeSampler | None = None,
        steps_per_epoch: int | None = None,
        chunk_size: int | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        evaluate: Evaluate | None = None,
        evaluate_every_epoch: bool = False,
        best_metric: str | None = None,
        on_epoch_end: OnEpochEnd | None = None,
        checkpoint_every_steps: int | None = None,
        keep_checkpoints: int = 2,
        trackers: Sequence[Any] = ("tensorboard",),
        project: str = "promptreid",
        progress: bool = True,
        resume: bool = True,
    ) -> None:
        check_prompted(model)
        stages = as_stages(stages)
        _check_choices(model, stages, best_metric=best_metric, evaluate=evaluate)
        self.model = model
        self.stages: list[Stage] = stages
        kept = whole_number("keep_checkpoints", keep_checkpoints, minimum=1)
        self.folder: RunFolder = RunFolder(given_path("output_dir", output_dir), keep=kept)
        self.seed: int = whole_number("seed", seed, minimum=0)
        self.chunk_size: int | None = optional_whole_number("chunk_size", chunk_size, minimum=1)
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self.evaluate = evaluate
        self.evaluate_every_epoch = evaluate_every_epoch
        self.best_metric = best_metric
        self.on_epoch_end = on_epoch_end
        self.checkpoint_every_steps: int | None = optional_whole_number(
            "checkpoint_every_steps", checkpoint_every_steps, minimum=1
        )
        self.mixed_precision = mixed_precision
        with in_precision(mixed_precision):
            self._accelerator = make_accelerator(device, mixed_precision, trackers=trackers, folder=self.folder.path)
        self.project = project
        self.progress = progress
        self.baseline: Mapping[str, float] | None = None
        self.on_validation: bool = False
        self.epochs_after: int = 0
        self.position: Position = Position()
        batch_size = whole_number("batch_size", batch_size, minimum=1)
        check_chunk_size(stages, self.chunk_size, share=batch_size // self._accelerator.num_processes)
        with failing_together():
            check_training_data(train_data, stages, batch_size=batch_size)
            self._batches = self._make_batches(
                train_data,
                batch_size=batch_size,
                make_sampler=make_sampler,
                num_workers=whole_number("num_workers", num_workers, minimum=0),
                steps_per_epoch=optional_whole_number("steps_per_epoch", steps_per_epoch, minimum=1),
            )
            check_persons_per_batch(self._batches.sampler, stages)
            settings, identity = self._describe(train_data, make_sampler)
            self._checkpoints = RunCheckpoints(self.folder, self._accelerator, settings=settings, identity=identity)
            self._checkpoints.find(resume=resume)
        self._checkpoints.agree()

    @property
    def device(self) -> torch.device:
        """Where the model trains; `fit` moves it there."""
        return self._accelerator.device

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint, or None."""
        return self._checkpoints.newest

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per epoch, oldest first: stage, epoch, step, losses, learning rate, seconds and scores.

        That of a stage's last epoch also says which weights were chosen, and why.
        """
        return self.position.history

    @property
    def best(self) -> dict[str, Any] | None:
        """The entry with the highest `best_metric` of the last stage that was run, or None."""
        return self.position.best

    def fit(self) -> list[dict[str, Any]]:
        """Run what is left of the stages and return the history.

        Raises:
            CheckpointError: The checkpoint to resume from is damaged or belongs to another model; or an earlier call
                failed before the first checkpoint, and a step may have changed the model or a loss.
            ValueError: Every batch of an epoch held only one person, and a loss tells those of a batch apart.
            FloatingPointError: A loss or gradient is no longer finite, or the features that an epoch's steps lead to.
            TypeError: `evaluate` did not return numbers by name.
            TimeoutError: Another process trains in `output_dir`.
            SystemExit: Ctrl-C, SIGTERM or SIGHUP; a checkpoint has been written.
        """
        self._display = RunDisplay(
            self.stages,
            steps_per_epoch=len(self._batches),
            epochs_after=self.epochs_after,
            metric=self.best_metric,
            on_validation=self.on_validation,
            baseline=self.baseline,
            shown=self.progress and self._accelerator.is_main_process,
        )
        with ExitStack() as stack:
            stack.enter_context(in_precision(self.mixed_precision))
            stack.enter_context(settings_held(loss for stage in self.stages for loss in stage.losses.values()))
            with failing_together():
                if self._accelerator.is_main_process:
                    stack.enter_context(self.folder.held(self.last_checkpoint))
                    if self.last_checkpoint is None:
                        self._display.say(self.folder.check_space(self.model, self.stages, best=bool(self.best_metric)))
            with failing_together():
                checkpoint = self._begin()
                log = stack.enter_context(closing(self._open_log()))
            held = stack.enter_context(Interruption(self._accelerator.device))
            stack.enter_context(recomputed_activations(self.model.clip, enable=self.gradient_checkpointing))
            stack.callback(self._accelerator.free_memory)
            for stage in self.stages[self.position.stage :]:
                self._run_stage(stage, checkpoint, log, held)
                checkpoint = None
            with failing_together():
                if self._accelerator.is_main_process:
                    self.folder.tidy()
        self.model.eval()
        return self.history

    def load_best(self) -> None:
        """Load the weights with the best score of the last stage into the model.

        Raises:
            CheckpointError: There are none yet, or the file is damaged.
        """
        self._checkpoints.load_best(self.model, self.stages, digest=self.position.best_sha256)

    def _open_log(self) -> RunLog:
        settings = self._checkpoints.for_trackers()
        return RunLog(
            self.folder.path, self._accelerator, step=self.position.step, project=self.project, settings=settings
        )

    def _make_batches(self, train_data: Dataset[dict[str, Tensor]], **settings: Any) -> Batches:
        """This process's share of the batches; `settings` are those of `Batches`."""
        return Batches(
            train_data,
            keys=batch_keys(self.model),
            seed=self.seed,
            num_replicas=self._accelerator.num_processes,
            rank=self._accelerator.process_index,
            pin_memory=self._accelerator.device.type == "cuda",
            **settings,
        )

    def _begin(self) -> Checkpoint | None:
        """Load the last checkpoint if there is one, else seed the generators."""
        checkpoint, self.position = self._checkpoints.load(self.model, self.stages, step=self.position.step)
        if self._accelerator.is_main_process:
            self.folder.repair(self.position)
        self.model.to(self._accelerator.device)
        if checkpoint is None:
            # Dropout differs between processes; everything that must not differ is seeded elsewhere.
            seed_generators(self.seed + self._accelerator.process_index)
        return checkpoint

    def _run_stage(self, stage: Stage, checkpoint: Checkpoint | None, log: RunLog, held: Interruption) -> None:
        forget_earlier(self._accelerator)
        running = RunningStage(
            stage,
            self._accelerator,
            steps_per_epoch=len(self._batches),
            chunk_size=self.chunk_size,
            compile=self.compile,
        )
        if self.position.between_stages:
            self.position.best = self.position.best_sha256 = None
        if checkpoint is not None:
            self._checkpoints.resume(checkpoint, running, between_stages=self.position.between_stages)
        self._display.begin_stage(self.position.stage, epoch=self.position.epoch)
        for _ in range(self.position.epoch, stage.epochs):
            self._run_epoch(running, log, held)
            self._end_epoch(running, log)
            if held.wanted():
                self._leave(held)

    def _run_epoch(self, running: RunningStage, log: RunLog, held: Interruption) -> None:
        position, steps = self.position, len(self._batches)
        earlier = sum(stage.epochs for stage in self.stages[: position.stage])
        with self._display.epoch(position.stage, position.epoch, batch=position.batch) as show:
            before = time.perf_counter()
            for batch in self._batches.epoch(position.epoch + earlier, start=position.batch):
                before = self._step(running, batch, before, log)
                del batch  # else it takes memory while the next one is loaded
                show(position.means)
                if position.batch == steps:
                    continue  # the epoch's end writes this checkpoint
                stop, every = held.wanted(), self.checkpoint_every_steps
                if stop or (every and position.step % every == 0):
                    self._checkpoints.save(self.model, self.stages, self.position, running)
                if stop:
                    self._leave(held)

    def _step(self, running: RunningStage, batch: Any, before: float, log: RunLog) -> float:
        """Train on a batch and log it; returns the time at which it ended."""
        position, name = self.position, running.stage.name
        rate = running.learning_rate
        where = f"step {position.step} (stage {name}, epoch {position.epoch + 1}, batch {position.batch + 1})"
        try:
            with every_batch_a_step(self._accelerator):
                losses, norm, one_person = running.step(batch, where=where, last_checkpoint=self.last_checkpoint)
        finally:
            self._checkpoints.begun |= running.moved
        now = time.perf_counter()
        position.end_step(losses, seconds=now - before, one_person=one_person)
        log.write_step(
            stage=name,
            epoch=position.epoch + 1,
            step=position.step,
            losses=losses,
            gradient_norm=norm,
            learning_rate=rate,
            seconds=now - before,
        )
        return now

    def _end_epoch(self, running: RunningStage, log: RunLog) -> None:
        position, stage = self.position, running.stage
        entry: dict[str, Any] = {
            "stage": stage.name,
            "epoch": position.epoch + 1,
            "step": position.step,
            "losses": position.means,
            "learning_rate": running.learning_rate,
            "seconds": round(position.seconds, 3),
        }
        if position.one_person and (names := comparing_losses(stage)):
            entry["one_person_batches"] = position.one_person
            report_one_person(names, entry, batches=position.batch, warn=self._accelerator.is_main_process)
        last = position.epoch + 1 == stage.epochs
        keep_epoch = self._checkpoints.epoch_keeper(self.model, self.stages, position, running, last=last)
        if stage.average is not None:
            stage.average.add(stage.named_parameters(), epoch=position.epoch + 1, epochs=stage.epochs)
            if last:
                stage.average.load_into(stage.named_parameters())
        if self.evaluate is not None and (last or self.evaluate_every_epoch):
            entry["scores"] = self._scores(self.evaluate, keep_epoch)
            if (last or stage.average is None) and position.improves(entry, self.best_metric):
                self._keep(entry)
        if last:
            self._end_stage(entry, averaged=stage.average is not None)
        if self.on_epoch_end is not None:
            with undisturbed(self.model):
                self.on_epoch_end(copy.deepcopy(entry), self.model)
        index, is_best = position.stage, position.best is entry
        position.end_epoch(entry, epochs=stage.epochs)
        self._checkpoints.save(self.model, self.stages, position, None if last else running)
        log.write_epoch(entry)
        self._display.end_epoch(index, entry, is_best=is_best)

    def _scores(self, evaluate: Evaluate, keep_epoch: Callable[[], None]) -> dict[str, float]:
        position = self.position
        try:
            return scores_of(
                evaluate,
                self.model,
                best_metric=self.best_metric,
                keep_epoch=keep_epoch,
                processes=self._accelerator.num_processes,
            )
        except NotFiniteError as error:
            name = self.stages[position.stage].name
            where = f"step {position.step - 1} (stage {name}, epoch {position.epoch + 1})"
            raise diverged(error, where=where, last_checkpoint=self.last_checkpoint) from error

    def _keep(self, entry: dict[str, Any]) -> None:
        """Keep the weights as the best so far."""
        digest = None
        with failing_together():
            if self._accelerator.is_main_process:
                digest = self.folder.save_best(kept_weights(self.model, self.stages[: self.position.stage + 1]))
        self.position.best, self.position.best_sha256 = entry, first_rank(digest)

    def _end_stage(self, entry: dict[str, Any], *, averaged: bool) -> None:
        """Load the weights with which the stage ends, and note which they are."""
        chosen = entry["chosen"] = self.position.choose(entry, self.best_metric, averaged=averaged)
        if chosen["step"] != entry["step"]:
            with failing_together():
                self.load_best()
        _log.info("%s ends with the weights of epoch %d (%s)", spoken(entry["stage"]), chosen["epoch"], chosen["rule"])

    def _leave(self, held: Interruption) -> None:
        held.exit(f"the checkpoint is {self.last_checkpoint}; run the same command again to resume")

    def _describe(self, train_data: Any, make_sampler: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings that must match a checkpoint's: those that version 0.1.0 kept, and the rest."""
        settings = {
            **self._batches.settings(),
            "seed": self.seed,
            "processes": self._accelerator.num_processes,
            "mixed_precision": self.mixed_precision,
            "stages": [stage.settings() for stage in self.stages],
        }
        identity = run_identity(
            self.model,
            train_data if self._accelerator.is_main_process else None,  # whose files are read
            losses=[stage.loss_settings for stage in self.stages],
            make_sampler=make_sampler,
            chunk_size=self.chunk_size,
            evaluate=self.evaluate is not None,
            evaluate_function=evaluate_identity(self.evaluate) if self._accelerator.is_main_process else None,
            evaluate_every_epoch=self.evaluate_every_epoch,
            best_metric=self.best_metric,
        )
        return json.loads(json.dumps(settings)), identity


def _check_choices(
    model: PromptedCLIP,
    stages: Sequence[Stage],
    *,
    best_metric: str | None,
    evaluate: Evaluate | None,
) -> None:
    if not stages or any(stage.model is not model for stage in stages):
        raise ValueError("stages must be at least one Stage, each made for the model given here")
    if best_metric is not None and evaluate is None:
        raise ValueError(f"best_metric={best_metric!r} needs evaluate, which returns scores by name")
