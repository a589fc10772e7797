"""The loss of regularised prompt tuning: prompted features stay near those of the model without prompts."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from promptreid.losses.functional import (
    check_pairs,
    check_temperature,
    feature_distance,
    similarities,
    similarity_divergence,
)


class FrozenFeatures(NamedTuple):
    """A batch's features as the model gives them without prompts; they take no gradient.

    Attributes:
        image_features: (B, E), not normalised.
        text_features: (B, E), not normalised.
    """

    image_features: Tensor
    text_features: Tensor


class SelfConsistencyLoss(nn.Module):
    """Keeps prompted features near the frozen ones, so that prompts do not overfit.

    The sum of the mean absolute difference of image features, that of text features, and how far the similarities of
    the batch's images and captions are from the frozen ones, each with its weight. It is for stages that train only
    prompts, beside a matching loss. See `functional.feature_distance` and `functional.similarity_divergence`.

    Args:
        image_weight: Weight of the image features' distance.
        text_weight: Weight of the text features' distance.
        similarity_weight: Weight of the similarities' divergence.
        temperature: Divides the cosines of the third.

    Attributes:
        needs: `("frozen",)`, what a `Stage` gives this loss beside features and ids.

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,), not used
        - frozen: the same batch's `FrozenFeatures`
        - returns: ()

    Raises:
        ValueError: A weight is negative or all are 0, the temperature is not positive or too small, or shapes differ.

    Example:
        >>> import torch
        >>> features = torch.eye(2)
        >>> loss = SelfConsistencyLoss()
        >>> loss(features, features, torch.arange(2), frozen=FrozenFeatures(features, features)).item()
        0.0

    Source:
        Khattak et al. 2023, PromptSRC, arXiv 2307.06948, equations 3 to 5, and the weights 10, 25 and 1 of its
        published configuration.
    """

    needs: tuple[Literal["frozen"], ...] = ("frozen",)
    smallest_batch: int = 2  # the similarities of a single pair are always the same

    def __init__(
        self,
        *,
        image_weight: float = 10.0,
        text_weight: float = 25.0,
        similarity_weight: float = 1.0,
        temperature: float = 0.02,
    ) -> None:
        super().__init__()
        weights = (image_weight, text_weight, similarity_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                f"image_weight, text_weight and similarity_weight are {weights}, expected numbers of at least 0, and "
                "one above it"
            )
        check_temperature(temperature)
        self.image_weight: float = image_weight
        self.text_weight: float = text_weight
        self.similarity_weight: float = similarity_weight
        self.temperature = temperature

    def forward(
        self, image_features: Tensor, text_features: Tensor, person_ids: Tensor | None = None, *, frozen: FrozenFeatures
    ) -> Tensor:
        """Loss of a batch of pairs."""
        check_pairs(image_features, text_features, person_ids)
        for features, fixed in zip((image_features, text_features), frozen, strict=True):
            if features.shape != fixed.shape:
                raise ValueError(
                    f"frozen features have shape {tuple(fixed.shape)}, expected {tuple(features.shape)}: those of the "
                    "same batch"
                )
        with torch.autocast(image_features.device.type, enabled=False):
            return (
                self.image_weight * feature_distance(image_features, frozen.image_features)
                + self.text_weight * feature_distance(text_features, frozen.text_features)
                + self.similarity_weight
                * similarity_divergence(
                    similarities(image_features, text_features),
                    similarities(frozen.image_features, frozen.text_features),
                    temperature=self.temperature,
                )
            )

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        return (
            f"image_weight={self.image_weight}, text_weight={self.text_weight}, "
            f"similarity_weight={self.similarity_weight}, temperature={self.temperature}"
        )
