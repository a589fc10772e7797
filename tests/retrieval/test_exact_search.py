"""The best of a gallery against a full stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptreid.retrieval import exact_search
from promptreid.retrieval.exact_search import top_scores


def slow_top(features, query, k, rows):
    scores = [sum(a * b for a, b in zip(row, query, strict=True)) for row in features]
    return sorted(rows, key=lambda index: (-scores[index], index))[:k], scores


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_top_scores_equal_a_stable_sort(data):
    dim, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 25))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    features = data.draw(st.lists(vector, min_size=size, max_size=size))
    queries = data.draw(st.lists(vector, min_size=1, max_size=4))
    k = data.draw(st.integers(1, size))
    rows = data.draw(st.none() | st.lists(st.integers(0, size - 1), unique=True).map(sorted))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    values, indices = top_scores(
        torch.tensor(features, dtype=dtype),
        torch.tensor(queries, dtype=torch.float32),
        k,
        rows=None if rows is None else torch.tensor(rows, dtype=torch.int64),
    )
    for query, best, scores in zip(queries, indices.tolist(), values.tolist(), strict=True):
        expected, all_scores = slow_top(features, query, k, range(size) if rows is None else rows)
        assert best == expected
        assert scores == [all_scores[index] for index in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_top_scores_in_small_pieces_are_the_same(monkeypatch, dtype):
    features = torch.randint(-3, 4, (500, 16)).to(dtype)
    queries = torch.randint(-3, 4, (7, 16)).float()
    whole = top_scores(features, queries, 20)
    monkeypatch.setattr(exact_search, "_SCORE_BYTES", 1)
    monkeypatch.setattr(exact_search, "_BLOCK_BYTES", 1000)
    parts = top_scores(features, queries, 20)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])
