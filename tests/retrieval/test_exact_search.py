"""The best of a gallery against a full stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptreid.errors import CheckpointError
from promptreid.retrieval import index as exact_search
from promptreid.retrieval.index import top_scores


def slow_top(features, query, k, rows):
    scores = [sum(a * b for a, b in zip(row, query, strict=True)) for row in features]
    return sorted(rows, key=lambda index: (-scores[index], index))[:k], scores


@pytest.fixture
def scored(monkeypatch):
    """How many features each exact comparison looked at."""
    counts, real = [], exact_search._scores
    monkeypatch.setattr(exact_search, "_scores", lambda part, *rest: counts.append(len(part)) or real(part, *rest))
    return counts


@settings(max_examples=150)
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


def unit_features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 64, generator=generator), dim=-1)


@pytest.mark.parametrize("rows", [None, torch.arange(3, 20_000, 2)])
def test_top_scores_of_float16_by_candidates_are_the_exact_ones(rows, scored):
    features = unit_features(20_000).half()
    for query in unit_features(20, seed=1):
        values, indices = top_scores(features, query[None], 10, rows=rows, unit_length=True)
        exact = features.double() @ query.double()
        exact = exact if rows is None else torch.full_like(exact, -2).index_copy_(0, rows, exact[rows])
        assert indices[0].tolist() == exact.sort(descending=True, stable=True).indices[:10].tolist()
        torch.testing.assert_close(values[0], exact[indices[0]].float(), rtol=0, atol=1e-6)
    assert max(scored) <= 20_000 // 32  # none of the searches fell back to all rows


def test_top_scores_that_float16_cannot_tell_apart_are_the_exact_ones():
    # All within a rounding of each other, so that every row is a candidate.
    features = torch.nn.functional.normalize(torch.ones(4_000, 64) + 1e-3 * torch.randn(4_000, 64), dim=-1).half()
    query = torch.nn.functional.normalize(torch.ones(1, 64), dim=-1)
    expected = top_scores(features, query, 10)
    found = top_scores(features, query, 10, unit_length=True)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


def test_top_scores_of_equal_float16_features_give_the_earlier_first():
    features = unit_features(8).half().repeat(1_000, 1)
    values, indices = top_scores(features, features[3:4].float(), 5, unit_length=True)
    assert indices[0].tolist() == [3, 11, 19, 27, 35]
    assert len(set(values[0].tolist())) == 1


def test_top_scores_of_more_than_there_are_give_all():
    features = unit_features(50).half()
    assert sorted(top_scores(features, features[:1].float(), 80, unit_length=True)[1][0].tolist()) == list(range(50))
    none = top_scores(features, features[:1].float(), 3, rows=torch.tensor([], dtype=torch.int64), unit_length=True)
    assert none[1].shape == (1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_top_scores_of_many_queries_screened_in_bfloat16_are_the_exact_ones(monkeypatch, dtype, scored):
    # Features near one another, whose scores bfloat16 cannot order.
    features = torch.nn.functional.normalize(unit_features(1) + 0.4 * unit_features(20_000, seed=2), dim=-1).to(dtype)
    queries = unit_features(12, seed=3)
    monkeypatch.setattr(exact_search, "_SCREENED_ROWS", 2**10)
    monkeypatch.setattr(exact_search, "_has_bfloat16", lambda: True)
    values, indices = top_scores(features, queries, 10, unit_length=True)
    exact = queries.double() @ features.double().T
    expected = exact.topk(10, dim=1)
    torch.testing.assert_close(values.double(), expected.values, rtol=0, atol=1e-6)
    assert [set(row) for row in indices.tolist()] == [set(row) for row in expected.indices.tolist()]
    assert sum(scored) < 20_000  # not all were scored exactly


def test_top_scores_screened_in_bfloat16_find_what_rounding_puts_below_the_others(monkeypatch):
    # Entries of 1/16 (1 + k / 128) are bfloat16's; k + 0.49 is rounded down to them. The best comes last.
    entries = torch.full((6_000,), 2.0)
    entries[:10], entries[-1] = 10.48, 10.49
    features = ((1 + entries / 128) / 16)[:, None].repeat(1, 64)
    queries = torch.nn.functional.normalize(torch.ones(1, 64), dim=-1).repeat(8, 1)
    monkeypatch.setattr(exact_search, "_SCREENED_ROWS", 2**10)
    monkeypatch.setattr(exact_search, "_has_bfloat16", lambda: True)
    assert top_scores(features, queries, 10, unit_length=True)[1][:, 0].tolist() == [5_999] * 8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("number", [3, 5_000])
def test_top_scores_of_damaged_features_are_refused_where_they_are_screened(monkeypatch, value, number):
    features, queries = unit_features(6_000), unit_features(12, seed=3)
    features[number, 7], queries[0, 7] = value, 0.0
    monkeypatch.setattr(exact_search, "_SCREENED_ROWS", 2**10)
    monkeypatch.setattr(exact_search, "_has_bfloat16", lambda: True)
    with pytest.raises(CheckpointError, match=rf"feature number {number} holds NaN or infinity"):
        top_scores(features, queries, 10, unit_length=True)


@pytest.mark.parametrize("entry", [0.0, -1.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_top_scores_that_are_all_minus_infinity_or_nan_are_not_screened_out(monkeypatch, value, entry):
    features, queries = unit_features(6_000), unit_features(12, seed=3)
    features[5_000, 7], queries[:, 7] = value, entry
    queries = torch.nn.functional.normalize(queries, dim=-1)
    monkeypatch.setattr(exact_search, "_SCREENED_ROWS", 2**10)
    monkeypatch.setattr(exact_search, "_has_bfloat16", lambda: True)
    with pytest.raises(CheckpointError, match="feature number 5000 holds NaN or infinity"):
        top_scores(features, queries, 10, unit_length=True)


def test_top_scores_of_many_queries_hold_few_scores_where_they_are_screened(monkeypatch, scored):
    features, queries = unit_features(20_000), unit_features(12, seed=3)
    monkeypatch.setattr(exact_search, "_SCORE_BYTES", 100 * 4 * 12)
    monkeypatch.setattr(exact_search, "_has_bfloat16", lambda: True)
    _, indices = top_scores(features, queries, 10, unit_length=True)
    assert max(scored) <= 100
    assert indices.tolist() == (queries.double() @ features.double().T).topk(10, dim=1).indices.tolist()
