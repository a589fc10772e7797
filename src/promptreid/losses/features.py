"""What every loss asks of the features it is given."""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Raise half precision to float32 and leave the rest."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def unit_length(features: Tensor) -> Tensor:
    """Divide each row by its length; a row of zeros stays zero and passes no NaN."""
    return F.normalize(at_least_float32(features), dim=-1, eps=1e-8)


def bounded(features: Tensor) -> Tensor:
    """Cut numbers so large that their products would overflow; NaN stays NaN, so that it is noticed."""
    return at_least_float32(features).clamp(-1e15, 1e15)


def check_pairs(image_features: Tensor, text_features: Tensor, person_ids: Tensor | None) -> None:
    """Refuse features and identities that are not one batch.

    Raises:
        ValueError: Shapes differ, or the batch is empty.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape or len(image_features) == 0:
        raise ValueError(
            f"image_features have shape {tuple(image_features.shape)} and text_features {tuple(text_features.shape)}; "
            "expected the same (batch, dim) of both, at least one pair"
        )
    if person_ids is not None and person_ids.shape != image_features.shape[:1]:
        raise ValueError(
            f"person_ids have shape {tuple(person_ids.shape)}, expected ({len(image_features)},): one a pair"
        )


def check_labels(labels: Tensor, num_identities: int) -> None:
    """Refuse labels that no output of the classifier stands for.

    Raises:
        ValueError: A label is below 0 or not below `num_identities`.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if not 0 <= lowest <= highest < num_identities:
        raise ValueError(
            f"person_ids run from {lowest} to {highest}, expected labels from 0 to {num_identities - 1}; "
            "ReIDSplit.labels maps an annotation's identities to labels"
        )
