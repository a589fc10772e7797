"""Learning curves of runs to convergence: validation mAP by epoch, of stages that end at different epochs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from comparison import Results, direction_over_seeds, mean_and_std
from convergence_plan import COURSES, Limits
from promptreid.evaluation.pictures.canvas import new_figure, save_figure
from tables import listed, markdown

Entries = list[dict[str, Any]]  # of a run's history
TABLE_EPOCHS = (1, 2, 3, 5, 10, 20, 40, 60)  # of the encoders
SENTENCE_EPOCHS = (1, 3, 60)


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


def best_so_far(curve: Sequence[float], epochs: int) -> list[float]:
    """The best score up to each of that many epochs: of the weights that the stage would end with there.

    Example:
        >>> best_so_far([0.25, 0.5, 0.375], 4), best_so_far([0.25, 0.5, 0.375], 2)
        ([0.25, 0.5, 0.5, 0.5], [0.25, 0.5])
    """
    best = list(accumulate(curve, max))
    return (best + best[-1:] * (epochs - len(best)))[:epochs]


def mean_curve(histories: Sequence[Entries]) -> list[float]:
    """Mean over runs of a stage of the best score so far; runs without a score are left out.

    Example:
        >>> one = [{"scores": {"mAP": 0.25}}, {"scores": {"mAP": 0.5}}]
        >>> mean_curve([one, [{"scores": {"mAP": 0.75}}], [{}]])
        [0.5, 0.625]
    """
    curves = list(filter(None, map(curve_of, histories)))
    longest = max(map(len, curves), default=0)
    whole = [best_so_far(curve, longest) for curve in curves]
    return [sum(values) / len(values) for values in zip(*whole, strict=True)]


def draw_curves(path: Path, conditions: Mapping[str, Results], colours: Mapping[str, str]) -> Path:
    """Mean curves of some arms, a panel a condition, two in a row.

    Epochs of the last stage count from 1 on, those of a stage before it are below 0.
    """
    rows = math.ceil(len(conditions) / 2)
    drawn = new_figure(4.0 * min(2, len(conditions)), 0.4 + 2.6 * rows)
    panels = drawn.subplots(rows, min(2, len(conditions)), squeeze=False).flatten()
    for panel, (title, results) in zip(panels, conditions.items(), strict=False):
        _draw_panel(panel, results, colours)
        panel.set_title(title, fontsize="medium")
    for panel in panels[len(conditions) :]:
        panel.axis("off")
    runs = [run for results in conditions.values() for arm in colours for run in results.get(arm, {}).values()]
    two_stages = any(len(stages_of(run["history"])) > 1 for run in runs)
    drawn.supxlabel("epoch; below 0: stage 1" if two_stages else "epoch", fontsize="medium")
    drawn.supylabel("best validation mAP so far, %", fontsize="medium")
    shown = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    drawn.legend(shown.values(), shown.keys(), frameon=False, ncols=len(shown), loc="outside upper center")
    return save_figure(drawn, path)


def _draw_panel(axes: Any, results: Results, colours: Mapping[str, str]) -> None:
    for arm, colour in colours.items():
        stages = [stages_of(run["history"]) for run in results.get(arm, {}).values()]
        if not stages:
            continue
        first = mean_curve([one for one, *others in stages if others])
        last = mean_curve([entries for *_, entries in stages])
        epochs = [*range(-len(first), 0), *range(1, len(last) + 1)]
        axes.plot(epochs, [100 * value for value in (*first, *last)], color=colour, label=arm)
        if first:
            axes.axvline(0, color="0.8", linewidth=1)


def lead_by_epoch(results: Results, arm: str, baseline: str) -> dict[int, list[float]]:
    """The lead of one arm over another in the best validation mAP so far: epoch of the encoders → seed by seed.

    Seeds of which a run ended before its first score are left out.
    """
    leads: list[list[float]] = []
    for seed in sorted(results[arm].keys() & results[baseline].keys()):
        one, other = (curve_of(stages_of(results[name][seed]["history"])[-1]) for name in (arm, baseline))
        if one and other:
            pairs = zip(*(best_so_far(curve, max(TABLE_EPOCHS)) for curve in (one, other)), strict=True)
            leads.append([first - second for first, second in pairs])
    return {epoch: [lead[epoch - 1] for lead in leads] for epoch in TABLE_EPOCHS} if leads else {}


def lead_section(by_identities: Mapping[int, Results], arm: str, baseline: str) -> str:
    """Who has the better weights after how many epochs of the encoders: sentences and a table; empty without a run.

    Args:
        by_identities: Results of conditions of which both arms are complete.
        arm: The one whose lead it is.
        baseline: The other.
    """
    found = {number: lead_by_epoch(results, arm, baseline) for number, results in by_identities.items()}
    found = {number: leads for number, leads in found.items() if leads}
    if not found:
        return ""
    said = "; ".join(lead_sentence(found, epoch, arm, baseline) for epoch in SENTENCE_EPOCHS)
    rows = [
        [str(number), str(len(leads[1])), *(_lead_cell(leads[epoch]) for epoch in TABLE_EPOCHS)]
        for number, leads in found.items()
    ]
    return f"{said[0].upper()}{said[1:]}.\n\n{markdown(['identities', 'seeds', *map(str, TABLE_EPOCHS)], rows)}"


def _lead_cell(values: Sequence[float]) -> str:
    mean, std = mean_and_std(values)
    text = f"{round(100 * mean, 1) + 0.0:+.1f} ± {100 * std:.1f}".replace("-", "−")  # + 0.0: zero has no minus
    return f"**{text}**" if direction_over_seeds(values) else text


def lead_sentence(found: Mapping[int, Mapping[int, Sequence[float]]], epoch: int, arm: str, baseline: str) -> str:
    """Who leads after an epoch, and at which numbers of identities."""
    leading: dict[str, list[str]] = {arm: [], baseline: []}
    for number, leads in found.items():
        if way := direction_over_seeds(leads[epoch]):
            leading[arm if way > 0 else baseline].append(str(number))
    parts = [f"`{name}` leads at {listed(numbers)} identities" for name, numbers in leading.items() if numbers]
    after = f"after {epoch} {'epoch' if epoch == 1 else 'epochs'} of the encoders"
    return f"{after} {' and '.join(parts) or 'no difference is found at any number of identities'}"


def epochs_table(results: Results, arms: Iterable[str]) -> str:
    """How many epochs each stage used, which was the best, and how many runs their limit ended."""
    rows: list[list[str]] = []
    for arm in arms:
        stages: dict[str, list[Entries]] = {}
        for run in results[arm].values():
            for entries in stages_of(run["history"]):
                stages.setdefault(entries[0]["stage"], []).append(entries)
        for name, runs in stages.items():
            mean, std = mean_and_std([len(entries) for entries in runs])
            best, _ = mean_and_std([best_epoch(entries) for entries in runs])
            cut = sum(ended_by_limit(arm, entries) for entries in runs)
            rows.append(
                [f"`{arm}`", name.replace("_", " "), f"{mean:.1f} ± {std:.1f}", f"{best:.1f}", f"{cut} of {len(runs)}"]
            )
    head = ["arm", "stage", "epochs used", "best epoch", "ended by the limit"]
    return markdown(head, rows) if rows else ""


def ended_by_limit(arm: str, entries: Entries) -> bool:
    """Whether a stage used all the epochs of its arm and was still within its patience.

    Example:
        >>> rising = [{"stage": "joint", "epoch": n, "scores": {"mAP": n / 100}} for n in range(1, 61)]
        >>> ended_by_limit("joint", rising), ended_by_limit("joint", rising[:59]), ended_by_limit("direct_more", rising)
        (True, False, False)
    """
    within = len(entries) - best_epoch(entries) < Limits().patience
    return within and len(entries) >= COURSES[arm].most_epochs(entries[0]["stage"])


def steps_table(by_identities: Mapping[int, Results], arms: Iterable[str]) -> str:
    """Steps that each stage of some arms used, by number of identities; arms that were not run are left out."""
    columns: dict[str, dict[int, list[int]]] = {}
    for arm in arms:
        for number, results in by_identities.items():
            for run in results.get(arm, {}).values():
                stages = stages_of(run["history"])
                for entries in stages:
                    name = f"`{arm}`" + (f", {entries[0]['stage'].replace('_', ' ')}" if len(stages) > 1 else "")
                    steps = sum(entry["steps"] for entry in entries)
                    columns.setdefault(name, {}).setdefault(number, []).append(steps)
    numbers = sorted({number for found in columns.values() for number in found})
    rows = [[str(number), *(_steps_cell(found.get(number, [])) for found in columns.values())] for number in numbers]
    return markdown(["identities", *columns], rows) if rows else ""


def _steps_cell(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    mean, std = mean_and_std(steps)
    return f"{mean:,.0f} ± {std:,.0f}"
