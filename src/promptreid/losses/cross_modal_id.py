"""The identity loss of stage 2."""

import torch
from torch import Tensor, nn

from promptreid.losses.functional import at_least_float32, check_labels, check_pairs, cross_modal_id_loss


class CrossModalIDLoss(nn.Module):
    """One identity classifier shared by images and captions, so both must name the person by the same features.

    Args:
        num_identities: C, persons in the training split.
        embed_dim: E, size of the features.
        label_smoothing: Share of the target spread over all identities, in [0, 1).

    Attributes:
        classifier: The shared linear layer, drawn from N(0, 0.001).

    Shape:
        - image_features, text_features: (B, E), not normalised
        - person_ids: (B,) int64, labels in [0, C)
        - returns: ()

    Raises:
        ValueError: Fewer than two identities, smoothing outside [0, 1), shapes differ, labels out of range.

    Example:
        >>> import torch
        >>> loss = CrossModalIDLoss(4, 8)
        >>> features = torch.zeros(2, 8)
        >>> round(loss(features, features, torch.tensor([0, 3])).item(), 4)  # log 4: nothing is known yet
        1.3863

    Source:
        Zheng et al. 2017, arXiv 1711.05535; the head's scale as in IRRA, arXiv 2303.12501.
    """

    def __init__(self, num_identities: int, embed_dim: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if num_identities < 2:
            raise ValueError(f"num_identities is {num_identities}; telling persons apart needs at least 2")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 <= label_smoothing < 1")
        self.num_identities = num_identities
        self.label_smoothing = label_smoothing
        self.classifier = nn.Linear(embed_dim, num_identities)
        nn.init.normal_(self.classifier.weight, std=0.001)
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
            image_logits = self.classifier(at_least_float32(image_features))
            text_logits = self.classifier(at_least_float32(text_features))
            return cross_modal_id_loss(image_logits, text_logits, person_ids, label_smoothing=self.label_smoothing)
