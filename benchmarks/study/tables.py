"""Results read back from their files, and the tables that they make."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comparison import Difference, mean_and_std, paired_difference

Results = dict[str, dict[int, dict[str, Any]]]  # arm → seed → result
METRICS = ("rank1", "rank5", "rank10", "mAP", "mINP")


def read_results(folder: Path) -> Results:
    """Every result of a folder whose test split was scored.

    Raises:
        ValueError: Two results of one arm and seed, which must be of different studies.
    """
    results: Results = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "test" not in result:
            continue
        arm, seed = result["run"]["arm"], result["run"]["seed"]
        if seed in results[arm]:
            raise ValueError(f"{path}: there is a result of {arm}, seed {seed}, already; keep one study a folder")
        results[arm][seed] = result
    return dict(results)


def score_table(results: Results, arms: Iterable[str]) -> str:
    """Markdown: for each arm, mean ± standard deviation over seeds of every metric, text to image, in percent."""
    lines = [f"| arm | seeds | {' | '.join(METRICS)} |", f"|---|---|{'---|' * len(METRICS)}"]
    for arm in arms:
        if arm not in results:
            lines.append(f"| `{arm}` | not run |{' |' * len(METRICS)}")
            continue
        seeds = results[arm].values()
        cells = [_cell([result["test"][metric] for result in seeds]) for metric in METRICS]
        lines.append(f"| `{arm}` | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table(results: Results, arms: Iterable[str], baseline: str) -> str:
    """Markdown: Rank-1 of each arm less that of `baseline`, paired by seed, in points."""
    lines = [f"| arm − `{baseline}` | seeds | Rank-1 difference | 95 % interval | |", "|---|---|---|---|---|"]
    for arm in arms:
        if arm == baseline or arm not in results or baseline not in results:
            continue
        if not results[arm].keys() & results[baseline].keys():
            continue
        found = rank1_difference(results, arm, baseline)
        verdict = ("better" if found.mean > 0 else "worse") if found.found else "no difference found"
        interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        mean = f"{100 * found.mean:+.2f} ± {100 * found.std:.2f}"
        lines.append(f"| `{arm}` | {found.seeds} | {mean} | {interval} | {verdict} |")
    return "\n".join(lines)


def rank1_difference(results: Results, arm: str, baseline: str) -> Difference:
    """Rank-1 of `arm` less that of `baseline`: a mean over persons, paired by seed and person."""
    arms = [
        {seed: {int(person): value for person, value in result["rank1_by_person"].items()} for seed, result in runs}
        for runs in (results[arm].items(), results[baseline].items())
    ]
    return paired_difference(arms[0], arms[1])


def _cell(values: list[float]) -> str:
    mean, std = mean_and_std(values)
    return f"{100 * mean:.2f} ± {100 * std:.2f}" if len(values) > 1 else f"{100 * mean:.2f}"
