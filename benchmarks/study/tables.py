"""Tables (Markdown, percent) and plots of results, and the sections of the page that hold them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Difference, Results, gains, have_a_pair, mean_and_std, paired_difference, rank1_difference
from promptreid.evaluation.pictures.canvas import BLUE, GREY, VERMILION, new_figure, save_figure
from shared import METRICS, in_words


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them.

    Example:
        >>> listed(["50"]), listed(["50", "100", "200"])
        ('50', '50, 100 and 200')
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def score_table(results: Results, arms: Iterable[str], *, direction: str = "text to image") -> str:
    """For each arm that was run, mean ± standard deviation over seeds of every metric of a direction."""
    rows: list[list[str]] = []
    for arm in arms:
        if arm not in results:
            continue
        tests = [result["test"] for result in results[arm].values()]
        scores = [test if direction == "text to image" else test["image_to_text"] for test in tests]
        rows.append([f"`{arm}`", str(len(scores)), *(cell([score[metric] for score in scores]) for metric in METRICS)])
    return markdown([direction, "seeds", *METRICS], rows)


def not_run(names: Iterable[str]) -> str:
    """The line below a table that names what is not in it; empty if all is."""
    missing = ", ".join(names)
    return f"Not run: {missing}." if missing else ""


def difference_table(results: Results, arms: Iterable[str], baseline: str) -> str:
    """Rank-1 of each arm less that of `baseline`, paired by seed and person, in points; empty without a pair."""
    rows = [
        [f"`{arm}`", *difference_cells(rank1_difference(results, arm, baseline))]
        for arm in arms
        if arm != baseline and have_a_pair(results, arm, baseline)
    ]
    return markdown([f"less `{baseline}`", "seeds", "Rank-1, points", "95 % interval", ""], rows) if rows else ""


def difference_cells(found: Difference, *, neither: str = "no difference found") -> list[str]:
    """Seeds, mean ± standard deviation, interval and verdict, which is `neither` where the interval holds 0."""
    verdict = ("better" if found.mean > 0 else "worse") if found.found else neither
    mean, low, high = (f"{100 * value:+.2f}".replace("-", "−") for value in (found.mean, found.low, found.high))
    return [str(found.seeds), f"{mean} ± {100 * found.std:.2f}", f"{low} to {high}", verdict]


def response_table(results: Mapping[str, Results], arm: str, baseline: str) -> str:
    """The difference between two arms under one condition after the other, such as by gap; empty without any."""
    rows: list[list[str]] = []
    both = {name: found for name, found in results.items() if have_a_pair(found, arm, baseline)}
    for name, found in both.items():
        scores = [cell([run["test"]["rank1"] for run in found[one].values()]) for one in (baseline, arm)]
        rows.append([name, *scores, *difference_cells(rank1_difference(found, arm, baseline))])
    head = ["", f"`{baseline}`", f"`{arm}`", "seeds", "difference, points", "95 % interval", ""]
    below = not_run(name for name in results if name not in both)
    return "\n\n".join(filter(None, [markdown(head, rows), below])) if rows else ""


def change_table(results: Mapping[str, Results], arm: str, baseline: str) -> str:
    """How much the difference between two arms is larger than under the first condition, paired by seed and person.

    The persons must be the same under all conditions. Empty without a pair.
    """
    if not results:
        return ""
    usual, *others = results
    standard = gains(results[usual], arm, baseline)
    changed = {name: gains(results[name], arm, baseline) for name in others}
    rows = [
        [f"{name} less {usual}", *difference_cells(paired_difference(found, standard))]
        for name, found in changed.items()
        if found.keys() & standard.keys()
    ]
    head = [f"change of `{arm}` less `{baseline}`", "seeds", "points", "95 % interval", ""]
    return markdown(head, rows) if rows else ""


def measure_table(results: Results, arms: Iterable[str]) -> str:
    """How far the features are from the base's domain, and what is left of its skill there; empty without results."""
    rows: list[list[str]] = []
    for arm in arms:
        runs = [result["measures"] for result in results.get(arm, {}).values()]
        if not runs:
            continue
        spread = {name: mean_and_std([run[name] for run in runs]) for name in runs[0]}
        distances = (f"{mean:.4f} ± {std:.4f}" for mean, std in (spread["image_mmd"], spread["text_mmd"]))
        own, gap = spread["own_domain_rank1"], spread["modality_gap"]
        rows.append([
            f"`{arm}`", f"{100 * own[0]:.2f} ± {100 * own[1]:.2f}", *distances, f"{gap[0]:.3f} ± {gap[1]:.3f}",
        ])  # fmt: skip
    head = ["arm", "Rank-1 on the base's own domain", "MMD² of images", "MMD² of texts", "modality gap"]
    return markdown(head, rows) if rows else ""


def group_table(results: Results, arms: Sequence[str]) -> str:
    """Rank-1 by attribute and value, with the number of queries a seed; empty without results."""
    present = [arm for arm in arms if results.get(arm)]
    rows: list[list[str]] = []
    found = {arm: [result["rank1_by_group"] for result in results[arm].values()] for arm in present}
    for attribute, value in sorted({(a, v) for runs in found.values() for run in runs for a in run for v in run[a]}):
        cells = {
            arm: [run[attribute][value] for run in runs if value in run.get(attribute, {})]
            for arm, runs in found.items()
        }
        queries = [entry["queries"] for entry in cells[present[0]]]
        scores = (cell([entry["rank1"] for entry in cells[arm]]) for arm in present)
        rows.append([attribute, value, f"{sum(queries) / max(1, len(queries)):.0f}", *scores])
    return markdown(["", "", "queries a seed", *(f"`{arm}`" for arm in present)], rows) if rows else ""


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation in percent; a single value has none."""
    if not values:
        return ""
    mean, std = mean_and_std(values)
    return f"{100 * mean:.2f} ± {100 * std:.2f}" if len(values) > 1 else f"{100 * mean:.2f}"


def draw_differences(path: Path, results: Results, arms: Sequence[str], baseline: str) -> Path | None:
    """Each arm's difference to `baseline` with its interval; nothing is drawn without a pair."""
    found = {
        arm: rank1_difference(results, arm, baseline)
        for arm in arms
        if arm != baseline and have_a_pair(results, arm, baseline)
    }
    if not found:
        return None
    figure = new_figure(7.0, 0.8 + 0.32 * len(found))
    axes = figure.subplots()
    for row, difference in enumerate(found.values()):
        _bar(axes, difference, row)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(f"Rank-1 less that of {baseline}, points (mean, 95 % interval)")
    return save_figure(figure, path)


def _bar(axes: Any, difference: Difference, row: int) -> None:
    colour = GREY if not difference.found else BLUE if difference.mean > 0 else VERMILION
    axes.plot([100 * difference.low, 100 * difference.high], [row, row], color=colour, linewidth=2)
    axes.plot(100 * difference.mean, row, marker="o" if difference.found else "x", color=colour)


def draw_response(path: Path, results: Mapping[float, Results], arm: str, baseline: str, *, label: str) -> Path | None:
    """The difference between two arms over a condition, with its interval; nothing is drawn for fewer than two."""
    found = {
        dose: rank1_difference(under, arm, baseline)
        for dose, under in sorted(results.items())
        if have_a_pair(under, arm, baseline)
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


def figure(path: Path | None, description: str) -> str:
    """A plot on the page, if it was drawn."""
    return f"![{description}](pictures/{path.name})" if path else ""


def section(title: str, command: str, results: Results, blocks: Sequence[str], *, minutes: bool = False) -> str:
    """A heading, what stands below it, and the line that says what made it; or that it was not run."""
    if not any(results.values()) or not any(blocks):
        return f"## {title}\n\n**Not run.** `{command}`\n"
    return "\n\n".join([f"## {title}", *filter(None, blocks), made_by(results, command, minutes=minutes)]) + "\n"


def made_by(results: Results, command: str, *, minutes: bool) -> str:
    """The command, machine, versions and dates of some results, and how long the machine trained if that is asked for.

    Runs of the other parts shared their machine with other work, so how long they took says nothing.
    """
    runs = [result for seeds in results.values() for result in seeds.values()]
    stamps = [run["made_with"] for run in runs]
    dates = sorted({stamp["date"] for stamp in stamps})
    made = sorted({in_words(stamp) for stamp in stamps})
    time = f", {sum(run['seconds'] for run in runs) / 60:.0f} min of training" if minutes else ""
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"`{command}`; {len(runs)} runs are shown{time}: {'; '.join(made)}, {span}."
