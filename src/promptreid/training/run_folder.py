"""A run's folder: its contents, the check that only the same run resumes in it, and a lock for one process."""

import errno
import json
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import (
    file_digest,
    json_line,
    locked,
    read_sealed_json,
    remove_abandoned,
    rename_over,
    write_bytes_atomically,
    write_sealed_json,
    write_tensors_atomically,
)
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.checkpoint import (
    Checkpoint,
    Position,
    clear_unfinished,
    disk_use,
    list_checkpoints,
    load_weights,
    read_state,
    readable,
    remove_checkpoint,
    replaced_alone,
    save_checkpoint,
)
from promptreid.training.run_identity import differences
from promptreid.training.stage import Stage


class RunFolder:
    """A folder with `log.jsonl`, `checkpoints/` and `best.safetensors`, each written whole or not at all.

    New best weights wait in `best.next.safetensors` until the checkpoint that names them is written, so that a kill
    in between leaves those of the checkpoint before.

    Args:
        path: The folder; made when something is first written.
        keep: Number of checkpoints that are kept.
    """

    def __init__(self, path: str | Path, *, keep: int = 2) -> None:
        self.path: Path = Path(path)
        self.keep = keep
        self.checkpoints: Path = self.path / "checkpoints"
        self.best: Path = self.path / "best.safetensors"
        self._next_best: Path = self.path / "best.next.safetensors"
        self._lock: Path = self.path / ".training.lock"
        self._held: os.stat_result | None = None

    @contextmanager
    def held(self, newest: Path | None) -> Generator[None, None, None]:
        """Let no other process train in the folder inside the block.

        Args:
            newest: The newest checkpoint, as far as this process knows.

        Raises:
            TimeoutError: Another process trains there; the message has its number.
            CheckpointError: Another process has trained there in between.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self._lock, action=f"training in {self.path}", timeout_seconds=0):
            clear_unfinished(self.checkpoints)
            if [newest] != (list_checkpoints(self.checkpoints)[-1:] or [None]):
                raise CheckpointError(
                    f"another process has trained in {self.path} since this trainer was made; run the same command "
                    "again to resume from there, or give another output_dir"
                )
            self._held = self._lock.stat()
            yield

    def check_held(self) -> None:
        """Notice a folder that was deleted or replaced under a run, which would end with a part of its files.

        Raises:
            CheckpointError: The folder was deleted or replaced.
        """
        if self._held is not None and not (self._lock.exists() and os.path.samestat(self._held, self._lock.stat())):
            raise CheckpointError(
                f"{self.path} was deleted or replaced while the run trained in it, so nothing more is written there; "
                "start the run again"
            )

    def check_space(self, model: PromptedCLIP, stages: Sequence[Stage], *, best: bool) -> str:
        """Refuse to begin a run whose checkpoints would not fit on the disk; returns how much they take, in words.

        Args:
            model: The model.
            stages: The stages.
            best: Whether the best weights are kept too.

        Raises:
            OSError: There is less space.
        """
        needed, left = disk_use(model, stages, keep=self.keep, best=best)
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"the run's checkpoints need up to {megabytes(needed)}, but only {megabytes(free)} are free; free "
                "some, give another output_dir, or keep_checkpoints=1",
                str(self.path),
            )
        return f"checkpoints take up to {megabytes(needed)} during training and {megabytes(left)} afterwards"

    def find(self, settings: dict[str, Any], identity: dict[str, Any], *, resume: bool) -> Path | None:
        """The checkpoint to resume from, if there is one.

        Args:
            settings: Settings that every version has kept.
            identity: What else a run must have in common; a version that did not keep an entry is not held to it.
            resume: Whether a run may be resumed.

        Raises:
            CheckpointError: The folder holds another run; every difference is listed. Or any, where `resume` is False.
        """
        if replaced_alone(self.checkpoints):
            with suppress(TimeoutError), locked(self._lock, action="repairing", timeout_seconds=0):
                clear_unfinished(self.checkpoints)  # unless a run that is alive is replacing it
        found = list_checkpoints(self.checkpoints)
        if not found:
            return None
        if not resume:
            raise CheckpointError(
                f"{self.path} holds a run already; give another output_dir, or resume=True to resume it"
            )
        with readable(found[-1]):
            state = read_state(found[-1])
            kept = state.get("identity", {})
            if _first_scores_failed(state):
                kept = {name: value for name, value in kept.items() if name not in ("evaluate_function", "best_metric")}
            now = {**settings, **{name: value for name, value in identity.items() if name in kept}}
            different = differences({**state["settings"], **kept}, now)
        if different:
            hint = "; a function whose code and contents say too much is given a name beforehand: evaluate.settings = "
            named = any(".code." in each or each.startswith("evaluate_function") for each in different)
            raise CheckpointError(
                f"the checkpoint {found[-1]} belongs to another run: {'; '.join(different)}. Use the earlier settings "
                "and files to resume it, or give another output_dir to start a new run"
                + (hint + 'lambda: {"version": 1}' if named else "")
            )
        return found[-1]

    def save(self, checkpoint: Checkpoint, history: Sequence[dict[str, Any]], *, step: int) -> Path:
        """Write a checkpoint, then take its best weights into use, then write the log."""
        self.check_held()
        path = save_checkpoint(checkpoint, self.checkpoints, step=step, keep=self.keep)
        if self._next_best.exists():
            rename_over(self._next_best, self.best)
        self.write_log(history)
        return path

    def write_log(self, history: Sequence[dict[str, Any]]) -> None:
        """Write one line per entry."""
        write_bytes_atomically(self.path / "log.jsonl", "".join(map(json_line, history)).encode())

    def tidy(self) -> None:
        """Keep only the last checkpoint once the run has ended: it holds the chosen weights, and no optimiser."""
        for path in list_checkpoints(self.checkpoints)[:-1]:
            remove_checkpoint(path)
        self.best.unlink(missing_ok=True)

    def repair(self, position: Position) -> None:
        """Repair what a kill left behind: unfinished files, and a log without its last line."""
        clear_unfinished(self.checkpoints)
        remove_abandoned(self.path, alone=True)
        if self._next_best.exists():
            if file_digest(self._next_best) == position.best_sha256:
                rename_over(self._next_best, self.best)
            else:
                self._next_best.unlink()
        if position.step:
            self.write_log(position.history)

    def save_best(self, weights: Mapping[str, Tensor]) -> str:
        """Keep weights as the best so far, once the next checkpoint is written; returns the file's SHA-256."""
        self.check_held()
        write_tensors_atomically(self._next_best, weights)
        return file_digest(self._next_best)

    def load_best(self, model: PromptedCLIP, *, digest: str | None) -> None:
        """Load the best weights.

        Args:
            model: The model.
            digest: SHA-256 of the file; None for a run of a version that did not keep it.

        Raises:
            CheckpointError: There are none yet, or the file is damaged or belongs to another model or run.
        """
        try:
            if digest is not None and file_digest(self.best) != digest:
                raise CheckpointError("its SHA-256 is not the one that the checkpoint holds")
            load_weights(model, load_file(self.best))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"cannot load the weights {self.best}: {error}; they are written once evaluate has given a best_metric"
            ) from error
        except (OSError, SafetensorError, CheckpointError) as error:
            raise CheckpointError(
                f"cannot load the weights {self.best}: {error}; put this run's file back, or train again in another "
                "output_dir"
            ) from error


def _first_scores_failed(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written because the run's first evaluation failed, which may be mended then."""
    position = state["position"]
    scored = any("scores" in entry for entry in position["history"])
    return position["batch"] == state["settings"].get("batches") and not scored


def megabytes(number: int) -> str:
    """Bytes as people read them.

    Example:
        >>> megabytes(31_400_000)
        '31.4 MB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB"


@contextmanager
def whole_run(folder: Path) -> Generator[None, None, None]:
    """Let no other process begin a run in a folder inside the block, from its notes of the run to the results.

    Raises:
        TimeoutError: Another process has a run there; the message has its number.
        NotADirectoryError: The folder or one that it is in is a file.
    """
    _check_can_be_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".run.lock", action=f"training in {folder}", timeout_seconds=0):
        remove_abandoned(folder)
        yield


def _check_can_be_folder(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file; give another output folder")


def claim_folder(folder: Path, facts: Mapping[str, Any], *, note: str, sole: bool = False) -> None:
    """Make a folder and note in it which run it holds, or accept one that holds this run already.

    Args:
        folder: The folder.
        facts: Everything that makes two runs different; what the note of an older version has not kept does not count.
        note: Name of the file that holds them as JSON.
        sole: Refuse a folder with files and without such a note.

    Raises:
        CheckpointError: The folder holds another run, or its note is damaged.
        FileExistsError: The folder holds other files.
        NotADirectoryError: The folder or one that it is in is a file.
    """
    _check_can_be_folder(folder)
    path = folder / note
    if path.is_file():
        try:
            found = read_sealed_json(path)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); give another output folder") from error
        now = {name: fact for name, fact in facts.items() if name in found}
        if different := differences(found, json.loads(json_line(now))):
            raise CheckpointError(
                f"{folder} holds another run: {'; '.join(different)}. Use the earlier settings and files to resume it, "
                "or give another output folder"
            )
    elif sole and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds other files; give an empty or new output folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed_json(path, facts)
