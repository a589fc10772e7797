"""Exact retrieval metrics without sorting."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptreid.errors import NotFiniteError
from promptreid.evaluation.ranks import CACHED_BYTES, UNUSED, Positives, rank_positives
from promptreid.scores import METRICS, RANKS
from promptreid.values import optional_whole_number, whole_number

# What is taken where a tensor is meant; lists of numbers too.
Array = Tensor | np.ndarray[Any, Any] | Sequence[Any]

# Queries in one chunk: enough for a matrix product at full speed, and bytes of their similarities.
_CHUNK_QUERIES = 384
_CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 64 * 2**20}


@dataclass(frozen=True, eq=False)
class QueryResults:
    """How each query did, in the order of the queries; for error analysis.

    Attributes:
        first_rank: (Q,) int64, 1-based rank of the best right item; 0 for a query without one.
        average_precision: (Q,) float64; NaN for a query without a right item.
        inverse_negative_penalty: (Q,) float64, right items divided by the rank of the last; NaN without one.
        num_positives: (Q,) int64, right items in the gallery.
    """

    first_rank: Tensor
    average_precision: Tensor
    inverse_negative_penalty: Tensor
    num_positives: Tensor


@dataclass(frozen=True)
class RetrievalMetrics:
    """Scores of one search direction, as fractions in [0, 1].

    Attributes:
        rank: k to Rank-k, the share of queries with a right item among the first k (CMC).
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty: right items divided by the rank of the last of them.
        num_queries: Queries that were scored.
        num_without_positive: Queries left out because nothing in the gallery is theirs.
        queries: Each query's own scores, if they were asked for.
        others: Metrics that were added to `promptreid.scores.METRICS`, by name.
    """

    rank: dict[int, float] = field(hash=False)
    mAP: float
    mINP: float
    num_queries: int
    num_without_positive: int
    queries: QueryResults | None = field(default=None, repr=False, compare=False)
    others: dict[str, float] = field(default_factory=dict[str, float], hash=False, repr=False)

    @property
    def rank1(self) -> float:
        """Rank-1, if it was asked for."""
        return self.rank[1]

    def as_dict(self) -> dict[str, float]:
        """`{"rank1": …, "rank5": …, …, "mAP": …, "mINP": …}`."""
        ranks = {f"rank{k}": value for k, value in self.rank.items()}
        return {**ranks, "mAP": self.mAP, "mINP": self.mINP, **self.others}


def compute_metrics(
    query_features: Array,
    gallery_features: Array,
    query_ids: Array,
    gallery_ids: Array,
    *,
    ranks: Sequence[int] = RANKS,
    chunk_size: int | None = None,
    device: str | torch.device | None = None,
    per_query: bool = False,
) -> RetrievalMetrics:
    """Rank a gallery for every query by cosine similarity and score the ranking.

    Nothing is sorted: a right item's rank is one plus the number of gallery items scored above it, where of two equal
    scores the earlier gallery item counts as higher, as a stable descending sort has it. Similarities are computed in
    float32 (in float64 if both features are) for one chunk of queries after the other.

    Args:
        query_features: Normalised or not.
        gallery_features: The same.
        query_ids: Person of each query.
        gallery_ids: Person of each gallery item.
        ranks: Which Rank-k to compute.
        chunk_size: Queries at a time; `None` for the fastest number within 64 MB.
        device: Where to compute; `None` for where the query features are.
        per_query: Return each query's own scores too.

    Shape:
        - query_features: (Q, E), gallery_features: (G, E), floating point
        - query_ids: (Q,), gallery_ids: (G,) integer

    Returns:
        The metrics, as fractions.

    Raises:
        ValueError: Shapes do not fit, the gallery or the queries are empty, features are not finite, a rank is not
            positive, or no query has a right item.
        TypeError: A rank or the chunk size is not an integer, or ids are not numbers.

    Example:
        >>> import torch
        >>> ids = torch.tensor([0, 1])
        >>> compute_metrics(torch.eye(2), torch.eye(2), ids, ids).as_dict()
        {'rank1': 1.0, 'rank5': 1.0, 'rank10': 1.0, 'mAP': 1.0, 'mINP': 1.0}

    Source:
        CMC and mAP: Zheng et al. 2015 (Market-1501). mINP: Ye et al. 2021, arXiv 2001.04193, equation 4.
    """
    query_features, gallery_features, query_ids, gallery_ids = check_retrieval_input(
        query_features, gallery_features, query_ids, gallery_ids
    )
    used = query_features.device if device is None else torch.device(device)
    both_double = query_features.dtype == gallery_features.dtype == torch.float64
    dtype = torch.float64 if both_double else torch.float32
    queries, _ = scaled(query_features.to(used, dtype))
    gallery, lengths = scaled(gallery_features.to(used, dtype))

    def similarities(chosen: Tensor) -> Tensor:
        # A query's own length changes nothing in its ranking. Dividing by the gallery's after the product keeps
        # products of integers exact, so equal items tie in every chunk.
        return (queries[chosen] @ gallery.T).div_(lengths)

    return _score(
        similarities,
        Positives(query_ids.to(used), gallery_ids.to(used)),
        ranks=ranks,
        chunk_size=chunk_size,
        element_size=queries.element_size(),
        per_query=per_query,
    )


def score_similarity(
    similarity: Array,
    query_ids: Array,
    gallery_ids: Array,
    *,
    ranks: Sequence[int] = RANKS,
    per_query: bool = False,
) -> RetrievalMetrics:
    """Score rankings by your own matrix of similarities, such as a re-ranker's.

    Args:
        similarity: Higher is more alike.
        query_ids: Person of each query.
        gallery_ids: Person of each gallery item.
        ranks: Which Rank-k to compute.
        per_query: Return each query's own scores too.

    Shape:
        - similarity: (Q, G) floating point; query_ids: (Q,), gallery_ids: (G,) integer

    Returns:
        The metrics, as fractions; ties and the rest as in `compute_metrics`.

    Raises:
        ValueError: Shapes do not fit, a similarity is NaN, a rank is not positive, or no query has a right item.
        TypeError: A rank is not an integer.

    Example:
        >>> import torch
        >>> score_similarity(torch.tensor([[0.9, 0.1]]), torch.tensor([7]), torch.tensor([3, 7])).mAP
        0.5
    """
    similarity = as_tensor(similarity, "similarity")
    query_ids, gallery_ids = as_tensor(query_ids, "query_ids"), as_tensor(gallery_ids, "gallery_ids")
    if similarity.ndim != 2 or similarity.numel() == 0 or not similarity.is_floating_point():
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)} and dtype {similarity.dtype}, expected floating point "
            "(queries, gallery) with at least one of each"
        )
    _check_ids("query", query_ids, similarity.shape[0])
    _check_ids("gallery", gallery_ids, similarity.shape[1])
    if bool(similarity.amax().isnan()):  # one NaN makes the largest NaN, in a single pass
        raise ValueError(f"{int(similarity.isnan().sum())} similarities are NaN; were the features finite?")
    return _score(
        lambda chosen: similarity[chosen],
        Positives(query_ids.to(similarity.device), gallery_ids.to(similarity.device)),
        ranks=ranks,
        chunk_size=None,
        element_size=similarity.element_size(),
        per_query=per_query,
    )


def _score(
    similarities: Callable[[Tensor], Tensor],
    positives: Positives,
    *,
    ranks: Sequence[int],
    chunk_size: int | None,
    element_size: int,
    per_query: bool,
) -> RetrievalMetrics:
    ranks = [whole_number("ranks", rank, minimum=1) for rank in ranks]
    if not ranks:
        raise ValueError("ranks is empty, expected at least one, such as (1, 5, 10)")
    chunk_size = optional_whole_number("chunk_size", chunk_size, minimum=1)
    queries = positives.ordered_queries()
    total, scored = len(positives.counts), len(queries)
    if scored == 0:
        query_range, gallery_range = (f"{int(ids.min())} to {int(ids.max())}" for ids in positives.ids)
        raise ValueError(
            f"no query has an item of its person in the gallery: query ids run from {query_range}, gallery ids from "
            f"{gallery_range}; pass person ids of the same annotation, not labels or row numbers"
        )
    if scored < total:
        warnings.warn(f"{total - scored} of {total} queries have no item of their person; left out", stacklevel=3)
    if chunk_size is None:
        chunk_size = _usual_chunk(element_size * len(positives.order), queries.device.type)
    first = torch.zeros(total, dtype=torch.int64, device=queries.device)
    precision = torch.full((total,), torch.nan, dtype=torch.float64, device=queries.device)
    penalty = precision.clone()
    for chosen in queries.split(chunk_size):
        found = rank_positives(similarities(chosen), positives, chosen)
        first[chosen], precision[chosen], penalty[chosen] = _query_scores(found, positives.counts[chosen])
    results = QueryResults(first.cpu(), precision.cpu(), penalty.cpu(), positives.counts.cpu())
    has_positive = results.num_positives > 0
    best = results.first_rank[has_positive]
    return RetrievalMetrics(
        rank={int(k): int((best <= k).sum()) / scored for k in ranks},
        mAP=float(results.average_precision[has_positive].mean()),
        mINP=float(results.inverse_negative_penalty[has_positive].mean()),
        num_queries=scored,
        num_without_positive=total - scored,
        queries=results if per_query else None,
        others={name: _computed(name, metric.compute, results) for name, metric in METRICS.items() if metric.compute},
    )


def _computed(name: str, compute: Callable[[QueryResults], float], results: QueryResults) -> float:
    """The value of a metric of one's own; its errors, and values that are not finite, name it."""
    try:
        value = float(compute(results))
    except Exception as error:
        raise ValueError(f"metric {name!r} of METRICS cannot be computed: {error!r}") from error
    if not math.isfinite(value):
        raise ValueError(f"metric {name!r} of METRICS is {value}; let its compute return a finite number")
    return value


def _usual_chunk(row_bytes: int, device: str) -> int:
    """Queries at a time: on a GPU as many as fit, on a processor few whose similarities stay in its cache."""
    fitting = max(1, _CHUNK_BYTES.get(device, 2**25) // row_bytes)
    return fitting if device == "cuda" else min(fitting, max(_CHUNK_QUERIES, CACHED_BYTES // row_bytes))


def _query_scores(ranks: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First rank, average precision and inverse negative penalty of each query, from (Q, M) ascending ranks."""
    hits = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    precision = (hits / ranks.double()).masked_fill_(ranks == UNUSED, 0.0)
    last = ranks.gather(1, (counts - 1)[:, None]).squeeze(1)
    return ranks[:, 0], precision.sum(dim=1) / counts, counts / last.double()


def scaled(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features times a power of two each, which loses nothing and keeps products finite, and their lengths."""
    exponents = torch.frexp(features.abs().amax(dim=1, keepdim=True)).exponent
    half = exponents // 2  # in two steps, as the power of two that takes the smallest numbers to 1 is beyond float32
    near_one = torch.ldexp(torch.ldexp(features, -half), half - exponents)
    lengths = near_one.square().sum(dim=1).sqrt_()
    return near_one, lengths.masked_fill_(lengths == 0, 1.0)


def as_tensor(values: Array, name: str) -> Tensor:
    """A tensor of numpy's array, or of a list of numbers; `name` is what an error calls it.

    Raises:
        TypeError: It holds something else, such as text.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise TypeError(f"{name} is not an array of numbers ({error})") from error
    if array.dtype.kind not in "biufc":
        hint = "; give each person a number" if name.endswith("ids") else ""
        raise TypeError(f"{name} is an array of {array.dtype}, expected numbers{hint}")
    # torch supports few operations on unsigned integers, and only the machine's byte order.
    native = np.dtype(np.int64) if array.dtype.kind == "u" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W"]))


def check_retrieval_input(
    query_features: Array, gallery_features: Array, query_ids: Array, gallery_ids: Array
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features and ids as tensors, or refuse what does not fit together.

    Raises:
        ValueError: Shapes or kinds do not fit, there is no item, or features are not finite.
    """
    query_features = as_tensor(query_features, "query_features")
    gallery_features = as_tensor(gallery_features, "gallery_features")
    query_ids, gallery_ids = as_tensor(query_ids, "query_ids"), as_tensor(gallery_ids, "gallery_ids")
    _check_features("query", query_features, query_ids)
    _check_features("gallery", gallery_features, gallery_ids)
    if query_features.shape[1] != gallery_features.shape[1]:
        raise ValueError(
            f"query_features have {query_features.shape[1]} dimensions and gallery_features "
            f"{gallery_features.shape[1]}; both must come from the same model"
        )
    return query_features, gallery_features, query_ids, gallery_ids


def _check_features(name: str, features: Tensor, ids: Tensor) -> None:
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        raise ValueError(
            f"{name}_features have shape {tuple(features.shape)} and dtype {features.dtype}, expected floating "
            "point (items, dim) with at least one item"
        )
    _check_ids(name, ids, len(features))
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite().all(dim=1)).sum())
        raise NotFiniteError(f"{bad} of {len(features)} {name}_features hold NaN or infinity; did training diverge?")


def _check_ids(name: str, ids: Tensor, count: int) -> None:
    if ids.shape != (count,) or ids.is_floating_point() or ids.dtype == torch.bool or ids.is_complex():
        raise ValueError(
            f"{name}_ids have shape {tuple(ids.shape)} and dtype {ids.dtype}, expected integers ({count},)"
        )
