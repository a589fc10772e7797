"""The log of a run while it trains: a JSON line a step, and its trackers."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from promptreid.files import json_line, write_bytes_atomically
from promptreid.training.trackers import start_trackers
from promptreid.values import as_json


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
            start_trackers(accelerator, folder, step=step, project=project, settings=settings or {})
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def write_step(self, *, step: int, losses: Mapping[str, float], seconds: float, **others: Any) -> None:
        """Write what one step gave; `others` are its stage, epoch, learning rate and gradient norm."""
        if self._file is None:
            return
        known = as_json(others)  # of an overflow of fp16 nothing is known
        entry = {"step": step, **known, "losses": dict(losses), "seconds": round(seconds, 6)}
        self._file.write(json_line(entry))
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
