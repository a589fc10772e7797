"""The identity loss of stage 2."""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptreid.losses.functional import (
    at_least_float32,
    bounded,
    check_labels,
    check_pairs,
    cross_modal_id_loss,
    project_on_partner,
    unit_length,
)
from promptreid.values import check_choice, whole_number

Classifier = Literal["linear", "norm_softmax", "cosine"]


class CrossModalIDLoss(nn.Module):
    """One identity classifier shared by images and captions, so both must name the person by the same features.

    Args:
        num_identities: C, persons in the training split.
        embed_dim: E, size of the features.
        label_smoothing: Share of the target spread over all identities, in [0, 1).
        classifier: `"linear"`, Wx + b; `"norm_softmax"`, weights of unit length and no bias, as in CMPC; or
            `"cosine"`, the cosine of weights and features times `scale`.
        scale: Times the cosines; used only by the cosine classifier.
        cross_modal_projection: Classify each feature's projection on its partner's direction, as in CMPC: an image
            is then named right only by what its caption says too.

    Attributes:
        classifier: The shared linear layer, drawn from N(0, 0.001).

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) int64, labels in [0, C)
        - returns: ()

    Raises:
        ValueError: Fewer than two identities, smoothing outside [0, 1), an unknown classifier, a scale that is not
            positive, shapes differ, labels out of range.
        TypeError: `num_identities` is not a whole number.

    Example:
        >>> import torch
        >>> loss = CrossModalIDLoss(4, 8)
        >>> features = torch.zeros(2, 8)
        >>> round(loss(features, features, torch.tensor([0, 3])).item(), 4)  # log 4: nothing is known yet
        1.3863

    Source:
        Zheng et al. 2017, arXiv 1711.05535; the head's scale as in IRRA, arXiv 2303.12501; projection and unit
        weights: Zhang and Lu 2018, Deep Cross-Modal Projection Learning, ECCV 2018 (CMPC); cosine classifier: Wang
        et al. 2017, NormFace, arXiv 1704.06369.
    """

    def __init__(
        self,
        num_identities: int,
        embed_dim: int,
        *,
        label_smoothing: float = 0.0,
        classifier: Classifier = "linear",
        scale: float = 30.0,
        cross_modal_projection: bool = False,
    ) -> None:
        super().__init__()
        num_identities = whole_number("num_identities", num_identities)
        if num_identities < 2:
            raise ValueError(f"num_identities is {num_identities}; telling persons apart needs at least 2")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 <= label_smoothing < 1")
        check_choice("classifier", classifier, get_args(Classifier))
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}, expected a positive number such as 30")
        self.num_identities = num_identities
        self.label_smoothing = label_smoothing
        self.kind: Classifier = classifier
        self.scale = scale
        self.cross_modal_projection = cross_modal_projection
        self.classifier: nn.Linear = nn.Linear(embed_dim, num_identities, bias=classifier == "linear")
        nn.init.normal_(self.classifier.weight, std=0.001)
        if classifier == "linear":
            nn.init.zeros_(self.classifier.bias)

    def forward(self, image_features: Tensor, text_features: Tensor, person_ids: Tensor) -> Tensor:
        """Loss of a batch of pairs."""
        check_pairs(image_features, text_features, person_ids)
        if image_features.shape[1] != self.classifier.in_features:
            raise ValueError(
                f"this loss takes features of size {self.classifier.in_features}, these have "
                f"{image_features.shape[1]}; give embed_dim=model.embed_dim"
            )
        # On a GPU, looking would wait for it at every step; there cross-entropy itself refuses such labels.
        if person_ids.device.type == "cpu":
            check_labels(person_ids, self.num_identities)
        with torch.autocast(image_features.device.type, enabled=False):
            images, texts = self._prepared(image_features, text_features)
            image_logits, text_logits = self._logits(images), self._logits(texts)
            return cross_modal_id_loss(image_logits, text_logits, person_ids, label_smoothing=self.label_smoothing)

    def extra_repr(self) -> str:
        """Show the settings in `print(loss)`."""
        scale = f", scale={self.scale}" if self.kind == "cosine" else ""
        return (
            f"label_smoothing={self.label_smoothing}, classifier={self.kind!r}{scale}, "
            f"cross_modal_projection={self.cross_modal_projection}"
        )

    def _prepared(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        # Unit length comes before the projection, whose length says how well the pair agrees.
        prepare = {"linear": at_least_float32, "norm_softmax": bounded, "cosine": unit_length}[self.kind]
        images, texts = prepare(images), prepare(texts)
        if self.cross_modal_projection:
            return project_on_partner(images, texts), project_on_partner(texts, images)
        return images, texts

    def _logits(self, features: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.classifier(features)
        logits = F.linear(features, unit_length(self.classifier.weight))
        return self.scale * logits if self.kind == "cosine" else logits
