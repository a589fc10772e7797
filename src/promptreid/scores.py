"""The metrics by name: the title of each in tables, and how it is printed; and the name of the bare model's scores."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

RANKS = (1, 5, 10)  # k of the Rank-k that are reported

ZERO_SHOT = "zero_shot"  # the state whose scores are the bare model's; others are called as the stage that ended


@dataclass(frozen=True)
class Metric:
    """A metric as tables, cards and reports show it.

    Attributes:
        title: Its column's head where there is room for words.
        is_fraction: Whether it is a fraction in [0, 1], printed in percent; else it is printed as it is.
        compute: From `promptreid.evaluation.metrics.QueryResults` to its value, for a metric of your own.
    """

    title: str
    is_fraction: bool = True
    compute: Callable[[Any], float] | None = None


# In the order of every table. A metric that is added here is computed, printed, reported and published with the others.
METRICS: dict[str, Metric] = {
    **{f"rank{k}": Metric(f"Rank-{k}") for k in RANKS},
    "mAP": Metric("mAP"),
    "mINP": Metric("mINP"),
}


def metric_of(name: str) -> Metric | None:
    """The metric of a name; `rank20` has one too, though no table has a column for it."""
    k = name.removeprefix("rank")
    return METRICS.get(name, Metric(f"Rank-{k}") if k != name and k.isdecimal() else None)


def shared_metrics(*scores: Container[str]) -> list[str]:
    """The names of `METRICS` that each of several scores by name has, in the order of the table."""
    return [name for name in METRICS if all(name in each for each in scores)]


def shown_score(name: str, value: float, *, signed: bool = False) -> str:
    """A score as it is printed: fractions in percent, others as they are.

    Example:
        >>> shown_score("rank20", 0.5), shown_score("mAP", 0.25, signed=True), shown_score("loss", 1.5)
        ('50.00', '+25.00', '1.5')
    """
    sign = "+" if signed else ""
    metric = metric_of(name)
    return f"{100 * value:{sign}.2f}" if metric and metric.is_fraction else f"{value:{sign}.4g}"
