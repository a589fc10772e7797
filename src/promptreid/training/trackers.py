"""Trackers of a run, such as TensorBoard and W&B: names of accelerate's, or objects of its `GeneralTracker`."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

from promptreid.errors import MissingExtraError
from promptreid.files import write_bytes_atomically


def start_trackers(accelerator: Any, folder: Path, *, step: int, project: str, settings: Mapping[str, Any]) -> None:
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
