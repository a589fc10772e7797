"""Finds the pictures of a gallery that answer a query."""

from typing import Any

import torch
from torch import Tensor

from promptreid.evaluation.calibration import Calibration
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.encode import check_finite, encode_queries
from promptreid.retrieval.index import top_scores
from promptreid.retrieval.table import Hit, PictureTable, Where

# Rounding to float16 changes a feature's length by less.
_LENGTH_ERROR = 1e-2


def search_pictures(
    state: tuple[PictureTable, Tensor],
    model: PromptedCLIP | None,
    query: Any,
    k: int,
    *,
    lowest: float,
    where: Where | None,
) -> list[list[Hit]]:
    """The best pictures for each query, the best first; the arguments are those of `Gallery.search`.

    Args:
        state: The pictures and their features.
        model: Encodes sentences and pictures.
        query: One query or several.
        k: How many at most.
        lowest: Score that a picture must have.
        where: Which pictures to search.

    Raises:
        ValueError: There is no picture, or `k` is not from 1 to their number.
    """
    table, features = state
    if len(table) == 0:
        raise ValueError("the gallery is empty; add pictures first")
    if not 1 <= k <= len(table):
        raise ValueError(f"k is {k}, but the gallery has {len(table)} pictures; give 1 to {len(table)}")
    encoded = encode_queries(model, query, dimensions=features.shape[1])
    rows = table.rows_where(where)
    scores, indices = top_scores(features, encoded, k, rows=rows, unit_length=True)
    return [
        [table.hit(int(place), float(score)) for score, place in zip(best, places, strict=True) if score >= lowest]
        for best, places in zip(scores.tolist(), indices.tolist(), strict=True)
    ]


def lowest_score(threshold: float | str | None, calibration: Calibration | None) -> float:
    """The score that `threshold` stands for.

    Raises:
        ValueError: It is neither a cosine similarity nor `"calibrated"`, or nothing was calibrated.
    """
    if threshold is None:
        return -float("inf")
    if threshold == "calibrated":
        if calibration is None:
            raise ValueError(
                'threshold is "calibrated", but this gallery was never calibrated; call gallery.calibrate(split) '
                "with labelled pictures, or give a number"
            )
        return calibration.threshold
    if isinstance(threshold, str) or not -1 <= threshold <= 1:
        raise ValueError(f'threshold is {threshold!r}, expected a cosine similarity in [-1, 1] or "calibrated"')
    return threshold


def check_unit_length(features: Tensor) -> Tensor:
    """Return `features`, or refuse them.

    Shape:
        - features: (G, E) floating point

    Raises:
        ValueError: They hold NaN or infinity, or one is not of unit length.
    """
    lengths = torch.linalg.vector_norm(check_finite(features), dim=1, dtype=torch.float32)
    wrong = ((lengths - 1).abs() > _LENGTH_ERROR).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(features)} features are not of unit length, such as number {int(wrong[0])} of "
            f"length {float(lengths[wrong[0]]):.3g}; scores are cosine similarities: give "
            "torch.nn.functional.normalize(features, dim=-1)"
        )
    return features
