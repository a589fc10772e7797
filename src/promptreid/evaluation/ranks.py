"""Ranks of right items, by counting instead of sorting."""

import itertools

import torch
from torch import Tensor

# Similarities that a processor compares at a time: they and the outcome stay in its cache.
CACHED_BYTES = 5 * 2**20
# From here on, counting once for each right item costs more than sorting the row once.
_MANY = 512
# Counts are summed in float32, which vector units add fastest and which holds integers exactly up to here.
_EXACT_IN_FLOAT32 = 2**24
UNUSED = torch.iinfo(torch.int64).max


class Positives:
    """Which gallery items are right for each query, from their persons, (Q,) and (G,).

    Attributes:
        order: Gallery indices grouped by person; within a person in the gallery's order.
        starts: Where each query's person begins in `order`; equal for queries of one person.
        counts: How many right items each query has.
        ids: The persons of the queries and of the gallery.
    """

    def __init__(self, query_ids: Tensor, gallery_ids: Tensor) -> None:
        self.ids: tuple[Tensor, Tensor] = query_ids, gallery_ids
        grouped, order = gallery_ids.sort(stable=True)
        self.order: Tensor = order
        self.starts: Tensor = torch.searchsorted(grouped, query_ids.contiguous())
        ends = torch.searchsorted(grouped, query_ids.contiguous(), right=True)
        self.counts: Tensor = ends - self.starts

    def ordered_queries(self) -> Tensor:
        """Indices of the queries that have a right item: most of them first, then by their first right item.

        In this order `rank_positives` has least to do: the queries that still have a right item to be counted are
        always the first, and right items of neighbours are close to each other in galleries sorted by person.
        """
        queries = (self.counts > 0).nonzero().flatten()
        queries = queries[self.order[self.starts[queries]].argsort(stable=True)]
        return queries[self.counts[queries].argsort(descending=True, stable=True)]

    def columns(self, queries: Tensor) -> Tensor:
        """Right items of some queries, in the gallery's order: (Q, M), the last repeated where a query has fewer."""
        counts = self.counts[queries, None]
        offsets = torch.arange(int(counts.max()), device=queries.device).expand(len(queries), -1)
        return self.order[self.starts[queries, None] + torch.minimum(offsets, counts - 1)]


def rank_positives(similarity: Tensor, positives: Positives, queries: Tensor) -> Tensor:
    """Rank of every right item, ascending and 1-based, ties as in `compute_metrics`.

    Args:
        similarity: One row a query.
        positives: The right items of all queries.
        queries: Which query each row is, in the order of `Positives.ordered_queries`.

    Shape:
        - similarity: (Q, G) floating point; queries: (Q,) int64
        - returns: (Q, M) int64, M the most right items a query has; entries beyond a query's own hold `UNUSED`
    """
    counts = positives.counts[queries]
    ranks = torch.full((len(queries), int(counts[0])), UNUSED, dtype=torch.int64, device=similarity.device)
    for rows in _blocks(similarity, many=int((counts > _MANY).sum())):
        columns = positives.columns(queries[rows])
        rank = _rank_by_sorting if columns.shape[1] > _MANY else _rank_by_counting
        found = rank(similarity[rows], columns, counts[rows])
        unused = torch.arange(columns.shape[1], device=found.device) >= counts[rows, None]
        ranks[rows, : columns.shape[1]] = found.masked_fill_(unused, UNUSED)
    return ranks.sort(dim=1).values


def _blocks(similarity: Tensor, *, many: int) -> list[slice]:
    """Rows to be ranked at a time; the first `many` apart from the others."""
    total = len(similarity)
    at_once = total
    if similarity.device.type == "cpu":
        at_once = max(1, CACHED_BYTES // (similarity.element_size() * similarity.shape[1]))
    ends = sorted({*range(0, many, at_once), *range(many, total, at_once), total})
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


def _rank_by_counting(similarity: Tensor, columns: Tensor, counts: Tensor) -> Tensor:
    """Ranks of `columns` (Q, M) in each row, of which the first `counts` are wanted; `counts` never grow."""
    dtype = similarity.dtype if similarity.dtype == torch.float64 else torch.float32
    dtype = dtype if similarity.shape[1] < _EXACT_IN_FLOAT32 else torch.float64
    above = torch.empty_like(similarity, dtype=dtype)
    ranks = torch.empty(columns.shape, dtype=dtype, device=similarity.device)
    scores = similarity.gather(1, columns)
    wanted = (counts[:, None] > torch.arange(columns.shape[1], device=counts.device)).sum(dim=0)
    for column, rows in enumerate(wanted.tolist()):
        _mark_above(similarity[:rows], scores[:rows, column, None], columns[:rows, column], above[:rows])
        torch.sum(above[:rows], dim=1, out=ranks[:rows, column])
    return ranks.long()


def _mark_above(similarity: Tensor, scores: Tensor, columns: Tensor, above: Tensor) -> None:
    """Set `above` to one where an item ranks above that of `columns`, or is it, and to zero elsewhere.

    An earlier item of the same score ranks higher and a later one does not; the item counts itself as the one of its
    rank. Which is which differs from row to row only between the first and the last of `columns`.
    """
    first, last = (int(end) for end in torch.aminmax(columns))
    torch.ge(similarity[:, : first + 1], scores, out=above[:, : first + 1])
    torch.gt(similarity[:, last + 1 :], scores, out=above[:, last + 1 :])
    if last > first:
        between = slice(first + 1, last + 1)
        torch.gt(similarity[:, between], scores, out=above[:, between])
        tied = torch.eq(similarity[:, between], scores, out=torch.empty_like(above[:, between]))
        positions = torch.arange(first + 1, last + 1, dtype=above.dtype, device=columns.device)
        earlier = torch.le(positions, columns[:, None].to(above.dtype), out=torch.empty_like(tied))
        above[:, between].addcmul_(tied, earlier)


def _rank_by_sorting(similarity: Tensor, columns: Tensor, counts: Tensor) -> Tensor:
    """The same as `_rank_by_counting`, by sorting each row once."""
    order = similarity.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(1, similarity.shape[1] + 1, device=similarity.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).gather(1, columns)
