"""Callbacks: functions of yours that a run calls while it trains, and which cannot disturb it."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.modes import evaluating
from promptreid.training.batches import preserved_randomness

# Scores by name of the model, which may choose the weights.
Evaluate = Callable[[PromptedCLIP], Mapping[str, float]]

# Gets a copy of the epoch's entry in the history, and the model; what it returns is ignored.
OnEpochEnd = Callable[[dict[str, Any], PromptedCLIP], object]


@contextmanager
def undisturbed(model: PromptedCLIP) -> Generator[None, None, None]:
    """While a callback runs: the model in eval mode without gradients; generators and modes are put back afterwards."""
    with preserved_randomness(), evaluating(model), torch.no_grad():
        yield
