"""Training curves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from promptreid.evaluation.pictures.canvas import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, new_figure, save_figure

_STYLES = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, ":", "^"),
    (ORANGE, "-.", "D"),
    (SKY, (0, (6, 1, 1, 1, 1, 1)), "v"),
    (GREY, (0, (1, 3)), "x"),
)


def draw_training_curves(path: str | Path, history: Sequence[dict[str, Any]]) -> Path:
    """Draw losses and scores over the epochs, stages one after another with a line between.

    Args:
        path: PNG file to write.
        history: `Trainer.history`, or what `read_log` read; of several stages one list after the other.

    Returns:
        The file.

    Raises:
        ValueError: `history` is empty.
        MissingExtraError: matplotlib is not installed.
    """
    if not history:
        raise ValueError("history is empty: no epoch has ended yet")
    figure = new_figure(7.0, 2.8)
    losses, scores = figure.subplots(1, 2)
    _draw(losses, history, "losses", "loss")
    _draw(scores, history, "scores", "score on the validation split")
    return save_figure(figure, path)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the `log.jsonl` of a run.

    Raises:
        ValueError: A line is not a JSON object; the message names it.
    """
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON ({error})") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number} is {type(entry).__name__}, expected an object")
        entries.append(cast("dict[str, Any]", entry))
    return entries


def _draw(axis: Any, history: Sequence[dict[str, Any]], key: str, label: str) -> None:
    names = list(dict.fromkeys(name for entry in history for name in entry.get(key, {})))
    for number, name in enumerate(names):
        colour, line, marker = _STYLES[number % len(_STYLES)]
        points = [(epoch, entry[key][name]) for epoch, entry in enumerate(history, 1) if name in entry.get(key, {})]
        axis.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=marker, markersize=3, label=name)
    stages = [entry.get("stage") for entry in history]
    for epoch in range(1, len(stages)):
        if stages[epoch] != stages[epoch - 1]:
            axis.axvline(epoch + 0.5, color="black", linewidth=0.8)
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    if names:
        axis.legend(fontsize=8, frameon=False)
