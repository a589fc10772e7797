"""Tune each arm's learning rates on the validation split of a seed that no reported run uses.

    python benchmarks/study/tune.py                                  # the arms of make study
    python benchmarks/study/tune.py --arms prompts_both pd_no_id     # more, beside those tuned already

The arms of one call get the same number of runs (docs/protocol.md). Rates that are in `rates.json` stay: arms that are
added start from the grids as they stand, and only they are extended. The results of all runs go to
`benchmarks/results/study-tuning/`. After an interruption the same command resumes.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plan import ARMS, HERE, RATES, SMALL_ARMS, Run, Tuned, read_rates
from runs import perform
from shared import write_json
from speed import Speed, measure_speed

SEED = 100
CENTRES = (5e-3, 3.2e-4)  # of stage 1 or the prompts, and of the last stage
COARSE = 2  # quarters of a factor of 10 between the rates of an arm with two of them; 1 for an arm with one
MOST = 4  # times that a grid is extended
TUNABLE = tuple(name for name, arm in ARMS.items() if arm.tuned != "none")

Rates = tuple[float, float]
Score = Callable[[str, Rates], float]


def rate(centre: float, quarters: int) -> float:
    """`centre` times 10 to the power of a number of quarters, to two digits.

    Example:
        >>> rate(3.2e-4, 0), rate(3.2e-4, 2), rate(3.2e-4, -1)
        (0.00032, 0.001, 0.00018)
    """
    return float(f"{centre * 10 ** (quarters / 4):.2g}")


@dataclass(frozen=True)
class Grid:
    """Positions on a scale of rates: three coarse ones or five fine ones, and what was added on either side."""

    low: int = 0
    high: int = 0

    def coarse(self) -> list[int]:
        """For one rate of an arm with two."""
        return [COARSE * position for position in range(-1 - self.low, 2 + self.high)]

    def fine(self, other: "Grid") -> list[int]:
        """For the rate of an arm with one, which gets as many runs as an arm with two: one run is in both its grids."""
        return list(range(-2 - self.low - other.low, 3 + self.high + other.high))

    def extended(self, edges: Iterable[tuple[bool, bool]]) -> "Grid":
        """One more on each side on which the best of any arm lies."""
        found = list(edges)
        return Grid(self.low + any(low for low, _ in found), self.high + any(high for _, high in found))


Grids = tuple[Grid, Grid]  # of the first rate and of the last
Offers = dict[str, dict[int, Rates]]  # of every arm, the rates at the positions of a grid


def tune(
    arms: Iterable[str],
    score: Score,
    *,
    start: Grids = (Grid(), Grid()),
    kinds: Mapping[str, Tuned] | None = None,
    centres: Rates = CENTRES,
    each: Callable[..., Iterable[Any]] = map,
) -> tuple[dict[str, Rates], Grids]:
    """The best rates of every arm, each after the same number of runs, and the grids of both rates in the end.

    Arms with two rates: the first one on a grid, then, with the best of it, the last one. Arms with one: that on a grid
    twice as fine. Where the best of any arm is at an edge, every arm gets one more run on that side.

    Args:
        arms: Their names.
        score: The higher, the better.
        start: The grids to start from.
        kinds: Which rates each arm has; as `ARMS` says if None.
        centres: The grids' middles.
        each: `map`, or one that looks at several runs at the same time.
    """
    names = tuple(arms)
    tuned = {name: ARMS[name].tuned for name in names} if kinds is None else kinds
    two = [name for name in names if tuned[name] == "both"]

    def scores(runs: list[tuple[str, Rates]]) -> list[float]:
        return list(each(lambda run: score(*run), runs))

    def first_of(grid: Grid) -> dict[int, Rates]:
        return {position: (rate(centres[0], position), centres[1]) for position in grid.coarse()}

    first, firsts = _search(lambda grid: {name: first_of(grid) for name in two}, scores, start[0])

    def last_of(name: str, grid: Grid) -> dict[int, Rates]:
        if name in two:
            found = rate(centres[0], firsts[name])
            return {position: (found, rate(centres[1], position)) for position in grid.coarse()}
        return {position: _single(tuned[name], position, centres) for position in grid.fine(first)}

    last, lasts = _search(lambda grid: {name: last_of(name, grid) for name in names}, scores, start[1])
    return {name: last_of(name, last)[lasts[name]] for name in names}, (first, last)


def _single(kind: Tuned, position: int, centres: Rates) -> Rates:
    if kind == "first":
        return rate(centres[0], position), centres[1]
    return centres[0], rate(centres[1], position)


def _search(
    offer: Callable[[Grid], Offers], scores: Callable[[list[tuple[str, Rates]]], list[float]], grid: Grid
) -> tuple[Grid, dict[str, int]]:
    """Every arm's best position, once none is at an edge of the grid, and that grid."""
    for _ in range(MOST + 1):
        offers = offer(grid)
        tried = [(name, position) for name, offered in offers.items() for position in offered]
        found = dict(zip(tried, scores([(name, offers[name][position]) for name, position in tried]), strict=True))
        best = {name: max(offered, key=lambda at, name=name: found[name, at]) for name, offered in offers.items()}
        wider = grid.extended((at == min(offers[name]), at == max(offers[name])) for name, at in best.items())
        if wider == grid:
            return grid, best
        grid = wider
    raise RuntimeError(
        f"the best rate is still at an edge after {MOST} extensions; look at the results before extending them further"
    )


class Tuning:
    """Scores of tuning runs; counts them by arm."""

    def __init__(self, results: Path, scratch: Path, costs: Rates, device: str) -> None:
        self.results, self.scratch, self.costs, self.device = results, scratch, costs, device
        self.runs: dict[str, set[Rates]] = {}
        self.bar = tqdm(desc="tuning", unit="run")

    def __call__(self, arm: str, rates: Rates) -> float:
        """The validation split's mAP, text to image."""
        if rates not in self.runs.setdefault(arm, set()):
            self.runs[arm].add(rates)
            self.bar.update()
        run = Run(arm, SEED, rates, self.costs)
        return perform(run, self.results, self.scratch, device=self.device, tuning=True)["validation"]["mAP"]


def announce(arms: tuple[str, ...], start: Grids, speed: Speed) -> None:
    """Say how long it takes if no grid is extended."""
    seconds = speed.of_all(Run(arm, SEED, CENTRES, speed.costs) for arm in arms)
    runs = 5 + sum(grid.low + grid.high for grid in start)
    print(f"tuning {', '.join(arms)}: {runs} runs each, about {runs * seconds / 60:.0f} min here if none is done yet;")
    print(f"each extension of a grid adds about {seconds / 60:.0f} min", flush=True)


def keep_costs(path: Path, measured: Rates) -> Rates:
    """The costs of the first call, so that all runs that are compared have the same; written by it."""
    if not path.is_file():
        write_json(path, measured, indent=None)
    one, two = json.loads(path.read_text(encoding="utf-8"))
    return one, two


def main() -> None:
    """Tune, and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "study-tuning")
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--arms", nargs="+", choices=TUNABLE, default=[arm for arm in SMALL_ARMS if arm in TUNABLE])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    before = read_rates() if RATES.is_file() else {"grids": [(0, 0), (0, 0)], "runs": {}, "rates": {}}
    arms = tuple(name for name in TUNABLE if name in arguments.arms and name not in before["rates"])
    if not arms:
        print(f"all of these arms are tuned; delete {RATES} to tune them again, where data or base have changed")
        return
    start = (Grid(*before["grids"][0]), Grid(*before["grids"][1]))
    speed = measure_speed(arguments.device, steps=5)
    announce(arms, start, speed)
    costs = keep_costs(arguments.results / "costs.json", speed.costs)
    score = Tuning(arguments.results, arguments.scratch, costs, arguments.device)
    found, grids = tune(arms, score, start=start)
    score.bar.close()
    runs = {arm: len(tried) for arm, tried in score.runs.items()}
    if len(set(runs.values())) != 1:
        raise RuntimeError(f"arms were tuned over different numbers of runs: {runs}")
    rates = {
        "seed": SEED,
        "grids": before["grids"] if before["rates"] else [(grid.low, grid.high) for grid in grids],
        "costs": costs,
        "runs": before["runs"] | runs,
        "rates": before["rates"] | found,
    }
    write_json(RATES, rates)
    print(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
