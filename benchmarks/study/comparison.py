"""Results read back and compared: paired differences, with a bootstrap over seeds and the identities within them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plan import Run
from runs import read_result

Results = dict[str, dict[int, dict[str, Any]]]  # arm → seed → result
Scores = Mapping[int, float]  # person id → mean score of the queries about that person
# Student's t at 97.5 %, by the number of seeds, of which the protocols have at most five in a comparison.
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


@dataclass(frozen=True)
class Difference:
    """A paired difference between two arms.

    Attributes:
        mean: Over seeds.
        std: Over seeds (n - 1); 0 for one seed.
        low: Lower end of the interval, of 95 % unless another level was asked for.
        high: Upper end of the interval.
        seeds: How many seeds both arms have.
    """

    mean: float
    std: float
    low: float
    high: float
    seeds: int

    @property
    def found(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation with n - 1, of at least one value."""
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0


def paired_difference(
    arm: Mapping[int, Scores],
    baseline: Mapping[int, Scores],
    *,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """How much better `arm` is than `baseline`, on the seeds that both have.

    Args:
        arm: Seed → person → score.
        baseline: The same for what it is compared with; the same persons within a seed.
        draws: Bootstrap draws.
        seed: Of the bootstrap.
        level: Of the interval.

    Raises:
        ValueError: No seed in common, or the persons of a seed differ.
    """
    seeds = sorted(arm.keys() & baseline.keys())
    if not seeds:
        raise ValueError(f"no seed in common: the arm has {sorted(arm)}, the baseline {sorted(baseline)}")
    differences = [_per_person(arm[number], baseline[number], number) for number in seeds]
    means = [float(values.mean()) for values in differences]
    random = np.random.default_rng(seed)
    drawn = _bootstrap(differences, draws, random)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    mean, std = mean_and_std(means)
    return Difference(mean, std, float(low), float(high), len(seeds))


def _per_person(arm: Scores, baseline: Scores, seed: int) -> NDArray[np.float64]:
    if arm.keys() != baseline.keys() or not arm:
        raise ValueError(f"seed {seed}: the two arms were not scored on the same persons, or on none")
    return np.array([arm[person] - baseline[person] for person in sorted(arm)])


def _bootstrap(differences: list[NDArray[np.float64]], draws: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Means of `draws` draws: seeds with replacement, then persons with replacement within each."""
    chosen = random.integers(len(differences), size=(draws, len(differences)))
    means = np.empty(chosen.shape)
    for position, values in enumerate(differences):
        here = chosen == position
        persons = random.integers(len(values), size=(int(here.sum()), len(values)))
        means[here] = values[persons].mean(axis=1)
    return means.mean(axis=1)


def direction_over_seeds(values: Sequence[float]) -> int:
    """1 where the 95 % interval of the mean over seeds, by Student's t, is above 0, -1 where below, else 0.

    Example:
        >>> direction_over_seeds([0.03, 0.031]), direction_over_seeds([0.03, -0.01]), direction_over_seeds([-0.03])
        (1, 0, 0)
    """
    if len(values) < 2:
        return 0
    mean, std = mean_and_std(values)
    half = T_QUANTILES[len(values)] * std / math.sqrt(len(values))
    return 0 if abs(mean) <= half else 1 if mean > 0 else -1


def gather(runs: Iterable[Run], folder: Path) -> Results:
    """The results there are of runs of one condition.

    Raises:
        ValueError: The runs are of several conditions or from different weights, or a file is damaged.
        FileExistsError: A file holds the result of another run, such as one at other rates.
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


def shared_seeds(results: Results, arm: str, baseline: str) -> set[int]:
    """The seeds that both arms were run on."""
    return results.get(arm, {}).keys() & results.get(baseline, {}).keys()


def have_a_pair(results: Results, arm: str, baseline: str) -> bool:
    """Whether there is a seed that both arms were run on."""
    return bool(shared_seeds(results, arm, baseline))


def rank1_difference(results: Results, arm: str, baseline: str, *, level: float = 0.95) -> Difference:
    """Rank-1 of `arm` less that of `baseline`: a mean over persons, paired by seed and person."""
    return paired_difference(_rank1_by_person(results, arm), _rank1_by_person(results, baseline), level=level)


def gains(results: Results, arm: str, baseline: str) -> dict[int, dict[int, float]]:
    """Seed → person → Rank-1 of one arm less that of the other, on the seeds that both have."""
    one, other = _rank1_by_person(results, arm), _rank1_by_person(results, baseline)
    return {
        seed: {person: value - other[seed][person] for person, value in persons.items()}
        for seed, persons in one.items()
        if seed in other
    }


def _rank1_by_person(results: Results, arm: str) -> dict[int, dict[int, float]]:
    return {
        seed: {int(person): value for person, value in result["rank1_by_person"].items()}
        for seed, result in results.get(arm, {}).items()
    }
