"""Progress of a run while it trains: a bar per epoch, a JSON line per step, and trackers."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from promptreid.errors import MissingExtraError
from promptreid.files import write_bytes_atomically


class EpochBar:
    """Batches done, this epoch's mean losses, and the time left for the epoch and for the whole run.

    Args:
        label: Stage and epoch.
        batches: Batches in the whole epoch.
        done: Batches of it that were done before the run was resumed.
        left_after: Batches of the run after this epoch.
        shown: Whether the bar is shown.
    """

    def __init__(self, label: str, *, batches: int, done: int, left_after: int, shown: bool) -> None:
        self._bar = tqdm(total=batches, initial=done, desc=label, unit="batch", disable=not shown)
        self._left_after = left_after
        self._done = 0

    def __enter__(self) -> "EpochBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, means: Mapping[str, float]) -> None:
        """Show one more batch and the mean losses so far."""
        if self._bar.disable:
            return
        self._done += 1
        left = self._bar.total - self._bar.n - 1 + self._left_after
        seconds = self._bar.format_dict["elapsed"] / self._done * left
        shown = {name: f"{value:.4f}" for name, value in means.items()}
        self._bar.set_postfix({**shown, "run_left": tqdm.format_interval(seconds)}, refresh=False)
        self._bar.update()


class RunLog:
    """`steps.jsonl` with a line per step, and trackers such as TensorBoard; in the main process alone.

    A resumed run cuts off the lines beyond its checkpoint, so the file ends as that of an uninterrupted run.

    Args:
        folder: Folder of the run.
        accelerator: accelerate's `Accelerator`, made with the trackers.
        step: Step of the checkpoint that the run is resumed from; 0 for a new run.
    """

    def __init__(self, folder: Path, accelerator: Any, *, step: int) -> None:
        self._accelerator = accelerator
        self._file = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "steps.jsonl"
            write_bytes_atomically(path, "".join(_lines_until(path, step)).encode())
            self._file = path.open("a", encoding="utf-8", buffering=1)
        # What TensorBoard holds of steps beyond the checkpoint is hidden, as they are done again.
        accelerator.init_trackers("", init_kwargs={"tensorboard": {"purge_step": step + 1}})

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
