"""What similarities are divided by."""

import math

import torch
from torch import Tensor, nn

_HIGHEST_SCALE = 100.0


class Temperature(nn.Module):
    """A fixed number, or one that is learnt as CLIP learns its logit scale.

    Learnt, it is kept as `logit_scale = log(1 / temperature)` and held within 0.01 and 1, as in CLIP.

    Args:
        value: The number, or where learning starts.
        learnable: Whether it trains.

    Raises:
        ValueError: It is not positive and finite, or is to be learnt from outside 0.01 to 1.

    Example:
        >>> Temperature(0.5)()
        0.5

    Source:
        Radford et al. 2021, arXiv 2103.00020, section 2.5.
    """

    def __init__(self, value: float = 0.02, *, learnable: bool = False) -> None:
        super().__init__()
        if not 0 < value < math.inf:
            raise ValueError(f"temperature is {value}, expected a positive number such as 0.02")
        if learnable and not 1 / _HIGHEST_SCALE <= value <= 1:
            raise ValueError(
                f"temperature is {value}, but a learnt one is held within {1 / _HIGHEST_SCALE} and 1; start inside, "
                "for example at 0.07"
            )
        self.value = value
        self.logit_scale: nn.Parameter | None = nn.Parameter(torch.tensor(math.log(1 / value))) if learnable else None

    def forward(self) -> Tensor | float:
        """The number as it is now, () if it is learnt."""
        if self.logit_scale is None:
            return self.value
        if self.training:
            # The parameter itself is held, not its use: beyond a clamp it would get no gradient and never come back.
            with torch.no_grad():
                self.logit_scale.clamp_(0.0, math.log(_HIGHEST_SCALE))
        return 1 / self.logit_scale.exp()

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        return f"{self.value}" + ("" if self.logit_scale is None else ", learnable=True")
