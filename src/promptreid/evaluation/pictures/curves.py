"""Training curves: of one run, and of several over one another."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from promptreid.errors import spoken
from promptreid.evaluation.pictures.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    new_figure,
    save_figure,
)
from promptreid.scores import metric_of

_STYLES: tuple[tuple[str, Any, str], ...] = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, ":", "^"),
    (ORANGE, "-.", "D"),
    (SKY, (0, (6, 1, 1, 1, 1, 1)), "v"),
    (GREY, (0, (1, 3)), "x"),
)
_CHOOSING = "mAP"  # what is ringed where an epoch was kept


def draw_training_curves(
    path: str | Path, history: Sequence[Mapping[str, Any]], *, baseline: Mapping[str, float] | None = None
) -> Path:
    """Draw losses, and scores in percent, over the epochs, stages one after another under their names.

    The epochs whose weights were kept are ringed. A score that is no number, null in a log, has no point.

    Args:
        path: PNG file to write.
        history: `Trainer.history`, or what `read_log` read; of several stages one list after the other.
        baseline: Scores of the bare model, as fractions, drawn before the first epoch.

    Returns:
        The file.

    Raises:
        ValueError: `history` is empty.
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(7.6, 3.1)
    losses, scores = figure.subplots(1, 2)
    draw_losses(losses, history)
    draw_scores(scores, history, baseline=baseline)
    return save_figure(figure, path)


def draw_losses(axis: Any, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the mean losses of each epoch into matplotlib's axes; arguments as for `draw_training_curves`."""
    _check(history)
    for number, name in enumerate(_names(history, "losses")):
        _draw_line(axis, number, name, _points(_by_epoch(history, "losses"), name))
    _finish(axis, history, "loss")


def draw_scores(
    axis: Any, history: Sequence[Mapping[str, Any]], *, baseline: Mapping[str, float] | None = None
) -> None:
    """Draw the scores of each epoch in percent into matplotlib's axes; arguments as for `draw_training_curves`.

    Scores that are no fractions are left out; if there are no others, they are drawn as they are.
    """
    _check(history)
    before = [(0, baseline)] if baseline else []
    scored = [*before, *_by_epoch(history, "scores")]
    names = _names(history, "scores")
    shown = [name for name in names if _is_fraction(name, _points(scored, name))]
    others = [name for name in names if name not in shown]
    as_they_are = bool(others) and not any(_points(scored, name) for name in shown)
    for number, name in enumerate(others if as_they_are else shown):
        _draw_line(axis, number, name, _points(scored, name, factor=1 if as_they_are else 100))
    ringed = _kept(history)
    kept = [point for point in _points(_by_epoch(history, "scores"), _CHOOSING, factor=100) if point[0] in ringed]
    if kept:
        axis.plot(*zip(*kept, strict=True), "o", markersize=11, fillstyle="none", color=_ink(axis), label="kept")
    _finish(axis, history, "score" if as_they_are else "score, %", first="bare" if baseline else None)


def _is_fraction(name: str, points: Sequence[tuple[float, float]]) -> bool:
    """Whether percent are the unit of a score: a person's own, of which nothing is known, by its values."""
    metric = metric_of(name)
    return metric.is_fraction if metric else all(0 <= value <= 1 for _, value in points)


def draw_compared_curves(
    path: str | Path, runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], *, metric: str = _CHOOSING
) -> Path:
    """Draw a score over the epochs for several ways of training: thin each seed, thick their mean.

    The mean is over the runs that have this score, in the epochs in which all of them do.

    Args:
        path: PNG file to write.
        runs: By the way's name the history of each of its runs.
        metric: Which score.

    Returns:
        The file.

    Raises:
        ValueError: No epoch of any run has this score.
        MissingExtraError: matplotlib is not installed.
    """
    shown = metric_of(metric)
    is_fraction = shown is not None and shown.is_fraction
    factor = 100 if is_fraction else 1
    ways = {
        name: [dict(_points(_by_epoch(history, "scores"), metric, factor=factor)) for history in histories]
        for name, histories in runs.items()
    }
    if not any(curve for curves in ways.values() for curve in curves):
        raise ValueError(
            f"no epoch of any run has the score {metric}, so there is no curve to draw; train with a validation split "
            "or with evaluate, or name another metric"
        )
    figure = new_figure(5.2, 3.3)
    axis = figure.subplots()
    for number, (name, curves) in enumerate(ways.items()):
        _draw_way(axis, number, name, [curve for curve in curves if curve])
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_ylabel(f"{metric}{', %' if is_fraction else ''}", fontsize=9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def _draw_way(axis: Any, number: int, name: str, curves: Sequence[Mapping[int, float]]) -> None:
    """Draw the curves of a way of training thin and their mean thick; each has a score by epoch."""
    if not curves:
        return
    colour, line, marker = _STYLES[number % len(_STYLES)]
    for curve in curves:
        axis.plot(list(curve), list(curve.values()), color=colour, linestyle=line, linewidth=0.7, alpha=0.5)
    common = [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]
    means = [fmean(curve[epoch] for curve in curves) for epoch in common]
    axis.plot(common, means, color=colour, linestyle=line, marker=marker, markersize=3, label=spoken(name))


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the `log.jsonl` of a run.

    Raises:
        ValueError: A line is not a JSON object; the message names it.
    """
    entries: list[dict[str, Any]] = []
    with Path(path).open(encoding="utf-8") as stream:
        lines = list(stream)  # splitlines() also cuts inside of a JSON string
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON ({error})") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{path}, line {number} is {type(entry).__name__}, expected an object")
        entries.append(cast("dict[str, Any]", entry))
    return entries


def _check(history: Sequence[Mapping[str, Any]]) -> None:
    if not history:
        raise ValueError("history is empty: no epoch has ended yet")


def _names(history: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(name for entry in history for name in entry.get(key, {})))


def _by_epoch(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, Mapping[str, Any]]]:
    """The losses or the scores of each epoch that has some, counted from 1 over all stages."""
    return [(epoch, entry[key]) for epoch, entry in enumerate(history, 1) if entry.get(key)]


def _points(
    entries: Iterable[tuple[int, Mapping[str, Any]]], name: str, *, factor: float = 1
) -> list[tuple[int, float]]:
    """What is drawn of a loss or score: where it is missing, null or no finite number, nothing."""
    found = [(epoch, values.get(name)) for epoch, values in entries]
    return [(epoch, factor * value) for epoch, value in found if value is not None and math.isfinite(value)]


def _draw_line(axis: Any, number: int, name: str, points: Sequence[tuple[int, float]]) -> None:
    colour, line, marker = _STYLES[number % len(_STYLES)]
    axis.plot(*zip(*points, strict=True), color=colour, linestyle=line, marker=marker, markersize=3, label=name)


def _ink(axis: Any) -> Any:
    """The colour of the figure's text, which on a page is that of the page's."""
    return axis.xaxis.label.get_color()


def _stage_starts(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many epochs end before each stage begins."""
    stages = [entry.get("stage") for entry in history]
    return [epoch for epoch in range(len(stages)) if epoch == 0 or stages[epoch] != stages[epoch - 1]]


def _kept(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """The epochs whose weights were kept, counted from 1 over all stages."""
    starts = _stage_starts(history)
    return [
        max(start for start in starts if start <= position) + entry["chosen"]["epoch"]
        for position, entry in enumerate(history)
        if "chosen" in entry
    ]


def _finish(axis: Any, history: Sequence[Mapping[str, Any]], label: str, *, first: str | None = None) -> None:
    """Label the axes, name the stages above and separate them; `first` is the label at 0."""
    starts = _stage_starts(history)
    for start, end in zip(starts, [*starts[1:], len(history)], strict=True):
        if start:
            axis.axvline(start + 0.5, color=_ink(axis), linewidth=0.8)
        name = spoken(str(history[start].get("stage", "")))
        middle = (start + 0.5 + end + 0.5) / 2
        axis.text(middle, 1.02, name, transform=axis.get_xaxis_transform(), fontsize=8, ha="center", va="bottom")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlim(-0.4 if first else 0.5, len(history) + 0.5)
    if first:
        axis.xaxis.set_major_formatter(lambda value, _: first if value == 0 else f"{value:g}")
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_ylabel(label, fontsize=9)
    axis.tick_params(labelsize=8)
    if axis.get_legend_handles_labels()[0]:
        # Below, where it hides no curve.
        axis.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
