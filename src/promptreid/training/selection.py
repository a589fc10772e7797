"""Which epoch's weights a stage ends with."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.batches import preserved_randomness
from promptreid.training.processes import first_rank
from promptreid.training.stage import Stage

Evaluate = Callable[[PromptedCLIP], Mapping[str, float]]


class Selection:
    """Scores the model between epochs and compares the scores; without a metric the last epoch is taken.

    Args:
        evaluate: From the model, in eval mode, to scores by name; never on the test split.
        every_epoch: Whether it is called after every epoch, or after a stage's last alone.
        metric: The score to choose by.

    Raises:
        ValueError: There is a metric, but nothing that gives it.
    """

    def __init__(self, evaluate: Evaluate | None, *, every_epoch: bool, metric: str | None) -> None:
        if metric is not None and evaluate is None:
            raise ValueError(f"best_metric={metric!r} needs evaluate, which returns scores by name")
        self.evaluate = evaluate
        self.every_epoch = every_epoch
        self.metric = metric

    def scores(self, model: PromptedCLIP, stage: Stage, *, last: bool) -> dict[str, float] | None:
        """Scores of the model as it is, equal in every process; None where no evaluation is due.

        Raises:
            ValueError: The metric is not among the scores, or not a number.
        """
        if self.evaluate is None or not (last or self.every_epoch):
            return None
        model.eval()
        with preserved_randomness(), torch.no_grad():
            found = {name: float(value) for name, value in self.evaluate(model).items()}
        stage.prepare()
        # Every process evaluates, as evaluation may be shared among them, but one decides: GPUs differ in last bits.
        found = first_rank(found)
        if self.metric is not None and self.metric not in found:
            raise ValueError(f"best_metric is {self.metric!r}, but evaluate returned {sorted(found)}")
        if self.metric is not None and not math.isfinite(found[self.metric]):
            raise ValueError(f"evaluate returned {self.metric}={found[self.metric]}, which is no score to choose by")
        return found

    def prefers(self, scores: Mapping[str, float] | None, best: Mapping[str, Any] | None) -> bool:
        """Whether these scores beat those of the best entry so far; equal ones do not."""
        if self.metric is None or scores is None:
            return False
        return best is None or scores[self.metric] > best["scores"][self.metric]

    def verdict(self, entry: Mapping[str, Any], best: Mapping[str, Any] | None) -> dict[str, Any]:
        """Which epoch was chosen and by what rule, for the log."""
        if self.metric is None or best is None:
            return {"rule": "last epoch", "epoch": entry["epoch"], "step": entry["step"]}
        return {
            "rule": f"highest {self.metric}",
            "epoch": best["epoch"],
            "step": best["step"],
            self.metric: best["scores"][self.metric],
        }
