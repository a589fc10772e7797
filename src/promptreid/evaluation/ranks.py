"""Ranks of right items, by counting instead of sorting."""

import torch
from torch import Tensor

# Similarities that are compared at a time: they and the outcome stay in the processor's cache.
_CACHED_BYTES = 2**20
# From here on, counting once for each right item costs more than sorting the row once.
_MANY = 512
# Counts are summed in float32, which vector units add fastest and which holds integers exactly up to here.
_EXACT_IN_FLOAT32 = 2**24
UNUSED = torch.iinfo(torch.int64).max


class Positives:
    """Which gallery items are right for each query.

    Args:
        query_ids: Person of each query.
        gallery_ids: Person of each gallery item.

    Attributes:
        order: Gallery indices grouped by person; within a person in the gallery's order.
        starts: Where each query's person begins in `order`; equal for queries of one person.
        counts: How many right items each query has.

    Shape:
        - query_ids: (Q,), gallery_ids: (G,) integer
    """

    def __init__(self, query_ids: Tensor, gallery_ids: Tensor) -> None:
        grouped, order = gallery_ids.sort(stable=True)
        self.order: Tensor = order
        self.starts: Tensor = torch.searchsorted(grouped, query_ids.contiguous())
        ends = torch.searchsorted(grouped, query_ids.contiguous(), right=True)
        self.counts: Tensor = ends - self.starts

    def grouped_queries(self) -> Tensor:
        """Indices of the queries that have a right item, those of one person next to each other."""
        queries = (self.counts > 0).nonzero().flatten()
        return queries[self.starts[queries].argsort(stable=True)]


def rank_positives(similarity: Tensor, positives: Positives, queries: Tensor) -> Tensor:
    """Rank of every right item, ascending and 1-based.

    A rank is one plus the number of gallery items scored above; of equal scores the earlier gallery item counts as
    higher, as a stable descending sort has it.

    Args:
        similarity: One row a query.
        positives: The right items of all queries.
        queries: Which query each row is, those of one person next to each other.

    Shape:
        - similarity: (Q, G) floating point; queries: (Q,) int64
        - returns: (Q, M) int64, M the most right items a query has; places beyond a query's own hold `UNUSED`
    """
    most = int(positives.counts[queries].max())
    ranks = torch.full((len(queries), most), UNUSED, dtype=torch.int64, device=similarity.device)
    starts, rows = positives.starts[queries].unique_consecutive(return_counts=True)
    begin = 0
    for start, count in zip(starts.tolist(), rows.tolist(), strict=True):
        block = slice(begin, begin + count)
        own = int(positives.counts[queries[begin]])
        columns = positives.order[start : start + own]
        rank = _rank_by_sorting if own > _MANY else _rank_by_counting
        ranks[block, :own] = rank(similarity[block], columns).to(ranks.dtype).sort(dim=1).values
        begin += count
    return ranks


def _rank_by_counting(similarity: Tensor, columns: Tensor) -> Tensor:
    """Ranks of `columns` in each row: (Q, M)."""
    size = similarity.shape[1]
    dtype = torch.float32 if size < _EXACT_IN_FLOAT32 else torch.float64
    at_once = len(similarity)
    if similarity.device.type == "cpu":
        at_once = max(1, _CACHED_BYTES // (similarity.element_size() * size))
    above = torch.empty(min(at_once, len(similarity)), size, dtype=dtype, device=similarity.device)
    ranks = torch.empty(len(similarity), len(columns), dtype=dtype, device=similarity.device)
    places = columns.tolist()
    for begin in range(0, len(similarity), at_once):
        rows = similarity[begin : begin + at_once]
        counted = above[: len(rows)]
        for place, column in enumerate(places):
            score = rows[:, column, None]
            # An earlier item of the same score ranks higher, a later one does not; the item counts itself as the one.
            torch.ge(rows[:, : column + 1], score, out=counted[:, : column + 1])
            torch.gt(rows[:, column + 1 :], score, out=counted[:, column + 1 :])
            torch.sum(counted, dim=1, out=ranks[begin : begin + at_once, place])
    return ranks


def _rank_by_sorting(similarity: Tensor, columns: Tensor) -> Tensor:
    """The same, by sorting each row once."""
    order = similarity.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(1, similarity.shape[1] + 1, device=similarity.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)[:, columns]
