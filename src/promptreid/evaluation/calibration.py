"""From which score a search result is worth showing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from promptreid.evaluation.metrics import Array, check_retrieval_input, scaled

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Calibration:
    """A threshold for scores and what it does.

    Attributes:
        threshold: Cosine similarity from which an image counts as a match.
        false_alarm_rate: Share of the queries whose best wrong item reaches it: how often a search for a person who is
            not in the gallery would still find something.
        hit_rate: Share of the queries whose best right item reaches it; `None` where nobody knows which are right.
        num_queries: Queries that this was measured with.
        gallery_size: Items they searched; in a larger gallery false alarms are more frequent.
    """

    threshold: float
    false_alarm_rate: float
    hit_rate: float | None
    num_queries: int
    gallery_size: int


def calibrate_threshold(
    query_features: Array,
    gallery_features: Array,
    query_ids: Array,
    gallery_ids: Array,
    *,
    false_alarm_rate: float = 0.05,
) -> Calibration:
    """Choose the lowest threshold at which searches for absent persons find something at most this often.

    Each query serves as a search for an absent person when its own right items are left out: then it finds
    something if its best wrong item reaches the threshold. Use labelled images that look like those that will be
    searched, about as many, and none that the model was trained on.

    Args:
        query_features: Of sentences or images.
        gallery_features: Of images.
        query_ids: Person of each query.
        gallery_ids: Person of each gallery item.
        false_alarm_rate: Largest share of false alarms, in [0, 1).

    Shape:
        - query_features: (Q, E), gallery_features: (G, E); query_ids: (Q,), gallery_ids: (G,) integer

    Returns:
        The threshold, and the rates measured at it.

    Raises:
        ValueError: The rate is out of range, the input is malformed, or no query has both right and wrong items.

    Example:
        >>> import torch
        >>> ids = torch.tensor([0, 1])
        >>> calibrate_threshold(torch.eye(2), torch.eye(2), ids, ids).hit_rate
        1.0
    """
    _check_rate(false_alarm_rate)
    items = check_retrieval_input(query_features, gallery_features, query_ids, gallery_ids)
    right, wrong = _best_scores(*items)
    both = right.isfinite() & wrong.isfinite()
    right, wrong = right[both], wrong[both]
    if len(wrong) == 0:
        raise ValueError(
            "no query has both a right and a wrong item in the gallery: its items are of "
            f"{len(items[3].unique())} persons. Calibrate on captions and images of at least two, or without labels: "
            "gallery.calibrate()"
        )
    threshold = _lowest_reached_by(wrong, false_alarm_rate)
    return Calibration(
        threshold=float(threshold),
        false_alarm_rate=float((wrong >= threshold).double().mean()),
        hit_rate=float((right >= threshold).double().mean()),
        num_queries=len(wrong),
        gallery_size=len(items[1]),
    )


def calibrate_without_labels(
    best_scores: Sequence[float], *, gallery_size: int, false_alarm_rate: float = 0.05
) -> Calibration:
    """Choose the lowest threshold that sentences about people who are not there reach at most this often.

    Nobody knows which of the gallery's images are right, so the rate of hits is unknown. Where a sentence happens to
    describe a person in the gallery, the threshold gets too high rather than too low. This is how the impostor cohorts
    of speaker verification set a threshold, with sentences for voices.

    Args:
        best_scores: The best score in the gallery of each of many such sentences.
        gallery_size: Items they searched.
        false_alarm_rate: Largest share of them that may reach the threshold, in [0, 1).

    Returns:
        The threshold, with `hit_rate` `None`.

    Raises:
        ValueError: The rate is out of range, a score is not finite, or there are too few for the rate.

    Example:
        >>> calibrate_without_labels([0.1, 0.2, 0.3, 0.4], gallery_size=9, false_alarm_rate=0.25).false_alarm_rate
        0.25

    Source:
        Auckenthaler, Carey and Lloyd-Thomas, "Score normalization for text-independent speaker verification systems",
        Digital Signal Processing 10 (2000), section 3.
    """
    _check_rate(false_alarm_rate)
    best = torch.tensor(list(best_scores), dtype=torch.float32)
    least = fewest_sentences(false_alarm_rate)
    if len(best) < least:
        raise ValueError(
            f"{len(best)} sentences are too few for a rate of {false_alarm_rate:g}; give {least} or more, of people "
            "who are not in the gallery"
        )
    if not bool(best.isfinite().all()):
        raise ValueError("best_scores hold NaN or infinity, expected cosine similarities")
    threshold = _lowest_reached_by(best, false_alarm_rate)
    return Calibration(float(threshold), float((best >= threshold).double().mean()), None, len(best), gallery_size)


def fewest_sentences(false_alarm_rate: float) -> int:
    """The fewest sentences that can measure a rate of false alarms: with fewer, not one may be a false alarm."""
    return 2 if false_alarm_rate == 0 else math.ceil(1 / false_alarm_rate)


def _check_rate(false_alarm_rate: float) -> None:
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate}, expected 0 <= rate < 1, such as 0.05")


def _lowest_reached_by(wrong: Tensor, rate: float) -> Tensor:
    """The lowest threshold that at most this share of wrong scores reaches: just above the first that must not."""
    allowed = math.floor(rate * len(wrong))
    allowed += (allowed + 1) / len(wrong) <= rate  # 0.29 * 100 is a little less than 29
    blocked = wrong.sort(descending=True).values[allowed]
    return torch.nextafter(blocked, torch.tensor(torch.inf))


def _best_scores(
    query_features: Tensor, gallery_features: Tensor, query_ids: Tensor, gallery_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosine similarity of each query's best right and best wrong item, (Q,) float32 each; -inf where there is none."""
    device = query_features.device
    queries, gallery = (
        normalize(scaled(features.to(device, torch.float32))[0], dim=-1)
        for features in (query_features, gallery_features)
    )
    query_ids, gallery_ids = query_ids.to(device), gallery_ids.to(device)
    right, wrong = torch.empty(len(queries)), torch.empty(len(queries))
    for rows in torch.arange(len(queries)).split(max(1, _CHUNK_BYTES // (8 * len(gallery)))):
        scores = queries[rows] @ gallery.T
        same = query_ids[rows, None] == gallery_ids
        right[rows] = scores.masked_fill(~same, -torch.inf).amax(dim=1).cpu()
        wrong[rows] = scores.masked_fill(same, -torch.inf).amax(dim=1).cpu()
    return right, wrong
