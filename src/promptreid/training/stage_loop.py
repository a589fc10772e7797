"""The epochs of one stage."""

import logging
import time
from typing import Any

from promptreid.training.batches import Batches
from promptreid.training.interruption import Interruption
from promptreid.training.progress import EpochBar
from promptreid.training.run import Run
from promptreid.training.run_log import RunLog
from promptreid.training.running_stage import RunningStage
from promptreid.training.selection import Selection

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
