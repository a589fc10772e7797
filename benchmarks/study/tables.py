"""Results read back from their files, and the tables that they make (Markdown, percent)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Difference, mean_and_std, paired_difference
from plan import Run
from runs import read_result

Results = dict[str, dict[int, dict[str, Any]]]  # arm → seed → result
METRICS = ("rank1", "rank5", "rank10", "mAP", "mINP")


def gather(runs: Iterable[Run], folder: Path) -> Results:
    """The results there are of runs of one condition.

    Raises:
        ValueError: The runs are of several conditions or from different weights, or a file is damaged.
        FileExistsError: A file holds the result of another run, as of rates that were tuned anew.
    """
    results: Results = defaultdict(dict)
    conditions: set[str] = set()
    bases: set[str] = set()
    for run in runs:
        conditions.add(run.condition)
        result = read_result(run, folder)
        if result is not None:
            results[run.arm][run.seed] = result
            bases.add(result["made_with"].get("base_sha256", "shipped"))
    if len(bases) > 1:
        raise ValueError(
            f"results from different bases ({sorted(bases)}) must not stand in one table; redo one of them"
        )
    if len(conditions) > 1:
        raise ValueError(f"results of {sorted(conditions)} must not stand in one table; gather each by itself")
    return dict(results)


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


def score_table(results: Results, arms: Iterable[str], *, direction: str = "text to image") -> str:
    """For each arm, mean ± standard deviation over seeds of every metric of a direction."""
    rows: list[list[str]] = []
    for arm in arms:
        if arm not in results:
            rows.append([f"`{arm}`", "not run", *[""] * len(METRICS)])
            continue
        tests = [result["test"] for result in results[arm].values()]
        scores = [test if direction == "text to image" else test["image_to_text"] for test in tests]
        rows.append([f"`{arm}`", str(len(scores)), *(cell([score[metric] for score in scores]) for metric in METRICS)])
    return markdown([direction, "seeds", *METRICS], rows)


def difference_table(results: Results, arms: Iterable[str], baseline: str) -> str:
    """Rank-1 of each arm less that of `baseline`, paired by seed and person, in points; empty without a pair."""
    rows = [
        [f"`{arm}`", *difference_cells(rank1_difference(results, arm, baseline))]
        for arm in arms
        if arm != baseline and results.get(arm, {}).keys() & results.get(baseline, {}).keys()
    ]
    return markdown([f"less `{baseline}`", "seeds", "Rank-1, points", "95 % interval", ""], rows) if rows else ""


def difference_cells(found: Difference) -> list[str]:
    """Seeds, mean ± standard deviation, interval and verdict."""
    verdict = ("better" if found.mean > 0 else "worse") if found.found else "no difference found"
    interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
    return [str(found.seeds), f"{100 * found.mean:+.2f} ± {100 * found.std:.2f}", interval, verdict]


def rank1_difference(results: Results, arm: str, baseline: str) -> Difference:
    """Rank-1 of `arm` less that of `baseline`: a mean over persons, paired by seed and person."""
    arms = [
        {seed: {int(person): value for person, value in result["rank1_by_person"].items()} for seed, result in runs}
        for runs in (results[arm].items(), results[baseline].items())
    ]
    return paired_difference(arms[0], arms[1])


def response_table(results: Mapping[str, Results], arm: str, baseline: str) -> str:
    """The difference between two arms under one condition after the other, such as by gap; empty without any."""
    rows: list[list[str]] = []
    for name, found in results.items():
        if not found.get(arm, {}).keys() & found.get(baseline, {}).keys():
            rows.append([name, "not run", *[""] * 5])
            continue
        scores = [cell([run["test"]["rank1"] for run in found[one].values()]) for one in (baseline, arm)]
        rows.append([name, *scores, *difference_cells(rank1_difference(found, arm, baseline))])
    head = ["", f"`{baseline}`", f"`{arm}`", "seeds", "difference, points", "95 % interval", ""]
    return markdown(head, rows) if any(row[1] != "not run" for row in rows) else ""


def change_table(results: Mapping[str, Results], arm: str, baseline: str) -> str:
    """How much the difference between two arms is larger than under the first condition, paired by seed and person.

    The persons must be the same under all conditions. Empty without a pair.
    """
    if not results:
        return ""
    usual, *others = results
    rows = [
        [f"{name} less {usual}", *difference_cells(paired_difference(gains, standard))]
        for name in others
        if (gains := _gains(results[name], arm, baseline)).keys() & (standard := _gains(results[usual], arm, baseline))
    ]
    head = [f"change of `{arm}` less `{baseline}`", "seeds", "points", "95 % interval", ""]
    return markdown(head, rows) if rows else ""


def _gains(results: Results, arm: str, baseline: str) -> dict[int, dict[int, float]]:
    """Seed → person → Rank-1 of one arm less that of the other."""
    pairs = {seed: (run, results[baseline][seed]) for seed, run in results.get(arm, {}).items()
             if seed in results.get(baseline, {})}  # fmt: skip
    return {
        seed: {
            int(person): value - other["rank1_by_person"][person] for person, value in run["rank1_by_person"].items()
        }
        for seed, (run, other) in pairs.items()
    }


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
