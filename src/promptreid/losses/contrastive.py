"""The loss of both stages."""

from typing import get_args

import torch
from torch import Tensor, nn

from promptreid.losses.functional import SamePerson, Similarity, contrastive_loss
from promptreid.losses.temperature import Temperature


class ContrastiveLoss(nn.Module):
    """Symmetric image-text InfoNCE; see `functional.contrastive_loss` for the formula.

    Args:
        temperature: Divides the similarities. 0.02 is the field's usual value (IRRA, arXiv 2303.12501).
        same_person: What other pairs of the same person in the batch are: `"ignored"`, neither positive nor
            negative; `"positive"`, sharing the target; or `"negative"`, as in plain InfoNCE.
        learnable_temperature: Let the temperature train, as CLIP's does.
        similarity: `"cosine"`, or `"dot"`, the ablation; dot products are larger, so raise the temperature.

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) integer; without them only the own pair is known to be of the person
        - returns: ()

    Raises:
        ValueError: The temperature is not positive, `same_person` or `similarity` is unknown, or shapes differ.

    Example:
        >>> import torch
        >>> loss = ContrastiveLoss(temperature=1.0)
        >>> round(loss(torch.eye(2), torch.eye(2)).item(), 4)  # log(1 + 1/e)
        0.3133

    Source:
        van den Oord et al. 2018, arXiv 1807.03748; Radford et al. 2021, arXiv 2103.00020.
    """

    def __init__(
        self,
        temperature: float = 0.02,
        *,
        same_person: SamePerson = "ignored",
        learnable_temperature: bool = False,
        similarity: Similarity = "cosine",
    ) -> None:
        super().__init__()
        if same_person not in get_args(SamePerson):
            raise ValueError(f'same_person is {same_person!r}, expected "ignored", "positive" or "negative"')
        if similarity not in get_args(Similarity):
            raise ValueError(f'similarity is {similarity!r}, expected "cosine" or "dot"')
        self.temperature: Temperature = Temperature(temperature, learnable=learnable_temperature)
        self.same_person: SamePerson = same_person
        self.similarity: Similarity = similarity

    def forward(self, image_features: Tensor, text_features: Tensor, person_ids: Tensor | None = None) -> Tensor:
        """Loss of a batch of pairs."""
        with torch.autocast(image_features.device.type, enabled=False):
            return contrastive_loss(
                image_features,
                text_features,
                temperature=self.temperature(),
                person_ids=person_ids,
                same_person=self.same_person,
                similarity=self.similarity,
            )

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        return f"same_person={self.same_person!r}, similarity={self.similarity!r}"
