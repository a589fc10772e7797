"""Losses that pull matching images and captions together: contrastive, and SDM and N-ITC as alternatives."""

import math
from typing import get_args

import torch
from torch import Tensor, nn

from promptreid.losses.functional import (
    SamePerson,
    Similarity,
    check_temperature,
    contrastive_loss,
    nitc_loss,
    sdm_loss,
)

_HIGHEST_SCALE = 100.0


class Temperature(nn.Module):
    """A fixed number, or one that is learnt as CLIP learns its logit scale.

    Learnt, it is kept as `logit_scale = log(1 / temperature)` and held within 0.01 and 1, as in CLIP.

    Args:
        value: The number, or where learning starts.
        learnable: Whether it trains.

    Raises:
        ValueError: It is not positive and finite, its inverse overflows in float32, or it is to be learnt from outside
            0.01 to 1.

    Example:
        >>> Temperature(0.5)()
        0.5

    Source:
        Radford et al. 2021, arXiv 2103.00020, section 2.5.
    """

    def __init__(self, value: float = 0.02, *, learnable: bool = False) -> None:
        super().__init__()
        check_temperature(value)
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


class ContrastiveLoss(nn.Module):
    """Symmetric image-text InfoNCE; see `functional.contrastive_loss` for the formula.

    Args:
        temperature: Divides the similarities. 0.02 is the field's usual value (IRRA, arXiv 2303.12501).
        same_person: What other pairs of the same person in the batch are: `"ignored"`, neither positive nor
            negative; `"positive"`, sharing the target; or `"negative"`, as in plain InfoNCE. With the first two a
            batch of one person has no negatives; with the first its loss and gradient are 0.
        learnable_temperature: Let the temperature train, as CLIP's does.
        similarity: `"cosine"`, or `"dot"`, the ablation; dot products are larger, so raise the temperature.

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) integer; without them only the own pair is known to be of the person
        - returns: ()

    Raises:
        ValueError: The temperature is not positive or too small, or learnable and not within 0.01 and 1; `same_person`
            or `similarity` is unknown; or shapes differ.

    Example:
        >>> import torch
        >>> loss = ContrastiveLoss(temperature=1.0)
        >>> round(loss(torch.eye(2), torch.eye(2)).item(), 4)  # log(1 + 1/e)
        0.3133

    Source:
        van den Oord et al. 2018, arXiv 1807.03748; Radford et al. 2021, arXiv 2103.00020.
    """

    smallest_batch = 2  # a single pair has no negatives

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
        self.fewest_persons: int = 1 if same_person == "negative" else 2

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
        ValueError: The temperature or epsilon is not positive or too small, a learnable temperature is not within 0.01
            and 1, or shapes differ.

    Example:
        >>> import torch
        >>> loss = SDMLoss(temperature=1.0, epsilon=1e-2)
        >>> # p = (0.731, 0.269): 2 * (0.731 * log(0.731 / 1.01) + 0.269 * log(0.269 / 0.01))
        >>> round(loss(torch.eye(2), torch.eye(2)).item(), 3)
        1.298

    Source:
        Jiang and Ye 2023, IRRA, arXiv 2303.12501, equations 5 to 7.
    """

    smallest_batch = fewest_persons = 2  # pairs of a single person have no negatives

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


class NITCLoss(nn.Module):
    """Contrastive loss with soft labels, all pairs of a person positive; see `functional.nitc_loss` for the formula.

    Args:
        temperature: Divides the cosines; where learning starts, as in TBPS-CLIP.
        learnable_temperature: Let the temperature train.
        soft_labels: Share of the model's own softmax in the target, in [0, 1].
        rising_steps: Steps of training in which that share rises from 0; TBPS-CLIP's are those of its first epoch.

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) integer; without them only the own pair is a positive
        - returns: ()

    Raises:
        ValueError: The temperature is out of range, `soft_labels` is not in [0, 1], `rising_steps` is below 0, or
            shapes differ.

    Example:
        >>> import torch
        >>> loss = NITCLoss(temperature=1.0)
        >>> round(loss(torch.eye(2), torch.eye(2)).item(), 4)
        0.4477

    Source:
        Cao et al. 2024, TBPS-CLIP, arXiv 2308.10045.
    """

    smallest_batch = fewest_persons = 2  # pairs of a single person have no negatives

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = True,
        soft_labels: float = 0.5,
        rising_steps: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= soft_labels <= 1:
            raise ValueError(f"soft_labels is {soft_labels}, expected a share from 0 to 1, such as 0.5")
        if rising_steps < 0:
            raise ValueError(f"rising_steps is {rising_steps}, expected a number of steps of at least 0")
        self.temperature: Temperature = Temperature(temperature, learnable=learnable_temperature)
        self.soft_labels = soft_labels
        self.rising_steps = rising_steps
        # A buffer, so that a resumed run continues from the same step.
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, image_features: Tensor, text_features: Tensor, person_ids: Tensor | None = None) -> Tensor:
        """Loss of a batch of pairs; in train mode the call counts as a step."""
        with torch.autocast(image_features.device.type, enabled=False):
            return nitc_loss(
                image_features,
                text_features,
                temperature=self.temperature(),
                person_ids=person_ids,
                soft_labels=self._share(),
            )

    def _share(self) -> Tensor | float:
        if not (self.training and self.rising_steps):
            return self.soft_labels
        share = self.soft_labels * (self.steps / self.rising_steps).clamp(max=1.0)
        with torch.no_grad():
            self.steps += 1
        return share

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        return f"soft_labels={self.soft_labels}, rising_steps={self.rising_steps}"
