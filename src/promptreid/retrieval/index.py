"""Indexes, which find the images of a gallery: the protocol, and the exact index."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.retrieval.filters import Where
from promptreid.retrieval.segment_files import Segment, fewer, most_rows
from promptreid.retrieval.table import Hit, ImageTable, path_forms

# Bytes of scores, and of features widened to float32, that are held at a time.
_SCORE_BYTES = 64 * 2**20

_BLOCK_BYTES = 4 * 2**20

# How far a score of float16 arithmetic may be from the exact one, for features and a query no longer than one: half a
# unit in the last place for the query and for the score (2 ** -11 each), and as much again for sums in float32.
_ERROR = 2.0**-9

# More rows than this share of the gallery are not worth being picked out.
_CANDIDATE_SHARE = 32

# bfloat16 rounds a number by at most this share of it; and more than what sums in float32 add to it. So many queries at
# once are screened in it where the processor can, and what may be among the best is scored exactly once it is so many.
_ROUNDING = 2.0**-8
_SUMS = 2.0**-10
_SCREENED_QUERIES = 8
_SCREENED_ROWS = 4096
_EXACT_ROWS = 1024
_NOT_FINITE = -128  # the bits of minus infinity in bfloat16, as a whole number; those of negative NaNs are above it


class Index(Protocol):
    """Finds the images of a gallery; another engine, such as a database, needs these three methods.

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
            where: Search only images whose metadata match. An engine with its own filters translates
                `promptreid.retrieval.filters.conditions`: values, ranges and prefixes; `matcher` is the filter as a
                function.

        Shape:
            - queries: (Q, E) float32, on the CPU

        Returns:
            For each query, numbers of images and their cosine similarities, the best first.

        Raises:
            ValueError: The index cannot apply `where`. A filter that nothing passes is not an error here.
        """
        ...


class ExactIndex:
    """Compares each query with every feature.

    Features are in segments, one below the other: adding a few images makes a small segment, and small ones are
    joined every few additions, so that many additions take time in proportion to what is added.

    Attributes:
        segments: The images and features; replaced by every change.

    Shape:
        - features: (G, E) float32 or float16, on any device
    """

    def __init__(self, images: ImageTable, features: Tensor) -> None:
        self.segments: tuple[Segment, ...] = (Segment(images, features),) if len(images) else ()
        self._empty = features[:0].clone()
        self._joined: Segment | None = None

    def with_segments(self, segments: Sequence[Segment]) -> "ExactIndex":
        """An index of other segments of the same kind."""
        other = ExactIndex(ImageTable.of([], first_id=0), self._empty)
        other.segments = tuple(segments)
        return other

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    @property
    def dimensions(self) -> int:
        """The feature dimension."""
        return self._empty.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the features."""
        return self._empty.dtype

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self._empty.device

    @property
    def images(self) -> ImageTable:
        """All images in one table."""
        return self._all().images

    @property
    def features(self) -> Tensor:
        """All features in one tensor."""
        return self._all().features

    def _all(self) -> Segment:
        """Everything in one segment, made when it is first asked for."""
        if self._joined is None:
            whole = Segment.joined(self.segments) if self.segments else Segment(ImageTable.joined([]), self._empty)
            self._joined = whole
            if len(self.segments) > 1:  # the features are held once: the segments' are now parts of the joined ones
                parts = whole.features.split([len(segment) for segment in self.segments])
                pairs = zip(self.segments, parts, strict=True)
                self.segments = tuple(Segment(one.images, part, one.files) for one, part in pairs)
        return self._joined

    def to(self, device: str | torch.device) -> "ExactIndex":
        """An index that compares on a device."""
        other = ExactIndex(ImageTable.of([], first_id=0), self._empty.to(device))
        other.segments = tuple(Segment(one.images, one.features.to(device), one.files) for one in self.segments)
        return other

    def add(self, images: ImageTable, features: Tensor) -> None:
        """Take images in, below those it has."""
        added = Segment(images, features.to(self.device, self.dtype))
        self.segments, self._joined = fewer([*self.segments, added]), None

    def remove(self, ids: Sequence[int]) -> None:
        """Forget images; the others keep their order."""
        kept: list[Segment] = []
        for segment in self.segments:
            gone = [row for row in segment.images.rows_of(ids) if row >= 0]
            if gone:
                stays = torch.ones(len(segment), dtype=torch.bool)
                stays[gone] = False
                segment = segment.select(stays.nonzero().flatten())
            if len(segment):
                kept.append(segment)
        self.segments, self._joined = tuple(kept), None

    def compact(self) -> None:
        """Join segments until they are as large as one may be."""
        most = most_rows(self._empty)
        groups: list[list[Segment]] = []
        for segment in self.segments:
            if groups and sum(map(len, groups[-1])) + len(segment) <= most:
                groups[-1].append(segment)
            else:
                groups.append([segment])
        self.segments, self._joined = tuple(map(Segment.joined, groups)), None

    def pieces(self) -> Iterator[Segment]:
        """The segments; one that is larger than one may be is cut."""
        most = most_rows(self._empty)
        for segment in self.segments:
            if len(segment) <= most:
                yield segment
                continue
            for begin in range(0, len(segment), most):
                end = min(begin + most, len(segment))
                yield Segment(segment.images.select(range(begin, end)), segment.features[begin:end])

    def ids_of(self, paths: Sequence[str]) -> list[int]:
        """The number of each image by its path; -1 where there is none."""
        found, forms = [-1] * len(paths), path_forms(paths)
        for segment in self.segments:
            for position, row in enumerate(segment.images.rows_of_paths(paths, forms)):
                if row >= 0:
                    found[position] = int(segment.images.ids[row])
        return found

    def chosen(self, ids: Sequence[int]) -> ImageTable:
        """The table of the images of these numbers that there are, in the gallery's order."""
        tables: list[ImageTable] = []
        for segment in self.segments:
            if rows := sorted({row for row in segment.images.rows_of(ids) if row >= 0}):
                tables.append(segment.images.select(rows))
        return ImageTable.joined(tables)

    def hits(self, found: Sequence[Sequence[tuple[int, float]]], lowest: float) -> list[list[Hit]]:
        """Each query's numbers and scores as images; without scores below `lowest` and images removed since."""
        pairs = [pair for one in found for pair in one]
        numbers = [number for number, _ in pairs]
        hits: list[Hit | None] = [None] * len(pairs)
        offset = 0
        for segment in self.segments:
            for position, row in enumerate(segment.images.rows_of(numbers)):
                score = pairs[position][1]
                if row >= 0 and score >= lowest:
                    hits[position] = segment.images.hit(row, score, index=offset + row)
            offset += len(segment)
        rest = iter(hits)
        return [[hit for hit in islice(rest, len(one)) if hit is not None] for one in found]

    def search(self, queries: Tensor, k: int, *, where: Where | None = None) -> list[list[tuple[int, float]]]:
        """Find the best; of equal scores the earlier image comes first. Features that do not pass are not read."""
        best = _Best(queries.to(self.device), k)
        screen = _Screen.of(best.queries)
        offset = 0
        for segment in self.segments:
            rows = None if where is None else segment.images.rows_where(where)
            if rows is None or len(rows):
                _look_through(best, segment.features, rows, offset=offset, unit_length=True, screen=screen)
            offset += len(segment)
        scores, positions = best.result()
        return [
            list(zip(numbers, found, strict=True))
            for numbers, found in zip(self._ids_at(positions).tolist(), scores.tolist(), strict=True)
        ]

    def _ids_at(self, positions: Tensor) -> Tensor:
        """The numbers of the images at positions, which are counted over all segments."""
        ids, offset = torch.empty_like(positions), 0
        for segment in self.segments:
            inside = (positions >= offset) & (positions < offset + len(segment))
            ids[inside] = segment.images.ids[positions[inside] - offset]
            offset += len(segment)
        return ids


def top_scores(
    features: Tensor, queries: Tensor, k: int, *, rows: Tensor | None = None, unit_length: bool = False
) -> tuple[Tensor, Tensor]:
    """Scores and indices of the `k` features most similar to each query, the best first.

    Every feature is looked at. Of equal scores the earlier feature comes first. Scores are float32 for any
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
    best = _Best(queries.to(features.device), k)
    screen = _Screen.of(best.queries) if unit_length else None
    _look_through(best, features, rows, unit_length=unit_length, screen=screen)
    values, indices = best.result()
    return values.cpu(), indices


class _Best:
    """The best scores so far of each query; of equal ones the earlier."""

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries: Tensor = queries
        self.k: int = k
        self._values = torch.empty(len(queries), 0, device=queries.device)
        self._positions = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def take(self, features: Tensor, positions: Tensor) -> None:
        """Score features (B, E) at positions (B,), which come after all before, and keep the best."""
        scores = _scores(features, self.queries)
        _check(scores[0], features, positions)
        if self.is_full():
            better = (scores > self._values[:, -1:]).any(dim=0).nonzero().flatten()
            if len(better) == 0:
                return
            scores, positions = scores[:, better], positions[better]
        values = torch.cat([self._values, scores], dim=1)
        found = torch.cat([self._positions, positions.expand(len(scores), -1)], dim=1)
        self._values, columns = _best(values, self.k)
        self._positions = found.gather(1, columns)

    def is_full(self) -> bool:
        """Whether there are `k` scores of each query."""
        return self._values.shape[1] >= self.k

    def lowest(self) -> Tensor:
        """(Q,) the worst score that each query keeps; below it nothing is taken."""
        return self._values[:, -1]

    def result(self) -> tuple[Tensor, Tensor]:
        """(Q, K) float32 and (Q, K) int64 on the CPU, the best first."""
        return self._values.cpu(), self._positions.cpu()


class _Screen:
    """Finds, by bfloat16 arithmetic in memory that is used again and again, what may be among the best."""

    def __init__(self, queries: Tensor) -> None:
        rounded = queries.bfloat16()
        self._queries = rounded.T
        # |q.x - q'.x'| <= |q - q'| |x| + |q'| |x - x'|, for features no longer than one. What a score is rounded to
        # adds nothing: the limit is rounded in the same way, and rounding keeps the order.
        self._error = (queries - rounded).norm(dim=1) + _ROUNDING * rounded.float().norm(dim=1) + _SUMS
        self.rows = max(1, min(_SCREENED_ROWS, _SCORE_BYTES // (4 * len(queries))))  # screened at a time
        self._wide = torch.empty(self.rows, queries.shape[1])
        self._rough = torch.empty(self.rows, queries.shape[1], dtype=torch.bfloat16)
        self._scores = torch.empty(self.rows, len(queries), dtype=torch.bfloat16)

    @classmethod
    def of(cls, queries: Tensor) -> "_Screen | None":
        """A screen where it is faster than to score everything exactly."""
        worth_it = len(queries) >= _SCREENED_QUERIES and queries.device.type == "cpu" and _has_bfloat16()
        return cls(queries) if worth_it else None

    def hopeful(self, features: Tensor, best: _Best) -> Tensor | None:
        """Which of the features (B, E) may be among the best; `None` if too many to pick them out."""
        count = len(features)
        rough = self._rough[:count]
        # float16 in two steps, each of which the processor does many at a time.
        rough.copy_(features if features.dtype == torch.float32 else self._wide[:count].copy_(features))
        scores = torch.mm(rough, self._queries, out=self._scores[:count])
        scores -= (best.lowest() - self._error).bfloat16()
        # Compared as integers, which is faster: the bits of numbers that are not negative are not negative, and of all
        # others those of minus infinity and of negative NaNs are the largest. They are chosen too, and refused when
        # they are scored exactly.
        chosen = (scores.view(torch.int16).amax(dim=1) >= _NOT_FINITE).nonzero().flatten()
        return chosen if len(chosen) <= count // 4 else None


def _look_through(
    best: _Best,
    features: Tensor,
    rows: Tensor | None,
    *,
    offset: int = 0,
    unit_length: bool,
    screen: _Screen | None,
) -> None:
    """Score features, or some rows of them, block by block, each block once for all queries."""
    queries = best.queries
    rows = None if rows is None else rows.to(features.device)
    if unit_length and len(queries) == 1 and features.dtype == torch.float16 and features.device.type == "cpu":
        candidates = _candidates(features, queries[0], best.k, rows, offset)
        rows = candidates if len(candidates) <= len(features) // _CANDIDATE_SHARE else rows
    elif rows is not None and len(rows) == len(features):
        rows = None
    size = _block_rows(features, len(queries)) if screen is None else screen.rows
    waiting: list[Tensor] = []  # positions in rows, or in features

    def take_waiting() -> None:
        if waiting:
            positions = torch.cat(waiting) if rows is None else rows[torch.cat(waiting)]
            best.take(features[positions], positions + offset)
            waiting.clear()

    for begin in range(0, len(features) if rows is None else len(rows), size):
        part = features[begin : begin + size] if rows is None else features[rows[begin : begin + size]]
        chosen = screen.hopeful(part, best) if screen is not None and best.is_full() else None
        if chosen is None:
            take_waiting()
            positions = torch.arange(begin, begin + len(part), device=features.device)
            best.take(part, (positions if rows is None else rows[positions]) + offset)
        elif len(chosen):
            if sum(map(len, waiting)) + len(chosen) > min(_EXACT_ROWS, size):
                take_waiting()
            waiting.append(chosen + begin)
    take_waiting()


def _block_rows(features: Tensor, queries: int) -> int:
    """How many features are scored at a time."""
    if features.is_cuda:
        return max(1, _SCORE_BYTES // (4 * queries))
    block = max(1, _BLOCK_BYTES // (4 * max(1, features.shape[1])))
    few = max(1, 8 // queries) if features.dtype == torch.float32 else 1  # more at a time where that takes no room
    return max(1, min(block * few, _SCORE_BYTES // (4 * queries)))


def _candidates(features: Tensor, query: Tensor, k: int, rows: Tensor | None, offset: int) -> Tensor:
    """Rows among which the best of these features are sure to be, ascending; found by float16 arithmetic."""
    chosen = features if rows is None else features[rows]
    scores = torch.mv(chosen, query.half()).float()
    _check(scores, chosen, rows, offset)
    lowest = scores.topk(k).values[-1] if k < len(scores) else scores.new_tensor(-torch.inf)
    positions = (scores >= lowest - 2 * _ERROR).nonzero().flatten()
    return positions if rows is None else rows[positions]


def _scores(features: Tensor, queries: Tensor) -> Tensor:
    """(Q, B) float32."""
    return _product(features.float(), queries)


@cache
def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, twice as fast as float32 or faster."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))


def _check(scores: Tensor, features: Tensor, rows: Tensor | None, offset: int = 0) -> None:
    """Refuse features whose scores with a query are NaN or infinite: they would be lost, or found first, unsaid."""
    if not bool(scores.sum().isfinite()) and len(bad := (~features.isfinite().all(dim=1)).nonzero().flatten()):
        number = offset + int(bad[0] if rows is None else rows[bad[0]])
        raise CheckpointError(f"feature number {number} holds NaN or infinity; the gallery is damaged: build it again")


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
