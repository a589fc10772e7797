"""Learning curves of runs to convergence: validation mAP by epoch, of stages that end at different epochs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from comparison import Results, have_a_pair, mean_and_std
from promptreid.evaluation.pictures.canvas import new_figure, save_figure
from tables import markdown

Entries = list[dict[str, Any]]  # of a run's history
LOOKED_AT = (1, 2, 3, 5, 10, 20, 40, 60)  # epochs of the encoders
SUMMED_UP = (1, 3, 60)  # of these, in words


def stages_of(history: Iterable[dict[str, Any]]) -> list[Entries]:
    """The entries of each stage.

    Example:
        >>> [len(entries) for entries in stages_of([{"stage": "one"}, {"stage": "one"}, {"stage": "two"}])]
        [2, 1]
    """
    return [list(entries) for _, entries in groupby(history, key=lambda entry: entry["stage"])]


def best_epoch(entries: Entries) -> int:
    """The first epoch with the highest validation mAP."""
    scored = [entry for entry in entries if "scores" in entry]
    return max(scored, key=lambda entry: entry["scores"]["mAP"])["epoch"] if scored else 0


def curve_of(entries: Entries) -> list[float]:
    """Validation mAP after each epoch; empty for a stage that ended before its first score."""
    return [entry["scores"]["mAP"] for entry in entries if "scores" in entry]


def extended(curve: list[float], epochs: int) -> list[float]:
    """A curve over that many epochs: after its end it keeps its best, the weights with which the stage ended.

    Example:
        >>> extended([0.25, 0.5, 0.375], 4), extended([0.25, 0.5, 0.375], 2)
        ([0.25, 0.5, 0.375, 0.5], [0.25, 0.5])
    """
    return (curve + [max(curve)] * (epochs - len(curve)))[:epochs]


def mean_curve(histories: Sequence[Entries]) -> list[float]:
    """Mean over runs of a stage; runs without a score are left out.

    Example:
        >>> one = [{"scores": {"mAP": 0.25}}, {"scores": {"mAP": 0.5}}]
        >>> mean_curve([one, [{"scores": {"mAP": 0.75}}], [{}]])
        [0.5, 0.625]
    """
    curves = list(filter(None, map(curve_of, histories)))
    longest = max(map(len, curves), default=0)
    return [sum(values) / len(values) for values in zip(*(extended(curve, longest) for curve in curves), strict=True)]


def draw_curves(path: Path, results: Results, colours: Mapping[str, str]) -> Path:
    """Mean curves of some arms: epochs of the encoders from 1 on, those of prompts alone before 0."""
    drawn = new_figure(6.0, 3.2)
    axes = drawn.subplots()
    for arm, colour in colours.items():
        stages = [stages_of(run["history"]) for run in results.get(arm, {}).values()]
        if not stages:
            continue
        prompts = mean_curve([first for first, *others in stages if others])
        encoders = mean_curve([last for *_, last in stages])
        epochs = [*range(-len(prompts), 0), *range(1, len(encoders) + 1)]
        axes.plot(epochs, [100 * value for value in (*prompts, *encoders)], color=colour, label=arm)
    axes.axvline(0, color="0.8", linewidth=1)
    axes.set_xlabel("epochs of the encoders; before 0, of prompts alone")
    axes.set_ylabel("validation mAP, %")
    axes.legend(frameon=False)
    return save_figure(drawn, path)


def leads(results: Results, arm: str, baseline: str) -> list[list[float]]:
    """For each of `LOOKED_AT`, the lead in validation mAP of one arm over another, seed by seed."""
    most = max(LOOKED_AT)
    found: list[list[float]] = []
    for seed in sorted(results[arm].keys() & results[baseline].keys()):
        one, other = (curve_of(stages_of(results[name][seed]["history"])[-1]) for name in (arm, baseline))
        if one and other:
            pairs = zip(extended(one, most), extended(other, most), strict=True)
            found.append([first - second for first, second in pairs])
    return [[lead[epoch - 1] for lead in found] for epoch in LOOKED_AT]


def agree(values: Sequence[float]) -> bool:
    """Whether all seeds, at least two, have the same sign."""
    return len(values) > 1 and (min(values) > 0 or max(values) < 0)


def lead_section(by_identities: Mapping[int, Results], arm: str, baseline: str) -> str:
    """Who is ahead after how many epochs of the encoders: a sentence and a table; empty without a pair."""
    found = {
        number: leads(results, arm, baseline)
        for number, results in by_identities.items()
        if have_a_pair(results, arm, baseline)
    }
    if not found:
        return ""
    rows = [[str(number), *map(_lead_cell, values)] for number, values in found.items()]
    head = ["identities", *(f"{epoch}" for epoch in LOOKED_AT)]
    said = "; ".join(_said(found, epoch, arm, baseline) for epoch in SUMMED_UP)
    how = (
        f"Validation mAP of `{arm}` less that of `{baseline}` after so many epochs of the encoders, in points, mean ± "
        "standard deviation over seeds; a run that has ended keeps its best. **Bold**: all seeds agree in sign. Rates "
        "were tuned for the end of training, not for its first epochs."
    )
    return f"In every seed, {said}.\n\n{how}\n\n{markdown(head, rows)}"


def _lead_cell(values: Sequence[float]) -> str:
    mean, std = mean_and_std(values)
    text = f"{100 * mean:+.1f} ± {100 * std:.1f}".replace("-", "−")
    return f"**{text}**" if agree(values) else text


def _said(found: Mapping[int, list[list[float]]], epoch: int, arm: str, baseline: str) -> str:
    """Who leads in every seed after one of the epochs, and where."""
    ahead: dict[str, list[str]] = {arm: [], baseline: []}
    for number, values in found.items():
        lead = values[LOOKED_AT.index(epoch)]
        if agree(lead):
            ahead[arm if lead[0] > 0 else baseline].append(str(number))
    parts = [f"`{name}` is ahead at {', '.join(numbers)} identities" for name, numbers in ahead.items() if numbers]
    return f"after {epoch} {'epoch' if epoch == 1 else 'epochs'} {' and '.join(parts) or 'neither is ahead anywhere'}"


def epochs_table(results: Results, arms: Iterable[str]) -> str:
    """How many epochs each stage used, and which was the best."""
    rows: list[list[str]] = []
    for arm in arms:
        stages: dict[str, list[Entries]] = {}
        for run in results[arm].values():
            for entries in stages_of(run["history"]):
                stages.setdefault(entries[0]["stage"], []).append(entries)
        for name, runs in stages.items():
            mean, std = mean_and_std([len(entries) for entries in runs])
            best, _ = mean_and_std([best_epoch(entries) for entries in runs])
            rows.append([f"`{arm}`", name.replace("_", " "), f"{mean:.1f} ± {std:.1f}", f"{best:.1f}"])
    return markdown(["arm", "stage", "epochs used", "best epoch"], rows) if rows else ""
