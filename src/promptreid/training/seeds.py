"""The same run under several seeds: mean and spread instead of one lucky number."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from promptreid.errors import CheckpointError
from promptreid.files import read_sealed_json, write_sealed_json
from promptreid.scores import shown_score
from promptreid.values import as_json, whole_number


@dataclass(frozen=True)
class SeedScores:
    """Scores of one run per seed.

    Attributes:
        scores: Scores by name, by seed.

    Example:
        >>> found = SeedScores({0: {"rank1": 0.5}, 1: {"rank1": 0.7}})
        >>> print(found.table())
        rank1     60.00 ± 14.14  (2 seeds)
    """

    scores: Mapping[int, Mapping[str, float]]

    @property
    def mean(self) -> dict[str, float]:
        """Mean over the seeds, by name."""
        return {name: statistics.fmean(values) for name, values in self._columns().items()}

    @property
    def std(self) -> dict[str, float]:
        """Sample standard deviation over the seeds, by name; NaN for a single seed, which shows no spread."""
        return {
            name: statistics.stdev(values) if len(values) > 1 else math.nan for name, values in self._columns().items()
        }

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of the mean over seeds by Student's t, by name; NaN for a single seed."""
        count = len(self.scores)
        mean, std = self.mean, self.std
        half = {name: t_quantile(count - 1) * std[name] / math.sqrt(count) if count > 1 else math.nan for name in mean}
        return {name: (mean[name] - half[name], mean[name] + half[name]) for name in mean}

    def table(self) -> str:
        """One line per score, in percent."""
        if not self.scores:
            return "no seeds"
        mean, std, width = self.mean, self.std, max(map(len, self.mean), default=0)
        seeds = "1 seed" if len(self.scores) == 1 else f"{len(self.scores)} seeds"
        return "\n".join(
            f"{name:<{width}}{shown_score(name, mean[name]):>10} ± {shown_score(name, std[name])}  ({seeds})"
            for name in mean
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it; an unknown spread is null."""
        return {
            "seeds": {str(seed): dict(scores) for seed, scores in self.scores.items()},
            "mean": self.mean,
            "std": as_json(self.std),
            "interval": {name: None if math.isnan(ends[0]) else list(ends) for name, ends in self.interval.items()},
        }

    def _columns(self) -> dict[str, list[float]]:
        every = list(self.scores.values())
        names = [name for name in every[0] if all(name in scores for scores in every)] if every else []
        return {name: [scores[name] for scores in every] for name in names}


# The 0.975 quantiles of Student's t for 1 to 10 degrees of freedom; beyond, the normal one's expansion is exact enough.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution, to four digits.

    Example:
        >>> t_quantile(2), round(t_quantile(20), 3)
        (4.3027, 2.086)

    Source:
        Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 26.7.5 (the expansion).
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def run_seeds(
    train: Callable[[int, Path], Mapping[str, float]], seeds: Sequence[int], *, output_dir: str | Path
) -> SeedScores:
    """Train once for each seed and collect the scores.

    A seed whose run has ended is not run again, and an interrupted one is resumed if `train` gives its folder to a
    `Trainer`: after a kill, run the same command again.

    Args:
        train: From a seed and the seed's folder to scores by name. Everything that is drawn (model, schedule, order)
            must be drawn from the seed.
        seeds: The seeds.
        output_dir: Gets `seed-<n>/scores.json` for each, and `seeds.json`.

    Returns:
        The scores, with mean and standard deviation.

    Raises:
        ValueError: No seeds, one twice or below 0, or runs that return different or non-finite scores.
        TypeError: A seed is not a whole number.
        CheckpointError: A file of scores is damaged.
    """
    seeds = [whole_number("seeds", seed) for seed in seeds]
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds are {list(seeds)}, expected at least one, each once and at least 0")
    folder = Path(output_dir)
    scores: dict[int, dict[str, float]] = {}
    for seed in seeds:
        path = folder / f"seed-{seed}" / "scores.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        scores[seed] = _read(path) if path.is_file() else _run(train, seed, path)
        first = scores[seeds[0]]
        if scores[seed].keys() != first.keys():
            raise ValueError(
                f"seed {seed} has the scores {sorted(scores[seed])}, seed {seeds[0]} has {sorted(first)}; give another "
                "output_dir if the run has changed"
            )
    found = SeedScores(scores)
    _write(folder / "seeds.json", found.as_dict())
    return found


def _run(train: Callable[[int, Path], Mapping[str, float]], seed: int, path: Path) -> dict[str, float]:
    scores = {name: float(value) for name, value in train(seed, path.parent).items()}
    if not scores or not all(map(math.isfinite, scores.values())):
        raise ValueError(f"the run of seed {seed} returned {scores}, expected at least one score, all of them numbers")
    _write(path, scores)
    return scores


def _read(path: Path) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in read_sealed_json(path).items()}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"cannot read the scores {path}: {error}; delete it to run this seed again") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
        write_sealed_json(path, content)
