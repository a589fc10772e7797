"""Means, paired differences, and a bootstrap over seeds and the identities within them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[int, float]  # person id → mean score of the queries about that person


@dataclass(frozen=True)
class Difference:
    """A paired difference between two arms.

    Attributes:
        mean: Over seeds.
        std: Over seeds (n - 1); 0 for one seed.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
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
    arm: Mapping[int, Scores], baseline: Mapping[int, Scores], *, draws: int = 10_000, seed: int = 0
) -> Difference:
    """How much better `arm` is than `baseline`, on the seeds that both have.

    Args:
        arm: Seed → person → score.
        baseline: The same for what it is compared with; the same persons within a seed.
        draws: Bootstrap draws.
        seed: Of the bootstrap.

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
    low, high = np.quantile(drawn, [0.025, 0.975])
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
    for place, values in enumerate(differences):
        here = chosen == place
        persons = random.integers(len(values), size=(int(here.sum()), len(values)))
        means[here] = values[persons].mean(axis=1)
    return means.mean(axis=1)
