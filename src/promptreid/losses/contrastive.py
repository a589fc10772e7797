"""The loss of both stages."""

from typing import get_args

import torch
from torch import Tensor, nn

from promptreid.losses.functional import SamePerson, contrastive_loss


class ContrastiveLoss(nn.Module):
    """Symmetric image-text InfoNCE on cosine similarity; see `functional.contrastive_loss` for the formula.

    Args:
        temperature: Divides the similarities; fixed. 0.02 is the field's usual value (IRRA, arXiv 2303.12501).
        same_person: What other pairs of the same person in the batch are: `"negative"`, as in plain InfoNCE, or
            `"positive"`, sharing the target, or `"ignored"`, neither.

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) integer, needed unless `same_person="negative"`
        - returns: ()

    Raises:
        ValueError: The temperature is not positive, `same_person` is unknown, or shapes differ.

    Example:
        >>> import torch
        >>> loss = ContrastiveLoss(temperature=1.0)
        >>> round(loss(torch.eye(2), torch.eye(2)).item(), 4)  # log(1 + 1/e)
        0.3133
    """

    def __init__(self, temperature: float = 0.02, *, same_person: SamePerson = "negative") -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected a positive number such as 0.02")
        if same_person not in get_args(SamePerson):
            raise ValueError(f'same_person is {same_person!r}, expected "negative", "positive" or "ignored"')
        self.temperature = temperature
        self.same_person: SamePerson = same_person

    def forward(self, image_features: Tensor, text_features: Tensor, person_ids: Tensor | None = None) -> Tensor:
        """Loss of a batch of pairs."""
        if self.same_person != "negative" and person_ids is None:
            raise ValueError(f'same_person="{self.same_person}" needs person_ids, one a pair; they were not given')
        with torch.autocast(image_features.device.type, enabled=False):
            return contrastive_loss(
                image_features,
                text_features,
                temperature=self.temperature,
                person_ids=person_ids,
                same_person=self.same_person,
            )

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        return f"temperature={self.temperature}, same_person={self.same_person!r}"
