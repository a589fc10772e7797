"""The arithmetic of the losses, as pure functions."""

import math
from typing import Literal

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
    """Refuse labels without an output of the classifier.

    Raises:
        ValueError: A label is below 0 or not below `num_identities`.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if not 0 <= lowest <= highest < num_identities:
        raise ValueError(
            f"person_ids run from {lowest} to {highest}, expected labels from 0 to {num_identities - 1}; "
            "ReIDSplit.labels maps an annotation's identities to labels"
        )


_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny  # whose inverse is finite, and twice that too


def check_temperature(temperature: float) -> None:
    """Refuse what similarities cannot be divided by.

    Raises:
        ValueError: It is not positive and finite, or so small that its inverse overflows in float32.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected a positive number such as 0.02")
    if temperature < _SMALLEST_TEMPERATURE:
        raise ValueError(
            f"temperature is {temperature}, by which similarities overflow in float32; expected a number of at least "
            f"{_SMALLEST_TEMPERATURE:.2g}, such as 0.02"
        )


SamePerson = Literal["ignored", "positive", "negative"]

Similarity = Literal["cosine", "dot"]


def similarities(image_features: Tensor, text_features: Tensor, *, similarity: Similarity = "cosine") -> Tensor:
    """Compare every image with every caption.

    Args:
        image_features: Not normalised.
        text_features: Not normalised.
        similarity: `"cosine"`, or `"dot"` for the dot product.

    Shape:
        - image_features, text_features: (B, E) floating point
        - returns: (B, B), images along rows, at least float32
    """
    prepare = unit_length if similarity == "cosine" else bounded
    return prepare(image_features) @ prepare(text_features).T


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: Tensor | float,
    person_ids: Tensor | None = None,
    same_person: SamePerson = "ignored",
    similarity: Similarity = "cosine",
) -> Tensor:
    r"""Symmetric image-text InfoNCE.

    .. math:: L = -\frac{1}{2B} \sum_i \left[ \sum_j q_{ij} \log \frac{e^{s_{ij}/\tau}}{\sum_k e^{s_{ik}/\tau}}
              + \sum_j q_{ji} \log \frac{e^{s_{ji}/\tau}}{\sum_k e^{s_{ki}/\tau}} \right]

    with s the similarity and q one for the own pair, or shared equally by all pairs of the same person.

    Args:
        image_features: Not normalised.
        text_features: Not normalised; row i describes image i.
        temperature: Divides the similarities.
        person_ids: Whose pairs they are; without them only the own pair is known to be of the person.
        same_person: What the other pairs of a person are where `person_ids` are given: `"ignored"` leaves them out
            of the sums over k, `"positive"` shares the target with them, `"negative"` is as without ids.
        similarity: Cosine, or the dot product.

    Shape:
        - image_features, text_features: (B, E) floating point
        - person_ids: (B,) integer
        - returns: () of the features' precision, at least float32

    Raises:
        ValueError: Shapes differ.

    Example:
        >>> import torch
        >>> round(contrastive_loss(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)  # log(1 + 1/e)
        0.3133

    Source:
        van den Oord et al. 2018, arXiv 1807.03748; Radford et al. 2021, arXiv 2103.00020, figure 3; shared
        targets as in Khosla et al. 2020, arXiv 2004.11362, equation 2.
    """
    check_pairs(image_features, text_features, person_ids)
    logits = similarities(image_features, text_features, similarity=similarity) / temperature
    target = _shared_target(logits, person_ids if same_person == "positive" else None)
    if person_ids is not None and same_person == "ignored":
        same = person_ids[:, None] == person_ids[None, :]
        # A finite number, not -inf: 0 of the target times -inf would be NaN. Half of the lowest, so that taking the
        # row's highest from it stays finite.
        logits = logits.masked_fill(same & (target == 0), torch.finfo(logits.dtype).min / 2)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sdm_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: Tensor | float,
    person_ids: Tensor | None = None,
    epsilon: float = 1e-8,
) -> Tensor:
    r"""Similarity distribution matching: how far the batch's softmax is from sharing out over the person's pairs.

    .. math:: L = \frac{1}{B} \sum_i \left[ \sum_j p_{ij} \log \frac{p_{ij}}{q_{ij} + \epsilon}
              + \sum_j p'_{ij} \log \frac{p'_{ij}}{q_{ij} + \epsilon} \right]

    with p the softmax of cosines over τ from image i to all captions, p' that from caption i to all images, and q
    shared equally by all pairs of the same person.

    Args:
        image_features: Not normalised.
        text_features: Not normalised; row i describes image i.
        temperature: Divides the cosines.
        person_ids: Whose pairs they are; without them only the own pair is a positive.
        epsilon: Keeps the logarithm of q finite.

    Shape:
        - image_features, text_features: (B, E) floating point
        - person_ids: (B,) integer
        - returns: () of the features' precision, at least float32

    Raises:
        ValueError: Shapes differ.

    Example:
        >>> import torch
        >>> one_person = torch.zeros(2, dtype=torch.int64)
        >>> sdm_loss(torch.ones(2, 3), torch.ones(2, 3), temperature=1.0, person_ids=one_person).abs().item() < 1e-6
        True

    Source:
        Jiang and Ye 2023, IRRA, arXiv 2303.12501, equations 5 to 7.
    """
    check_pairs(image_features, text_features, person_ids)
    logits = similarities(image_features, text_features) / temperature
    log_target = (_shared_target(logits, person_ids) + epsilon).log()
    total = logits.new_zeros(())
    for scores in (logits, logits.T):
        log_share = F.log_softmax(scores, dim=1)
        total = total + (log_share.exp() * (log_share - log_target)).sum(dim=1).mean()
    return total


def nitc_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: Tensor | float,
    person_ids: Tensor | None = None,
    soft_labels: Tensor | float = 0.5,
) -> Tensor:
    r"""Symmetric InfoNCE whose target is in part what the model itself believes.

    .. math:: L = -\frac{1}{2B} \sum_i \left[ \sum_j (\alpha \bar p_{ij} + (1 - \alpha) q_{ij}) \log p_{ij}
              + \sum_j (\alpha \bar p'_{ij} + (1 - \alpha) q_{ij}) \log p'_{ij} \right]

    with p the softmax of cosines over τ from image i to all captions, p' that from caption i to all images, a bar
    for what passes no gradient, and q shared equally by all pairs of the same person.

    Args:
        image_features: Not normalised.
        text_features: Not normalised; row i describes image i.
        temperature: Divides the cosines.
        person_ids: Whose pairs they are; without them only the own pair is a positive.
        soft_labels: α, the share of the model's own softmax in the target, in [0, 1].

    Shape:
        - image_features, text_features: (B, E) floating point
        - person_ids: (B,) integer
        - returns: () of the features' precision, at least float32

    Raises:
        ValueError: Shapes differ.

    Example:
        >>> import torch
        >>> # p = (0.731, 0.269), the target (0.866, 0.134): -(0.866 log 0.731 + 0.134 log 0.269)
        >>> round(nitc_loss(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)
        0.4477

    Source:
        Cao et al. 2024, TBPS-CLIP, arXiv 2308.10045, section on the normalised image-text contrastive loss; soft
        labels by the model itself after Li et al. 2021, ALBEF, arXiv 2107.07651.
    """
    check_pairs(image_features, text_features, person_ids)
    logits = similarities(image_features, text_features) / temperature
    target = _shared_target(logits, person_ids)
    total = logits.new_zeros(())
    for scores in (logits, logits.T):
        believed = scores.detach().softmax(dim=1)
        total = total + F.cross_entropy(scores, target + soft_labels * (believed - target))
    return total / 2


def _shared_target(logits: Tensor, person_ids: Tensor | None) -> Tensor:
    """One for the own pair, shared equally by all pairs of the same person where that is known: (B, B)."""
    same = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if person_ids is not None:
        same = person_ids[:, None] == person_ids[None, :]
    return same / same.sum(dim=1, keepdim=True).to(logits.dtype)


def project_on_partner(features: Tensor, partners: Tensor) -> Tensor:
    r"""The part of each row that lies along its partner's direction, :math:`(x^\top \bar z)\, \bar z`.

    Args:
        features: x, what is projected.
        partners: z, whose directions it is projected on.

    Shape:
        - features, partners: (B, E) floating point
        - returns: (B, E), at least float32; zero where the partner is zero

    Example:
        >>> import torch
        >>> project_on_partner(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]]))
        tensor([[0., 2.]])

    Source:
        Zhang and Lu 2018, Deep Cross-Modal Projection Learning, ECCV 2018, section 3.2 (CMPC).
    """
    direction = unit_length(partners)
    return (bounded(features) * direction).sum(dim=-1, keepdim=True) * direction


def cross_modal_id_loss(
    image_logits: Tensor, text_logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    r"""Mean cross-entropy of naming the person from the image and from the text with one classifier.

    .. math:: L = \frac{1}{2} \left[ \mathrm{CE}(W v + b, y) + \mathrm{CE}(W t + b, y) \right]

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


def feature_distance(features: Tensor, frozen: Tensor) -> Tensor:
    r"""Mean absolute difference between features of unit length, :math:`\frac{1}{BE} \sum |\bar x - \bar f|`.

    Args:
        features: x, not normalised.
        frozen: f, what they are held near, not normalised.

    Shape:
        - features, frozen: (B, E) floating point
        - returns: () of the features' precision, at least float32

    Example:
        >>> import torch
        >>> feature_distance(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
        tensor(1.)

    Source:
        Khattak et al. 2023, PromptSRC, arXiv 2307.06948, equation 3.
    """
    return F.l1_loss(unit_length(features), unit_length(frozen))


def similarity_divergence(similarity: Tensor, frozen: Tensor, *, temperature: Tensor | float) -> Tensor:
    r"""How far two tables of similarities are apart.

    It is :math:`\frac{1}{B} \sum_i \mathrm{KL}(q_i \| p_i)`, the mean of that over rows and that over columns.

    Args:
        similarity: Every image with every caption; p is its softmax over the temperature.
        frozen: The same before anything was trained; q is its softmax.
        temperature: Divides both.

    Shape:
        - similarity, frozen: (B, B), images along rows
        - returns: ()

    Example:
        >>> import torch
        >>> # q = (1/2, 1/2), p = (0.731, 0.269): (log(0.5 / 0.731) + log(0.5 / 0.269)) / 2
        >>> round(similarity_divergence(torch.eye(2), torch.zeros(2, 2), temperature=1.0).item(), 4)
        0.1201

    Source:
        Khattak et al. 2023, PromptSRC, arXiv 2307.06948, equation 4. There each image is compared with the names of
        classes, one way; here images and captions are compared with each other, both ways.
    """
    total = similarity.new_zeros(())
    for scores, wanted in ((similarity, frozen), (similarity.T, frozen.T)):
        log_share = F.log_softmax(scores / temperature, dim=1)
        log_wanted = F.log_softmax(wanted / temperature, dim=1)
        total = total + F.kl_div(log_share, log_wanted, reduction="batchmean", log_target=True)
    return total / 2
