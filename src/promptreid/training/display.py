"""What a run shows while it trains: a line an epoch, and a bar meanwhile."""

import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

from promptreid.errors import counted, spoken
from promptreid.scores import shown_score
from promptreid.training.stage import Stage

# The purpose of the method's two stages, for people who see their names for the first time.
_EXPLAINED = {"stage_one": " (domain adaptation)", "stage_two": " (task adaptation)"}

_COLUMNS = 80


def bars_can_move() -> bool:
    """Whether bars are shown where progress is wanted: on a terminal or in a notebook, and not in a file of lines."""
    return sys.stderr.isatty() or issubclass(tqdm, tqdm_notebook)


class RunDisplay:
    """The display of a run on standard error: one line per epoch, of at most 80 columns, and a bar during training.

    Args:
        stages: The stages of the trainer.
        steps_per_epoch: Batches in an epoch.
        epochs_after: Epochs of the run that come after these stages, which count for the time left.
        metric: The score that chooses the weights.
        on_validation: Whether the scores are of the validation split.
        baseline: Scores before the first epoch, which its change counts from.
        shown: Whether anything is shown.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        steps_per_epoch: int,
        epochs_after: int = 0,
        metric: str | None = None,
        on_validation: bool = False,
        baseline: Mapping[str, float] | None = None,
        shown: bool = True,
    ) -> None:
        self._stages = stages
        self._steps = steps_per_epoch
        self._after = epochs_after
        self._metric = metric
        self._on_validation = on_validation
        self._before: Mapping[str, float] = baseline or {}
        self._shown = shown
        self._began = time.monotonic()
        self._done = 0

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._shown:
            tqdm.write(line, file=sys.stderr)

    def begin_stage(self, index: int, *, epoch: int) -> None:
        """Say what a stage trains, and where in it a resumed run continues."""
        if not self._done:
            self._began = time.monotonic()
        stage = self._stages[index]
        few = stage.trains if len(stage.trains) < 4 else (f"{len(stage.trains)} parameters by name",)
        what = " and ".join(map(spoken, few)) or "its losses"
        resumed = f"; resumed in epoch {epoch + 1}" if epoch else ""
        self.say(
            f"{spoken(stage.name)}{_EXPLAINED.get(stage.name, '')} trains the {what}: "
            f"{counted(stage.epochs, 'epoch')} of {counted(self._steps, 'step')}{resumed}"
        )

    @contextmanager
    def epoch(
        self, index: int, epoch: int, *, batch: int
    ) -> Generator[Callable[[Mapping[str, float]], None], None, None]:
        """Show a bar while an epoch is trained, from batch `batch` on; yields what is called with the mean losses."""
        label = self._label(self._stages[index], epoch)
        columns = min(_COLUMNS, shutil.get_terminal_size().columns) - 1
        form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        hidden = not (self._shown and bars_can_move())
        with tqdm(
            total=self._steps, initial=batch, desc=label, bar_format=form, ncols=columns, leave=False, disable=hidden
        ) as bar:

            def step(means: Mapping[str, float]) -> None:
                self._done += 1
                if not hidden:
                    left = self._time_left(index, epoch, batch=int(bar.n) + 1)
                    bar.set_postfix_str(f"loss {means['total']:.3f}, {left} left", refresh=False)
                    bar.update()

            yield step

    def end_epoch(self, index: int, entry: Mapping[str, Any], *, is_best: bool) -> None:
        """Print the line of an epoch that has ended."""
        stage, number = self._stages[index], entry["epoch"]
        scores: Mapping[str, float] = entry.get("scores", {})
        left = self._time_left(index, number, batch=0)
        self.say(
            epoch_line(
                self._label(stage, number - 1),
                name=self._metric or next(iter(scores), None),
                scores=scores,
                before=self._before,
                on_validation=self._on_validation,
                is_best=is_best,
                loss=entry["losses"]["total"],
                left=left,
            )
        )
        self._before = scores or self._before
        if "chosen" in entry:
            self._say_chosen(stage, entry["chosen"])

    def _say_chosen(self, stage: Stage, chosen: Mapping[str, Any]) -> None:
        metric = self._metric
        why = "its last"
        if metric is not None and metric in chosen:
            split = "validation " if self._on_validation else ""
            why = f"the highest {split}{metric}, {shown_score(metric, chosen[metric])}"
            self._before = {metric: chosen[metric]}
        self.say(f"{spoken(stage.name)}: kept epoch {chosen['epoch']} of {stage.epochs}, {why}")

    def _label(self, stage: Stage, epoch: int) -> str:
        return f"{spoken(stage.name)} {epoch + 1:>{len(str(stage.epochs))}}/{stage.epochs}"

    def _time_left(self, index: int, epoch: int, *, batch: int) -> str:
        epochs = sum(stage.epochs for stage in self._stages[index:]) + self._after - epoch
        seconds = (time.monotonic() - self._began) / max(1, self._done)
        return tqdm.format_interval(seconds * (epochs * self._steps - batch))


def epoch_line(
    label: str,
    *,
    name: str | None,
    scores: Mapping[str, float],
    before: Mapping[str, float],
    on_validation: bool,
    is_best: bool,
    loss: float,
    left: str,
) -> str:
    """One epoch in at most 80 columns: its score with the change, whether it is the best so far, loss and time left.

    Args:
        label: Stage and epoch; cut where the line would be too long.
        name: The score that is shown.
        scores: The epoch's scores, if it has any.
        before: Those of the epoch before.
        on_validation: Whether it is one of the validation split.
        is_best: Whether it is the stage's best so far.
        loss: Mean total loss.
        left: Time left of the run.

    Example:
        >>> options = dict(name="mAP", on_validation=True, is_best=True, loss=3.92, left="02:20")
        >>> epoch_line("stage one 2/3", scores={"mAP": 0.1602}, before={"mAP": 0.1531}, **options)
        'stage one 2/3  val mAP 16.02 (+0.71) best  loss 3.920  02:20 left'
    """
    score = ""
    if name is not None and name in scores:
        earlier = before.get(name)  # None too where it was no number and a checkpoint kept it
        change = "first" if earlier is None else shown_score(name, scores[name] - earlier, signed=True)
        whose = "val " if on_validation else ""
        score = f"  {whose}{name} {shown_score(name, scores[name])} ({change}) {'best' if is_best else '    '}"
    rest = f"{score}  loss {loss:.3f}  {left} left"
    room = _COLUMNS - len(rest)
    return (label if len(label) <= room else f"{label[: room - 1]}…") + rest
