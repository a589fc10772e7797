"""An alternative to the contrastive loss that pulls all pairs of a person together."""

import torch
from torch import Tensor, nn

from promptreid.losses.functional import sdm_loss
from promptreid.losses.temperature import Temperature


class SDMLoss(nn.Module):
    """Similarity distribution matching; see `functional.sdm_loss` for the formula.

    Use it instead of `ContrastiveLoss` where a batch holds several pairs of a person.

    Args:
        temperature: Divides the cosines; IRRA's is 0.02.
        learnable_temperature: Let the temperature train.
        epsilon: Keeps the logarithm of the target finite.

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) integer; without them only the own pair is a positive
        - returns: ()

    Raises:
        ValueError: The temperature or epsilon is not positive, or shapes differ.

    Example:
        >>> import torch
        >>> loss = SDMLoss(temperature=1.0, epsilon=1e-2)
        >>> # p = (0.731, 0.269): 2 * (0.731 * log(0.731 / 1.01) + 0.269 * log(0.269 / 0.01))
        >>> round(loss(torch.eye(2), torch.eye(2)).item(), 3)
        1.298

    Source:
        Jiang and Ye 2023, IRRA, arXiv 2303.12501, equations 5 to 7.
    """

    def __init__(
        self, temperature: float = 0.02, *, learnable_temperature: bool = False, epsilon: float = 1e-8
    ) -> None:
        super().__init__()
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon is {epsilon}, expected a small positive number such as 1e-8")
        self.temperature: Temperature = Temperature(temperature, learnable=learnable_temperature)
        self.epsilon = epsilon

    def forward(self, image_features: Tensor, text_features: Tensor, person_ids: Tensor | None = None) -> Tensor:
        """Loss of a batch of pairs."""
        with torch.autocast(image_features.device.type, enabled=False):
            return sdm_loss(
                image_features,
                text_features,
                temperature=self.temperature(),
                person_ids=person_ids,
                epsilon=self.epsilon,
            )

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        return f"epsilon={self.epsilon}"
