"""An average of the weights that a stage passes through, one of each epoch."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from promptreid.losses.functional import at_least_float32
from promptreid.values import real_number


class GaussianAverage:
    r"""The Gaussian-weighted average of the weights at the end of each epoch, with which a stage then ends.

    Epoch t of T has the weight :math:`w_t \propto e^{-(t - \mu T)^2 / 2 (\sigma T)^2}`, and the weights sum to 1. Early
    prompts have not learnt much yet, the last ones may fit the training data too closely. Give it to a `Stage`; in
    your own loop call `add` after each epoch, and `load_into` after the last one.

    Args:
        mean: μ, the share of the epochs after which the weight is the highest, in (0, 1].
        std: σ, the standard deviation as a share of the epochs.

    Raises:
        ValueError: One of them is out of range.
        TypeError: One of them is no number.

    Example:
        >>> import torch
        >>> average, prompts = GaussianAverage(mean=1.0, std=1.0), torch.nn.Parameter(torch.zeros(1))
        >>> [round(weight, 3) for weight in average.weights(2)]
        [0.469, 0.531]
        >>> for epoch in (1, 2):
        ...     prompts.data += 1
        ...     average.add([("prompts", prompts)], epoch=epoch, epochs=2)
        >>> average.load_into([("prompts", prompts)])
        >>> round(prompts.item(), 3)  # 0.469 * 1 + 0.531 * 2
        1.531

    Source:
        Khattak et al. 2023, PromptSRC, arXiv 2307.06948, equations 6 and 7. Its published configurations have epoch 15
        and a deviation of 1 out of 20 epochs, the shares that are the defaults here, and 45 and 5 out of 50.
    """

    def __init__(self, mean: float = 0.75, std: float = 0.05) -> None:
        mean, std = real_number("mean", mean), real_number("std", std)
        if not 0 < mean <= 1 or not 0 < std < math.inf:
            raise ValueError(
                f"mean is {mean} and std {std}, expected shares of the epochs: a mean above 0 and at most 1, such as "
                "0.75, and a positive std, such as 0.05"
            )
        self.mean = mean
        self.std = std
        self._sums: dict[str, Tensor] = {}

    def weights(self, epochs: int) -> list[float]:
        """The weight of each epoch; they sum to 1."""
        distances = [((epoch - self.mean * epochs) / (self.std * epochs)) ** 2 / 2 for epoch in range(1, epochs + 1)]
        nearest = min(distances)  # taken from all of them, as else all may be 0
        heights = [math.exp(nearest - distance) for distance in distances]
        return [height / sum(heights) for height in heights]

    @torch.no_grad()
    def add(self, parameters: Iterable[tuple[str, Tensor]], *, epoch: int, epochs: int) -> None:
        """Add the weights as they are at the end of an epoch; the first one starts a new average.

        Args:
            parameters: By name, as `named_parameters()` gives them; the same ones every time.
            epoch: Which epoch has ended, from 1.
            epochs: Epochs of the stage.
        """
        weight = self.weights(epochs)[epoch - 1]
        before = {} if epoch == 1 else self._sums
        self._sums = {}
        for name, value in parameters:
            share = weight * at_least_float32(value.detach())
            self._sums[name] = share + before[name].to(share.device) if name in before else share

    @torch.no_grad()
    def load_into(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Set the weights to the average.

        Raises:
            ValueError: There is no average of one of them.
        """
        for name, value in parameters:
            if name not in self._sums:
                raise ValueError(f"there is no average of {name}; call add with it after every epoch")
            value.copy_(self._sums[name])

    def settings(self) -> dict[str, Any]:
        """The settings of this average."""
        return {"kind": type(self).__name__, "mean": self.mean, "std": self.std}

    def state_dict(self) -> dict[str, Tensor]:
        """The average so far, for a checkpoint."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint's average."""
        self._sums = dict(state)
