"""The arithmetic of the losses, as pure functions in float32 or better."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SamePerson = Literal["negative", "positive", "ignored"]


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: float,
    person_ids: Tensor | None = None,
    same_person: SamePerson = "positive",
) -> Tensor:
    r"""Symmetric image-text InfoNCE on cosine similarity.

    .. math:: L = -\frac{1}{2B} \sum_i \Big[ \sum_j q_{ij} \log \frac{e^{s_{ij}/\tau}}{\sum_k e^{s_{ik}/\tau}}
              + \sum_j q_{ji} \log \frac{e^{s_{ji}/\tau}}{\sum_k e^{s_{ki}/\tau}} \Big]

    with s the cosine similarity and q one for the own pair, or shared equally by all pairs of the same person.

    Args:
        image_features: Not normalised.
        text_features: Not normalised; row i describes image i.
        temperature: Divides the similarities.
        person_ids: Whose pairs they are; without them only the own pair is a positive.
        same_person: What the other pairs of a person are where `person_ids` are given: `"positive"` shares the
            target with them, `"ignored"` leaves them out of the sums over k, `"negative"` is as without ids.

    Shape:
        - image_features, text_features: (B, E) floating point
        - person_ids: (B,) integer
        - returns: () of the features' precision, at least float32

    Raises:
        ValueError: Shapes differ.

    Source:
        van den Oord et al. 2018, arXiv 1807.03748; Radford et al. 2021, arXiv 2103.00020, figure 3; shared
        targets as in Khosla et al. 2020, arXiv 2004.11362, equation 2.
    """
    check_pairs(image_features, text_features, person_ids)
    logits = unit_length(image_features) @ unit_length(text_features).T / temperature
    target = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    if person_ids is not None and same_person != "negative":
        same = person_ids[:, None] == person_ids[None, :]
        if same_person == "positive":
            target = same / same.sum(dim=1, keepdim=True).to(logits.dtype)
        else:
            # The lowest finite number, not -inf: 0 of the target times -inf would be NaN.
            others = same & (target == 0)
            logits = logits.masked_fill(others, torch.finfo(logits.dtype).min)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def cross_modal_id_loss(
    image_logits: Tensor, text_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    r"""Mean cross-entropy of naming the person from the image and from the text with one classifier.

    .. math:: L = \frac{1}{2} \big[ \mathrm{CE}(W v + b, y) + \mathrm{CE}(W t + b, y) \big]

    Args:
        image_logits: Scores of every identity for the images.
        text_logits: The same for the captions.
        labels: The identities.
        label_smoothing: Share of the target spread over all identities, in [0, 1).

    Shape:
        - image_logits, text_logits: (B, C) floating point
        - labels: (B,) int64 in [0, C)
        - returns: ()

    Source:
        Zheng et al. 2017, Dual-Path Convolutional Image-Text Embedding, arXiv 1711.05535; arXiv 2401.02173.
    """
    image_loss = F.cross_entropy(at_least_float32(image_logits), labels, label_smoothing=label_smoothing)
    text_loss = F.cross_entropy(at_least_float32(text_logits), labels, label_smoothing=label_smoothing)
    return (image_loss + text_loss) / 2


def at_least_float32(values: Tensor) -> Tensor:
    """Raise half precision to float32 and leave the rest."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def unit_length(features: Tensor) -> Tensor:
    """Divide each row by its length; a row of zeros stays zero and passes no NaN."""
    return F.normalize(at_least_float32(features), dim=-1, eps=1e-8)


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
