"""What finds the images of a gallery: the protocol of an index, and the exact one."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.retrieval.table import ImageTable, Where

# Bytes of scores, and of features widened to float32, that are held at a time.
_SCORE_BYTES = 64 * 2**20

_BLOCK_BYTES = 4 * 2**20

# How far a score of float16 arithmetic may be from the exact one, for features and a query no longer than one: half a
# unit in the last place for the query and for the score (2 ** -11 each), and as much again for sums in float32.
_ERROR = 2.0**-9

# More rows than this share of the gallery are not worth being picked out.
_CANDIDATE_SHARE = 32


class Index(Protocol):
    """What finds the images of a gallery; another engine, such as a database, needs these three methods.

    The gallery keeps the images, their features and their files. It tells its index of every change, and asks it at
    every search. An index is empty when it is given to a gallery.
    """

    def add(self, images: ImageTable, features: Tensor) -> None:
        """Take images in.

        Args:
            images: Numbers (`ids`), which no image in the index has, paths and metadata.
            features: Their features, of unit length.

        Shape:
            - features: (images, E) float32 or float16
        """
        ...

    def remove(self, ids: Sequence[int]) -> None:
        """Forget the images of these numbers, all of which are in the index."""
        ...

    def search(self, queries: Tensor, k: int, *, where: Where | None = None) -> Sequence[Sequence[tuple[int, float]]]:
        """Find the images most similar to each query.

        Args:
            queries: What is looked for, of unit length.
            k: How many at most for each query.
            where: Search only images whose metadata match (`promptreid.retrieval.table.matcher`).

        Shape:
            - queries: (Q, E) float32, on the CPU

        Returns:
            For each query, numbers of images and their cosine similarities, the best first.

        Raises:
            ValueError: The index cannot apply `where`. That nothing passes it is no error here.
        """
        ...


class ExactIndex:
    """Compares each query with every feature.

    Attributes:
        images: What it holds.
        features: Their features.

    Shape:
        - features: (G, E) float32 or float16, on any device
    """

    def __init__(self, images: ImageTable, features: Tensor) -> None:
        self.images: ImageTable = images
        self.features: Tensor = features

    def add(self, images: ImageTable, features: Tensor) -> None:
        """Take images in, below those it has."""
        self.images = self.images.joined(images)
        self.features = torch.cat([self.features, features.to(self.features.device, self.features.dtype)])

    def remove(self, ids: Sequence[int]) -> None:
        """Forget images; the others keep their order."""
        kept = (~torch.isin(self.images.ids, torch.tensor(ids, dtype=torch.int64))).nonzero().flatten()
        self.images = self.images.select(kept.tolist())
        self.features = self.features[kept.to(self.features.device)]

    def search(self, queries: Tensor, k: int, *, where: Where | None = None) -> list[list[tuple[int, float]]]:
        """Find the best; of equal scores the earlier image comes first."""
        rows = self.images.rows_where(where)
        scores, best = top_scores(self.features, queries, k, rows=rows, unit_length=True)
        ids = self.images.ids[best]
        return [list(zip(*found, strict=True)) for found in zip(ids.tolist(), scores.tolist(), strict=True)]


def top_scores(
    features: Tensor, queries: Tensor, k: int, *, rows: Tensor | None = None, unit_length: bool = False
) -> tuple[Tensor, Tensor]:
    """Scores and indices of the `k` features most similar to each query, the best first.

    Every feature is looked at. Of equal scores the earlier feature comes first. Scores are float32 whatever the
    features are kept in, and at most 64 MB of them (one row at least) are held at a time.

    Args:
        features: The gallery's.
        queries: What is looked for.
        k: How many; less than that come back if there are fewer.
        rows: Indices to search among; `None` for all.
        unit_length: No feature and no query is longer than one. A single query then searches float16 features on the
            processor faster: in float16 first, and exactly among those that rounding leaves in question.

    Shape:
        - features: (G, E) float32 or float16; queries: (Q, E) float32; rows: (R,) int64
        - returns: (Q, K) float32 and (Q, K) int64, K = min(k, G) or min(k, R)

    Example:
        >>> import torch
        >>> top_scores(torch.eye(3), torch.tensor([[0.0, 1.0, 0.5]]), 2)[1]
        tensor([[1, 2]])
    """
    rows = None if rows is None else rows.to(features.device)
    queries = queries.to(features.device)
    if unit_length and len(queries) == 1 and features.dtype == torch.float16 and features.device.type == "cpu":
        rows = _candidates(features, queries[0], k, rows)
        if rows is not None and len(rows) <= len(features) // _CANDIDATE_SHARE:
            values, indices = _best(_scores(features[rows], queries), k)
            return values, rows[indices]
    found: list[tuple[Tensor, Tensor]] = []
    for part in queries.split(max(1, _SCORE_BYTES // (4 * max(1, len(features))))):
        scores = _scores(features, part)
        values, indices = _best(scores if rows is None else scores[:, rows], k)
        found.append((values, indices if rows is None else rows[indices]))
    values, indices = zip(*found, strict=True)
    return torch.cat(values).cpu(), torch.cat(indices).cpu()


def _candidates(features: Tensor, query: Tensor, k: int, rows: Tensor | None) -> Tensor | None:
    """Rows among which the best `k` are sure to be, ascending; found by float16 arithmetic."""
    scores = _finite(torch.mv(features, query.half()).float()[None])[0]
    scores = scores if rows is None else scores[rows]
    if k >= len(scores):
        return rows
    lowest = scores.topk(k).values[-1]
    positions = (scores >= lowest - 2 * _ERROR).nonzero().flatten()
    return positions if rows is None else rows[positions]


def _scores(features: Tensor, queries: Tensor) -> Tensor:
    """(Q, G) float32."""
    if features.dtype == torch.float32:
        return _finite(_product(features, queries))
    size = len(features) if features.is_cuda else max(1, _BLOCK_BYTES // (4 * features.shape[1]))
    scores = torch.empty(len(queries), len(features), device=features.device)
    widened = torch.empty(min(size, len(features)), features.shape[1], device=features.device)
    for begin in range(0, len(features), size):
        block = features[begin : begin + size]
        scores[:, begin : begin + size] = _product(widened[: len(block)].copy_(block), queries)
    return _finite(scores)


def _finite(scores: Tensor) -> Tensor:
    """Return (Q, G) scores, or refuse features of which NaN or infinity would be lost, or found first, unsaid."""
    if not bool(scores.sum().isfinite()) and len(bad := (~scores.isfinite().all(dim=0)).nonzero().flatten()):
        raise CheckpointError(
            f"{len(bad)} of {scores.shape[1]} features hold NaN or infinity, such as number {int(bad[0])}; the gallery "
            "is damaged: build it again"
        )
    return scores


def _product(features: Tensor, queries: Tensor) -> Tensor:
    # MKL's matrix-vector product reads memory at a third of its speed on some processors, and so does a product of
    # few queries by many features; that of many features by two queries reads them once at full speed.
    two = queries if len(queries) > 1 else queries.repeat(2, 1)
    return (features @ two.T).T[: len(queries)].contiguous()


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    k = min(k, scores.shape[1])
    if k == 0:
        return scores[:, :0], torch.empty(len(scores), 0, dtype=torch.int64, device=scores.device)
    values, indices = scores.topk(k, dim=1)
    # topk takes any of the items that tie at the end, and puts ties in any order.
    tied = (scores >= values[:, -1:]).sum(dim=1) > k
    for row in tied.nonzero().flatten().tolist():
        candidates = (scores[row] >= values[row, -1]).nonzero().flatten()
        order = scores[row, candidates].sort(descending=True, stable=True).indices[:k]
        indices[row] = candidates[order]
    indices = indices.sort(dim=1).values
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)
