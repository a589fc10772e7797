"""Exact retrieval metrics without sorting."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes that the similarities of one chunk of queries may take.
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RetrievalMetrics:
    """Scores of one search direction, as fractions in [0, 1].

    Attributes:
        rank: k to Rank-k, the share of queries with a right item among the first k (CMC).
        mAP: Mean average precision.
        mINP: Mean inverse negative penalty: right items divided by the rank of the last of them.
        num_queries: Queries that were scored.
        num_without_positive: Queries left out because nothing in the gallery is theirs.
    """

    rank: dict[int, float] = field(hash=False)
    mAP: float
    mINP: float
    num_queries: int
    num_without_positive: int

    @property
    def rank1(self) -> float:
        """Rank-1, if it was asked for."""
        return self.rank[1]

    def as_dict(self) -> dict[str, float]:
        """`{"rank1": …, "rank5": …, …, "mAP": …, "mINP": …}`."""
        return {**{f"rank{k}": value for k, value in self.rank.items()}, "mAP": self.mAP, "mINP": self.mINP}


def compute_metrics(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    chunk_size: int | None = None,
    device: str | torch.device | None = None,
) -> RetrievalMetrics:
    """Rank a gallery for every query by cosine similarity and score the ranking.

    Nothing is sorted: a right item's rank is one plus the number of gallery items scored above it, where of two equal
    scores the earlier gallery item counts as higher, as a stable descending sort has it.

    Args:
        query_features: Not normalised or normalised, no matter.
        gallery_features: The same.
        query_ids: Person of each query.
        gallery_ids: Person of each gallery item.
        ranks: Which Rank-k to compute.
        chunk_size: Queries at a time; `None` keeps a chunk's similarities within 64 MB.
        device: Where to compute; `None` for where the query features are.

    Shape:
        - query_features: (Q, E), gallery_features: (G, E), floating point
        - query_ids: (Q,), gallery_ids: (G,) integer

    Returns:
        The metrics, as fractions.

    Raises:
        ValueError: Shapes do not fit, the gallery or the queries are empty, features are not finite, a rank is not
            positive, or no query has a right item.

    Example:
        >>> import torch
        >>> ids = torch.tensor([0, 1])
        >>> compute_metrics(torch.eye(2), torch.eye(2), ids, ids).as_dict()
        {'rank1': 1.0, 'rank5': 1.0, 'rank10': 1.0, 'mAP': 1.0, 'mINP': 1.0}

    Source:
        CMC and mAP: Zheng et al. 2015 (Market-1501). mINP: Ye et al. 2021, arXiv 2001.04193, equation 4.
    """
    _check(query_features, gallery_features, query_ids, gallery_ids, ranks, chunk_size)
    place = query_features.device if device is None else torch.device(device)
    queries, gallery = _unit(query_features.to(place)), _unit(gallery_features.to(place))
    query_ids, gallery_ids = query_ids.to(place), gallery_ids.to(place)
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_BYTES // (4 * queries.element_size() * len(gallery)))
    order, starts, counts = _positives(query_ids, gallery_ids)
    scored = counts > 0
    left_out = int((~scored).sum())
    if left_out == len(query_ids):
        raise ValueError("no query has an item of its person in the gallery; do the ids belong together?")
    if left_out:
        warnings.warn(f"{left_out} of {len(query_ids)} queries have no item of their person; left out", stacklevel=2)
    wanted = torch.tensor(list(ranks), device=place)
    totals = torch.zeros(len(wanted) + 2, dtype=torch.float64, device=place)
    for chosen in scored.nonzero().flatten().split(chunk_size):
        similarity = queries[chosen] @ gallery.T
        positions, valid = _rank_positives(similarity, order, starts[chosen], counts[chosen])
        totals += _sums(positions, valid, wanted)
    means: list[float] = (totals / int(scored.sum())).tolist()
    return RetrievalMetrics(
        rank=dict(zip((int(k) for k in ranks), means, strict=False)),
        mAP=means[-2],
        mINP=means[-1],
        num_queries=int(scored.sum()),
        num_without_positive=left_out,
    )


def _positives(query_ids: Tensor, gallery_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gallery indices grouped by person, and for each query where its group starts and how long it is."""
    grouped, order = gallery_ids.sort(stable=True)
    starts = torch.searchsorted(grouped, query_ids)
    ends = torch.searchsorted(grouped, query_ids, right=True)
    return order, starts, ends - starts


def _rank_positives(similarity: Tensor, order: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of every right item, ascending, 1-based: (Q, M) int64, and which of the M places are used."""
    most = int(counts.max())
    places = torch.arange(most, device=similarity.device)
    valid = places < counts[:, None]
    columns = order[(starts[:, None] + places).clamp(max=len(order) - 1)]
    scores = similarity.gather(1, columns)
    indices = torch.arange(similarity.shape[1], device=similarity.device)
    positions = torch.empty_like(columns)
    for place in range(most):
        score, column = scores[:, place, None], columns[:, place, None]
        above = (similarity > score).sum(dim=1)
        tied = similarity == score
        # Ties are rare; looking at where they stand is needed only where a score occurs more than once.
        before = (tied & (indices < column)).sum(dim=1) if bool((tied.sum(dim=1) > 1).any()) else 0
        positions[:, place] = above + before + 1
    unused = torch.iinfo(positions.dtype).max
    return positions.masked_fill(~valid, unused).sort(dim=1).values, valid


def _sums(positions: Tensor, valid: Tensor, ranks: Tensor) -> Tensor:
    """Over the queries of a chunk, the sums of each Rank-k, of AP and of INP: float64."""
    hits = torch.arange(1, positions.shape[1] + 1, device=positions.device)
    precision = (hits / positions.double()).masked_fill(~valid, 0.0)
    counts = valid.sum(dim=1)
    average_precision = precision.sum(dim=1) / counts
    last = positions.gather(1, (counts - 1)[:, None]).squeeze(1)
    found = (positions[:, :1] <= ranks).double().sum(dim=0)
    return torch.cat([found, torch.stack([average_precision.sum(), (counts / last.double()).sum()])])


def _unit(features: Tensor) -> Tensor:
    features = features if features.dtype == torch.float64 else features.float()
    return F.normalize(features, dim=-1)


def _check(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    ranks: Sequence[int],
    chunk_size: int | None,
) -> None:
    for name, features, ids in (("query", query_features, query_ids), ("gallery", gallery_features, gallery_ids)):
        if features.ndim != 2 or len(features) == 0 or not features.is_floating_point():
            raise ValueError(
                f"{name}_features have shape {tuple(features.shape)} and dtype {features.dtype}, expected floating "
                "point (items, dim) with at least one item"
            )
        if ids.shape != features.shape[:1] or ids.is_floating_point():
            raise ValueError(
                f"{name}_ids have shape {tuple(ids.shape)} and dtype {ids.dtype}, expected integers ({len(features)},)"
            )
        if not bool(features.isfinite().all()):
            bad = int((~features.isfinite().all(dim=1)).sum())
            raise ValueError(f"{bad} of {len(features)} {name}_features hold NaN or infinity; did training diverge?")
    if query_features.shape[1] != gallery_features.shape[1]:
        raise ValueError(
            f"query_features have {query_features.shape[1]} dimensions and gallery_features "
            f"{gallery_features.shape[1]}; both must come from the same model"
        )
    _check_positive("ranks", list(ranks) or [0])
    _check_positive("chunk_size", [1 if chunk_size is None else chunk_size])


def _check_positive(name: str, values: list[Any]) -> None:
    if any(value < 1 for value in values):
        raise ValueError(f"{name} is {values}, expected positive integers")
