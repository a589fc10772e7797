"""Callbacks: functions of yours that a run calls while it trains, and which cannot disturb it."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from promptreid.errors import NotFiniteError
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.modes import evaluating
from promptreid.training.batches import preserved_randomness
from promptreid.training.checkpoint import check_metric
from promptreid.training.processes import failing_together, first_rank

# Scores by name of the model, which may choose the weights.
Evaluate = Callable[[PromptedCLIP], Mapping[str, float]]

# Gets a copy of the epoch's entry in the history, and the model; what it returns is ignored.
OnEpochEnd = Callable[[dict[str, Any], PromptedCLIP], object]


@contextmanager
def undisturbed(model: PromptedCLIP) -> Generator[None, None, None]:
    """While a callback runs: the model in eval mode without gradients; generators and modes are put back afterwards."""
    with preserved_randomness(), evaluating(model), torch.no_grad():
        yield


def scores_of(
    evaluate: Evaluate,
    model: PromptedCLIP,
    *,
    best_metric: str | None,
    keep_epoch: Callable[[], None],
    processes: int,
) -> dict[str, float]:
    """The scores that `evaluate` gives the model, the same in every process.

    Args:
        evaluate: The callback.
        model: The model.
        best_metric: The score that chooses, if one does.
        keep_epoch: Called before an error is raised, so that it does not cost the epoch that was to be scored. Not
            where features are not finite: then it is taken that training diverged.
        processes: Number of processes.

    Raises:
        TypeError: `evaluate` did not return numbers by name.
        ValueError: The score that chooses is missing or not finite.
        NotFiniteError: `evaluate` found that the model's features are not.
    """
    try:
        with undisturbed(model):
            found = evaluate(model)
    except NotFiniteError:
        raise
    except Exception:
        if processes == 1:  # the others do not know of it, and a checkpoint is written by all together
            keep_epoch()
        raise
    try:
        with failing_together():
            scores = read_scores(found)
        # Every process evaluates, as evaluation may be shared among them, but one decides: GPUs differ in last bits.
        scores = first_rank(scores)
        check_metric(best_metric, scores)
    except Exception:
        keep_epoch()
        raise
    return scores


def read_scores(found: Any) -> dict[str, float]:
    """What `evaluate` returned, as plain numbers by name.

    Raises:
        TypeError: It has no numbers by name, as a dictionary has.
    """
    # A pandas Series has items too; a class has them, but of nothing.
    if isinstance(found, type) or not callable(getattr(found, "items", None)):
        kind = "None" if found is None else f"a {type(found).__name__}"
        raise TypeError(f"evaluate returned {kind}, expected {_SCORES}")
    scores: dict[str, float] = {}
    for name, value in cast(Mapping[Any, Any], found).items():
        try:
            scores[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = "None" if value is None else f"a {type(value).__name__}"
            raise TypeError(f"evaluate returned {kind} under {name!r}, expected {_SCORES}") from error
    return scores


_SCORES = (
    "a dictionary of numbers by name, such as promptreid.evaluate(model, data.val).text_to_image.as_dict(), the scores "
    "of one direction"
)
