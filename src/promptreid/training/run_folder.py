"""The files of one run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from promptreid.errors import CheckpointError
from promptreid.files import write_bytes_atomically
from promptreid.training.checkpoint import (
    Checkpoint,
    clear_unfinished,
    list_checkpoints,
    load_weights,
    read_state,
    save_checkpoint,
    save_weights,
)
from promptreid.training.run_state import check_settings


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
