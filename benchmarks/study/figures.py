"""The evidence page's plots, from the same results as its tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Difference
from tables import Results, rank1_difference

from promptreid.evaluation.pictures.canvas import BLUE, GREY, VERMILION, new_figure, save_figure


def draw_differences(path: Path, results: Results, arms: Sequence[str], baseline: str) -> Path | None:
    """Each arm's difference to `baseline` with its interval; nothing is drawn without a pair."""
    found = {
        arm: rank1_difference(results, arm, baseline)
        for arm in arms
        if arm != baseline and results.get(arm, {}).keys() & results.get(baseline, {}).keys()
    }
    if not found:
        return None
    figure = new_figure(7.0, 0.8 + 0.32 * len(found))
    axes = figure.subplots()
    for place, difference in enumerate(found.values()):
        _bar(axes, difference, place)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(f"Rank-1 less that of {baseline}, points (mean, 95 % interval)")
    return save_figure(figure, path)


def _bar(axes: Any, difference: Difference, place: float) -> None:
    colour = GREY if not difference.found else BLUE if difference.mean > 0 else VERMILION
    axes.plot([100 * difference.low, 100 * difference.high], [place, place], color=colour, linewidth=2)
    axes.plot(100 * difference.mean, place, marker="o" if difference.found else "x", color=colour)


def draw_response(path: Path, results: Mapping[float, Results], arm: str, baseline: str, *, label: str) -> Path | None:
    """The difference between two arms over a condition, with its interval; nothing is drawn for fewer than two."""
    found = {
        dose: rank1_difference(under, arm, baseline)
        for dose, under in sorted(results.items())
        if under.get(arm, {}).keys() & under.get(baseline, {}).keys()
    }
    if len(found) < 2:
        return None
    figure = new_figure(5.0, 3.0)
    axes = figure.subplots()
    doses = list(found)
    means = [100 * difference.mean for difference in found.values()]
    low = [100 * (difference.mean - difference.low) for difference in found.values()]
    high = [100 * (difference.high - difference.mean) for difference in found.values()]
    axes.errorbar(doses, means, yerr=[low, high], marker="o", color=GREY, capsize=3)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
    axes.set_xlabel(label)
    axes.set_ylabel(f"Rank-1, {arm} less {baseline}, points")
    return save_figure(figure, path)
