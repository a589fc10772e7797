"""Progress of a run while it trains: a line and a bar an epoch, a JSON line a step, and trackers."""

import importlib.util
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from secrets import token_hex
from typing import Any

from tqdm.auto import tqdm
from tqdm.notebook import tqdm_notebook

from promptreid.errors import MissingExtraError, spoken
from promptreid.files import write_bytes_atomically
from promptreid.training.stage import Stage

# The purpose of the method's two stages, for people who see their names for the first time.
_EXPLAINED = {"stage_one": " (domain adaptation)", "stage_two": " (task adaptation)"}

_COLUMNS = 80

_FRACTION = re.compile(r"rank\d+|mAP|mINP")


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
        baseline: Mapping[str, float] | None = None,
        shown: bool = True,
    ) -> None:
        self._stages = stages
        self._steps = steps_per_epoch
        self._after = epochs_after
        self._metric = metric
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
            f"{_counted(stage.epochs, 'epoch')} of {_counted(self._steps, 'step')}{resumed}"
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
                chosen_by=self._metric,
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
            why = f"the highest validation {metric}, {shown_score(metric, chosen[metric])}"
            self._before = {metric: chosen[metric]}
        self.say(f"{spoken(stage.name)}: kept epoch {chosen['epoch']} of {stage.epochs}, {why}")

    def _label(self, stage: Stage, epoch: int) -> str:
        return f"{spoken(stage.name)} {epoch + 1:>{len(str(stage.epochs))}}/{stage.epochs}"

    def _time_left(self, index: int, epoch: int, *, batch: int) -> str:
        epochs = sum(stage.epochs for stage in self._stages[index:]) + self._after - epoch
        seconds = (time.monotonic() - self._began) / max(1, self._done)
        return tqdm.format_interval(seconds * (epochs * self._steps - batch))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def epoch_line(
    label: str,
    *,
    name: str | None,
    scores: Mapping[str, float],
    before: Mapping[str, float],
    chosen_by: str | None,
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
        chosen_by: The score that chooses, which is one of the validation split.
        is_best: Whether it is the stage's best so far.
        loss: Mean total loss.
        left: Time left of the run.

    Example:
        >>> options = dict(name="mAP", chosen_by="mAP", is_best=True, loss=3.92, left="02:20")
        >>> epoch_line("stage one 2/3", scores={"mAP": 0.1602}, before={"mAP": 0.1531}, **options)
        'stage one 2/3  val mAP 16.02 (+0.71) best  loss 3.920  02:20 left'
    """
    score = ""
    if name is not None and name in scores:
        change = shown_score(name, scores[name] - before[name], signed=True) if name in before else "first"
        whose = "val " if name == chosen_by else ""
        score = f"  {whose}{name} {shown_score(name, scores[name])} ({change}) {'best' if is_best else '    '}"
    rest = f"{score}  loss {loss:.3f}  {left} left"
    room = _COLUMNS - len(rest)
    return (label if len(label) <= room else f"{label[: room - 1]}…") + rest


def shown_score(name: str, value: float, *, signed: bool = False) -> str:
    """A score as it is printed: those of retrieval in percent, others as they are."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f}" if _FRACTION.fullmatch(name) else f"{value:{sign}.4g}"


class RunLog:
    """`steps.jsonl` with a line per step, and trackers such as TensorBoard; only in the main process.

    A resumed run cuts off the lines beyond its checkpoint, so the file ends as that of an uninterrupted run.

    Args:
        folder: Folder of the run.
        accelerator: accelerate's `Accelerator`, made with the trackers.
        step: Step of the checkpoint that the run is resumed from; 0 for a new run.
        project: Under which trackers keep the run.
        settings: What trackers are told of the run.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Any,
        *,
        step: int,
        project: str = "promptreid",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._file = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "steps.jsonl"
            write_bytes_atomically(path, "".join(_lines_until(path, step)).encode())
            _start_trackers(accelerator, folder, step=step, project=project, settings=settings or {})
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write_step(self, *, step: int, losses: Mapping[str, float], seconds: float, **others: Any) -> None:
        """Write what one step gave; `others` are its stage, epoch, learning rate and gradient norm."""
        if self._file is None:
            return
        # JSON has no number for an overflow of fp16.
        known = {
            name: None if isinstance(value, float) and not isfinite(value) else value for name, value in others.items()
        }
        entry = {"step": step, **known, "losses": dict(losses), "seconds": round(seconds, 6)}
        self._file.write(json.dumps(entry) + "\n")
        if self._accelerator.trackers:
            numbers = {f"loss/{name}": value for name, value in losses.items()}
            numbers |= {name: value for name, value in known.items() if isinstance(value, float)}
            self._accelerator.log(numbers, step=step)

    def write_epoch(self, entry: Mapping[str, Any]) -> None:
        """Give an epoch's scores to the trackers; its line in `log.jsonl` is written with the checkpoint."""
        if self._file is not None and self._accelerator.trackers and entry.get("scores"):
            scores = {f"scores/{name}": value for name, value in entry["scores"].items()}
            self._accelerator.log(scores, step=entry["step"])

    def close(self) -> None:
        """Close the file and the trackers."""
        if self._file is not None:
            self._file.close()
        # Not accelerator.end_training, which would also end the process group that a next trainer needs.
        for tracker in self._accelerator.trackers:
            tracker.finish()


def _start_trackers(accelerator: Any, folder: Path, *, step: int, project: str, settings: Mapping[str, Any]) -> None:
    """Start the trackers with project, the run's name (the ends of its folder's path) and its settings."""
    if not accelerator.log_with:
        return
    own = Path(folder).resolve()
    name = f"{own.parent.name}/{own.name}"
    options = {
        # What TensorBoard holds of steps beyond the checkpoint is hidden, as they are done again.
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": name, "group": own.parent.name, "id": _run_id(folder), "resume": "allow"},
        "mlflow": {"run_name": name},
        "trackio": {"name": name},
        "swanlab": {"experiment_name": name},
    }
    names = [str(getattr(one, "value", None) or getattr(one, "name", one)) for one in accelerator.log_with]
    try:
        accelerator.init_trackers(project, init_kwargs=options)
    except Exception as error:  # of any kind: each tracker has its own
        raise RuntimeError(
            f"a tracker ({', '.join(names)}) does not start: {error}; set it up as its own documentation says, or "
            "leave it out"
        ) from error
    flat = flat_settings({"run": name, **settings})
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":  # its own way would make a run of its own of the settings
            rows = "".join(f"| {key} | {value} |\n" for key, value in flat.items())
            tracker.tracker.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", global_step=step)
        else:
            tracker.store_init_configuration(flat)


def _run_id(folder: Path) -> str:
    """A name that no other run has, kept in its folder, so that a resumed run is the same for a tracker."""
    path = folder / "tracker_id"
    if not path.is_file():
        write_bytes_atomically(path, token_hex(8).encode())
    return path.read_text(encoding="utf-8")


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Settings as trackers take them: numbers and text by names such as `stages.0.epochs`.

    Example:
        >>> flat_settings({"seed": 0, "stages": [{"name": "stage_one", "trains": []}]})
        {'seed': 0, 'stages.0.name': 'stage_one', 'stages.0.trains': '[]'}
    """
    flat: dict[str, str | int | float | bool] = {}
    for key, value in settings.items():
        inner = dict(enumerate(value)) if isinstance(value, list) and value else value  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(inner, Mapping) and inner:
            flat |= flat_settings({str(name): item for name, item in inner.items()}, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float)) else str(value)
    return flat


def check_trackers(trackers: Sequence[Any]) -> None:
    """Refuse trackers that accelerate does not know or that are not installed; it would ignore them silently.

    Raises:
        ValueError: accelerate has no such tracker.
        MissingExtraError: A tracker is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

    for tracker in trackers:
        if isinstance(tracker, GeneralTracker):
            continue
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"trackers has {tracker!r}, expected some of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, or objects of "
                "accelerate's GeneralTracker"
            )
        if importlib.util.find_spec(tracker) is None:
            extra = ' (or "promptreid[train]")' if tracker == "tensorboard" else ""
            raise MissingExtraError(
                f"the tracker {tracker} is not installed: pip install {tracker}{extra}; or leave it out of trackers"
            )


def _lines_until(path: Path, step: int) -> list[str]:
    """The whole lines of steps up to `step`; a kill may have left half a line at the end."""
    if step == 0 or not path.is_file():
        return []
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with suppress(ValueError, TypeError, KeyError, RecursionError):  # a damaged line, and no other, is lost
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    return kept
