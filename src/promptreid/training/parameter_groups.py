"""Parameters that share a rate and a weight decay, as optimisers take them."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def parameter_groups(rates: Iterable[tuple[nn.Parameter, float]], *, weight_decay: float) -> list[dict[str, Any]]:
    """Put parameters into as few groups as their rates and weight decays allow.

    Weight decay is left out for biases, norms and everything else of at most one dimension.

    Args:
        rates: Every parameter with its peak rate.
        weight_decay: Of the others.

    Returns:
        Groups with `"params"`, `"lr"` and `"weight_decay"`, rates in the order in which they first appear, those
        with weight decay first.
    """
    chosen: dict[float, dict[bool, list[nn.Parameter]]] = {}
    for parameter, rate in rates:
        chosen.setdefault(rate, {True: [], False: []})[parameter.ndim > 1].append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for rate, by_decay in chosen.items()
        for decays, parameters in by_decay.items()
        if parameters
    ]
