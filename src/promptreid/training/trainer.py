"""The training loop: stages in order, checkpoints, a log, and going on after a kill."""

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from promptreid.data.samplers import EpochSampler
from promptreid.encoders.clip import PromptedCLIP
from promptreid.training.acceleration import all_ranks, make_accelerator
from promptreid.training.checkpoint import Checkpoint, load_checkpoint
from promptreid.training.randomness import SeededItems, preserved_randomness, random_state, set_random_state
from promptreid.training.run_folder import RunFolder
from promptreid.training.run_state import RunningStage, RunState, capture, restore, restore_running
from promptreid.training.stages import Stage
from promptreid.training.training_step import TrainingStep, check_finite

Evaluate = Callable[[PromptedCLIP], Mapping[str, float]]


class Trainer:
    """Runs stages one after another, on one device or, under `accelerate launch` or `torchrun`, on many.

    A run that was killed goes on from its last checkpoint when the same command is given again, and ends as it would
    have ended (bit for bit on the CPU).

    Args:
        model: The model to train.
        stages: What to run, in order: a `TwoStageSchedule` or any sequence of `Stage`.
        train_data: Items with `"images"` (3, H, W), `"tokens"` (L,) and `"person_ids"` (), such as `CaptionedImages`.
        batch_size: Pairs a step, over all processes.
        output_dir: Gets `log.jsonl` (a line an epoch), `checkpoints/` and `best.safetensors`.
        seed: Of order, augmentation and dropout. Draw the model and the schedule under a seed of your own.
        device: For example `"cpu"` or `"cuda:1"`; the best there is if None.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        num_workers: Processes that load data; what they load does not depend on it.
        evaluate: From the model, in eval mode, to scores by name; called after each stage.
        evaluate_every_epoch: Call it after every epoch.
        best_metric: The score whose highest value chooses the weights in `best.safetensors`; never one of the test
            split.
        checkpoint_every_steps: Write checkpoints within epochs too.
        progress: Show a bar for each epoch.
        resume: Go on from the checkpoints in `output_dir`; if False, a folder that holds a run is refused.

    Attributes:
        history: One entry an epoch: stage, epoch, step, losses, learning rate, seconds, scores.
        best: The entry with the best score, or None.

    Raises:
        MissingExtraError: accelerate is not installed.
        ValueError: Settings do not fit together, or the batch is larger than the data set.
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
        evaluate: Evaluate | None = None,
        evaluate_every_epoch: bool = False,
        best_metric: str | None = None,
        checkpoint_every_steps: int | None = None,
        progress: bool = True,
        resume: bool = True,
    ) -> None:
        if not stages or any(stage.model is not model for stage in stages):
            raise ValueError("stages must be at least one Stage, each made for the model given here")
        if best_metric is not None and evaluate is None:
            raise ValueError(f"best_metric={best_metric!r} needs evaluate, which returns scores by name")
        if checkpoint_every_steps is not None and checkpoint_every_steps < 1:
            raise ValueError(f"checkpoint_every_steps is {checkpoint_every_steps}, expected at least 1, or None")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected at least 0")
        self.model = model
        self.stages = list(stages)
        self.folder = RunFolder(output_dir)
        self.seed = seed
        self.evaluate = evaluate
        self.evaluate_every_epoch = evaluate_every_epoch
        self.best_metric = best_metric
        self.checkpoint_every_steps = checkpoint_every_steps
        self._accelerator = make_accelerator(device, mixed_precision)
        self._bars = progress and self._accelerator.is_main_process
        self._items = SeededItems(train_data, seed=seed)
        self._sampler = EpochSampler(
            len(cast(Sized, train_data)),
            batch_size=batch_size,
            seed=seed,
            shuffle=True,
            drop_last=True,
            num_replicas=self._accelerator.num_processes,
            rank=self._accelerator.process_index,
        )
        self._loader = DataLoader(
            self._items,
            batch_sampler=self._sampler,
            num_workers=num_workers,
            pin_memory=self._accelerator.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the generator that dropout draws from
        )
        self._state = RunState()
        self._last = self.folder.find(self._settings(), resume=resume)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry an epoch, oldest first."""
        return self._state.history

    @property
    def best(self) -> dict[str, Any] | None:
        """The entry with the highest `best_metric`."""
        return self._state.best

    def fit(self) -> list[dict[str, Any]]:
        """Run what is left of the stages and return the history.

        Raises:
            CheckpointError: The checkpoint to go on from is damaged or of another model.
            FloatingPointError: A loss or gradient is no longer finite.
        """
        checkpoint = None if self._last is None else self._load(self._last)
        self.model.to(self._accelerator.device)
        if checkpoint is None:
            self._seed()
        for stage in self.stages[self._state.stage :]:
            self._run_stage(stage, checkpoint)
            checkpoint = None
        self.model.eval()
        return self.history

    def load_best(self) -> None:
        """Load the weights with the best score into the model.

        Raises:
            CheckpointError: There are none yet, or the file is damaged.
        """
        self.folder.load_best(self.model)

    def _run_stage(self, stage: Stage, checkpoint: Checkpoint | None) -> None:
        stage.prepare()
        optimizer = stage.optimizer()
        running = RunningStage(
            stage,
            self._accelerator.prepare_model(TrainingStep(stage)),
            self._accelerator.prepare_optimizer(optimizer),
            stage.scheduler(optimizer, len(self._sampler)),
            self._accelerator.scaler,
        )
        if checkpoint is not None:
            if not self._state.between_stages:
                restore_running(checkpoint, running)
            rank = self._accelerator.process_index
            set_random_state(checkpoint.take(f"random.{rank}"), checkpoint.state["random"][rank])
        for _ in range(self._state.epoch, stage.epochs):
            self._run_epoch(running)
            self._end_epoch(running)
        self._accelerator.free_memory()

    def _run_epoch(self, running: RunningStage) -> None:
        state, steps = self._state, len(self._sampler)
        self._items.epoch = state.epoch + sum(stage.epochs for stage in self.stages[: state.stage])
        self._sampler.set_position(epoch=self._items.epoch, batch=state.batch)
        label = f"{running.stage.name} {state.epoch + 1}/{running.stage.epochs}"
        with tqdm(total=steps, initial=state.batch, desc=label, unit="batch", disable=not self._bars) as bar:
            before = time.perf_counter()
            for batch in self._loader:
                self._step(running, batch)
                now = time.perf_counter()
                state.seconds, before = state.seconds + now - before, now
                bar.set_postfix(loss=f"{state.sums['total'] / state.batch:.4f}", refresh=False)
                bar.update()
                every = self.checkpoint_every_steps
                if every and state.step % every == 0 and state.batch < steps:
                    self._save(running)

    def _step(self, running: RunningStage, batch: dict[str, Tensor]) -> None:
        device = self._accelerator.device
        share = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        losses: dict[str, Tensor] = running.module(share["images"], share["tokens"], share["person_ids"])
        self._accelerator.backward(losses["total"])
        values = torch.stack([value.detach().float() for value in losses.values()])
        norm = None
        if running.stage.max_norm is not None:
            norm = self._accelerator.clip_grad_norm_(running.stage.parameters(), running.stage.max_norm)
        # fp16 gradients overflow now and then: there the scaler skips the step by itself.
        watched = values if norm is None or running.scaler is not None else torch.cat([values, norm.float().view(1)])
        numbers = watched.tolist()  # the one time in a step that the CPU waits for the device
        state = self._state
        check_finite(
            dict(zip([*losses, "gradient norm"], numbers, strict=False)),
            where=f"step {state.step} (stage {running.stage.name}, epoch {state.epoch + 1}, batch {state.batch + 1})",
            last_checkpoint=self._last,
        )
        running.optimizer.step()
        if not self._accelerator.optimizer_step_was_skipped:
            running.scheduler.step()
        running.optimizer.zero_grad()
        state.sums = {name: state.sums.get(name, 0.0) + value for name, value in zip(losses, numbers, strict=False)}
        state.batch, state.step = state.batch + 1, state.step + 1

    def _end_epoch(self, running: RunningStage) -> None:
        state, stage = self._state, running.stage
        entry: dict[str, Any] = {
            "stage": stage.name,
            "epoch": state.epoch + 1,
            "step": state.step,
            "losses": {name: value / state.batch for name, value in state.sums.items()},
            "learning_rate": running.scheduler.get_last_lr()[0],
            "seconds": round(state.seconds, 3),
        }
        last = state.epoch + 1 == stage.epochs
        if self.evaluate is not None and (last or self.evaluate_every_epoch):
            entry["scores"] = self._scores(stage)
            self._keep_best(entry)
        state.end_epoch(entry, epochs=stage.epochs)
        self._save(None if last else running)

    def _scores(self, stage: Stage) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        self.model.eval()
        with preserved_randomness(), torch.no_grad():
            scores = {name: float(value) for name, value in self.evaluate(self.model).items()}
        stage.prepare()
        return scores

    def _keep_best(self, entry: dict[str, Any]) -> None:
        if self.best_metric is None:
            return
        scores, best = entry["scores"], self._state.best
        if self.best_metric not in scores:
            raise ValueError(f"best_metric is {self.best_metric!r}, but evaluate returned {sorted(scores)}")
        if best is None or scores[self.best_metric] > best["scores"][self.best_metric]:
            self._state.best = entry
            if self._accelerator.is_main_process:
                self.folder.save_best(self.model)

    def _save(self, running: RunningStage | None) -> None:
        tensors, rest = random_state()
        everyone = all_ranks((tensors, rest))
        if self._accelerator.is_main_process:
            checkpoint = capture(self.model, self.stages, self._state, running)
            checkpoint.state |= {"settings": self._settings(), "random": [state for _, state in everyone]}
            for rank, (states, _) in enumerate(everyone):
                checkpoint.add(f"random.{rank}", states)
            self._last = self.folder.save(checkpoint, self.history, step=self._state.step)
        self._accelerator.wait_for_everyone()

    def _load(self, path: Path) -> Checkpoint:
        checkpoint = load_checkpoint(path)
        self._state = restore(checkpoint, path, self.model, self.stages)
        if self._accelerator.is_main_process:
            self.folder.tidy(self.history)
        return checkpoint

    def _settings(self) -> dict[str, Any]:
        settings = {
            "batch_size": self._sampler.batch_size,
            "items": len(self._items),
            "seed": self.seed,
            "processes": self._accelerator.num_processes,
            "mixed_precision": self._accelerator.mixed_precision,
            "stages": [stage.settings() for stage in self.stages],
        }
        return json.loads(json.dumps(settings))

    def _seed(self) -> None:
        # Dropout differs between processes; everything that must not differ is seeded elsewhere.
        seed = self.seed + self._accelerator.process_index
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
