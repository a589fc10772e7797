"""One search of a gallery, from the query to its hits."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from promptreid.errors import CheckpointError
from promptreid.evaluation.calibration import Calibration
from promptreid.evaluation.metrics import Array, as_tensor
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.audit import log_action, queries_in_words
from promptreid.retrieval.encode import Query, encode_queries, is_one_query
from promptreid.retrieval.filters import Where
from promptreid.retrieval.gallery_store import GalleryStore
from promptreid.retrieval.index import ExactIndex
from promptreid.retrieval.table import Hit, check_passes


def search_store(
    store: GalleryStore,
    model: PromptedCLIP | None,
    query: Query | Array | list[Query] | list[str],
    k: int,
    *,
    lowest: float,
    where: Where | None,
) -> list[Hit] | list[list[Hit]]:
    """The hits of the query, or of each of several, the best first, none below `lowest`; logged if asked for."""
    k = _positive(k)
    query = as_tensor(query, "query") if isinstance(query, np.ndarray) else query
    exact, index = store.snapshot()
    if len(exact) == 0:
        raise ValueError("the gallery is empty; add images first")
    queries = encode_queries(model, query, dimensions=exact.dimensions)
    best = index.search(queries, min(k, len(exact)), where=where)
    if where is not None and not any(best):
        check_passes([segment.images for segment in exact.segments], where)
    found = [_hits(exact, one, lowest) for one in best]
    if store.header.get("audit") and store.directory is not None:
        asked = None if where is None else str(where)
        counts = [len(hits) for hits in found]
        log_action(store.directory, "search", queries=queries_in_words(query), where=asked, found=counts)
    return found[0] if is_one_query(query) else found


def lowest_score(calibration: Calibration | None, threshold: float | str | None) -> float:
    """The score that a `threshold` of `Gallery.search` stands for: no hit has less.

    Raises:
        ValueError: It is not a score, or the gallery was never calibrated.
    """
    if threshold is None:
        return -float("inf")
    if threshold == "calibrated":
        if calibration is None:
            raise ValueError(
                'threshold is "calibrated", but this gallery was never calibrated; call gallery.calibrate(split) '
                "with labelled images, or give a number"
            )
        return calibration.threshold
    if isinstance(threshold, str) or not -1 <= threshold <= 1:
        raise ValueError(f'threshold is {threshold!r}, expected a cosine similarity in [-1, 1] or "calibrated"')
    return threshold


def _positive(k: Any) -> int:
    try:
        number = operator.index(k)
    except TypeError:
        raise TypeError(f"k is {k!r}, expected a whole number, such as 10") from None
    if number < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    return number


def _hits(exact: ExactIndex, found: Sequence[tuple[int, float]], lowest: float) -> list[Hit]:
    """What an index found, without scores below `lowest` and without images that were removed meanwhile."""
    wrong = [number for number, score in found if not math.isfinite(score)]
    if wrong:  # which no comparison would find
        raise CheckpointError(f"the index scores image {wrong[0]} NaN or infinity; build the gallery again")
    return exact.hits(found, lowest)
