"""The metrics against a slow reference, by hand, and on every bad input."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from promptreid.evaluation import ranks as ranks_module
from promptreid.evaluation.metrics import compute_metrics, score_similarity

RANKS = (1, 2, 5, 10)


def cosine_to(gallery_row, query_row):
    """Cosine similarity but for the query's own length, which changes nothing in its ranking."""
    length = math.sqrt(math.fsum(value * value for value in gallery_row)) or 1.0
    return math.fsum(a * b for a, b in zip(query_row, gallery_row, strict=True)) / length


def slow_metrics(query_features, gallery_features, query_ids, gallery_ids, *, ranks):
    """Sort the gallery for each query, walk down the list, average."""
    scores = [[cosine_to(item, query) for item in gallery_features] for query in query_features]
    return slow_metrics_of_similarity(scores, query_ids, gallery_ids, ranks=ranks)


def slow_metrics_of_similarity(scores, query_ids, gallery_ids, *, ranks):
    first_ranks, precisions, penalties = [], [], []
    for row, wanted in zip(scores, query_ids, strict=True):
        ranking = sorted(range(len(row)), key=lambda index: (-row[index], index))
        places = [place for place, index in enumerate(ranking, start=1) if gallery_ids[index] == wanted]
        if not places:
            continue
        first_ranks.append(places[0])
        precisions.append(math.fsum(hit / place for hit, place in enumerate(places, start=1)) / len(places))
        penalties.append(len(places) / places[-1])
    count = len(first_ranks)
    return {
        **{f"rank{k}": sum(first <= k for first in first_ranks) / count for k in ranks},
        "mAP": math.fsum(precisions) / count,
        "mINP": math.fsum(penalties) / count,
    }


def assert_equals_reference(queries, gallery, query_ids, gallery_ids, **settings):
    expected = slow_metrics(queries.tolist(), gallery.tolist(), query_ids.tolist(), gallery_ids.tolist(), ranks=RANKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = compute_metrics(queries, gallery, query_ids, gallery_ids, ranks=RANKS, **settings).as_dict()
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[name], expected[name], rel_tol=0, abs_tol=1e-12) for name in expected), (
        found,
        expected,
    )


@st.composite
def problems(draw, values):
    """Features and ids of a few queries and gallery items; small ranges of values and ids make ties and groups."""
    dim = draw(st.integers(1, 4))
    sizes = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    rows = [draw(st.lists(st.lists(values, min_size=dim, max_size=dim), min_size=n, max_size=n)) for n in sizes]
    persons = draw(st.integers(1, 4))
    ids = [draw(st.lists(st.integers(-1, persons), min_size=n, max_size=n)) for n in sizes]
    assume(set(ids[0]) & set(ids[1]))
    features = [torch.tensor(part, dtype=torch.float64) for part in rows]
    return (*features, *(torch.tensor(part) for part in ids))


@settings(max_examples=150)
@given(problems(st.integers(-2, 2)), st.sampled_from([None, 1, 2, 100]))
def test_metrics_of_tied_integers_equal_the_reference(problem, chunk_size):
    assert_equals_reference(*problem, chunk_size=chunk_size)


@settings(max_examples=100)
@given(problems(st.integers(-1_000_000, 1_000_000)))
def test_metrics_of_large_integers_equal_the_reference(problem):
    assert_equals_reference(*problem)


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 60), st.integers(1, 9))
def test_metrics_of_random_features_equal_the_reference(seed, num_queries, num_gallery, persons):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_queries, 8, generator=generator, dtype=torch.float64)
    gallery = torch.randn(num_gallery, 8, generator=generator, dtype=torch.float64)
    query_ids = torch.randint(persons, (num_queries,), generator=generator)
    gallery_ids = torch.randint(persons, (num_gallery,), generator=generator)
    gallery_ids[0] = query_ids[0]
    assert_equals_reference(queries, gallery, query_ids, gallery_ids)


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 30), st.integers(2, 4))
def test_scores_of_tied_similarities_equal_the_reference(seed, num_queries, num_gallery, levels):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(levels, (num_queries, num_gallery), generator=generator).double()
    query_ids = torch.randint(3, (num_queries,), generator=generator)
    gallery_ids = torch.randint(3, (num_gallery,), generator=generator)
    gallery_ids[0] = query_ids[0]
    expected = slow_metrics_of_similarity(similarity.tolist(), query_ids.tolist(), gallery_ids.tolist(), ranks=RANKS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = score_similarity(similarity, query_ids, gallery_ids, ranks=RANKS).as_dict()
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


def test_metrics_of_one_query_and_four_items_are_those_worked_by_hand():
    # Scores 0.9, 0.8, 0.7, 0.6 rank the items 1 to 4; right are those at 2 and 4.
    # AP = (1/2 + 2/4) / 2 = 0.5; INP = 2 / 4 = 0.5; Rank-1 misses, Rank-2 hits.
    scores = torch.tensor([[0.6, 0.9, 0.7, 0.8]])
    metrics = score_similarity(scores, torch.tensor([5]), torch.tensor([5, 1, 2, 5]), ranks=(1, 2))
    assert metrics.as_dict() == {"rank1": 0.0, "rank2": 1.0, "mAP": 0.5, "mINP": 0.5}
    assert (metrics.num_queries, metrics.num_without_positive, metrics.rank1) == (1, 0, 0.0)


def test_metrics_of_two_directions_are_those_worked_by_hand():
    # Features at the angles 0°, 10°, 40°, 90°; the query at 0°. Nearest first: 0°, 10°, 40°, 90°.
    angles = torch.tensor([10.0, 90.0, 0.0, 40.0]).deg2rad()
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[3.0], [0.1], [7.0], [1.0]])
    metrics = compute_metrics(torch.tensor([[2.0, 0.0]]), gallery, torch.tensor([1]), torch.tensor([1, 0, 0, 1]))
    # Right are ranks 2 and 3: AP = (1/2 + 2/3) / 2 = 7/12, INP = 2/3.
    assert metrics.mAP == pytest.approx(7 / 12, abs=1e-12)
    assert metrics.mINP == pytest.approx(2 / 3, abs=1e-12)
    assert metrics.rank == {1: 0.0, 5: 1.0, 10: 1.0}


def test_metrics_of_equal_scores_rank_the_earlier_item_higher():
    same = torch.ones(3, 2)
    for place, rank in ((0, 1), (1, 2), (2, 3)):
        gallery_ids = torch.tensor([int(index == place) for index in range(3)])
        metrics = compute_metrics(torch.ones(1, 2), same, torch.tensor([1]), gallery_ids, per_query=True)
        assert metrics.queries.first_rank.tolist() == [rank]
        assert metrics.mAP == pytest.approx(1 / rank)


def test_metrics_of_a_single_pair_are_perfect():
    metrics = compute_metrics(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([4]), torch.tensor([4]), ranks=(1,))
    assert metrics.as_dict() == {"rank1": 1.0, "mAP": 1.0, "mINP": 1.0}


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_metrics_of_features_of_extreme_length_do_not_overflow(scale):
    features = torch.randn(20, 6, dtype=torch.float64)
    ids = torch.arange(20) % 7
    expected = compute_metrics(features, features.flip(0), ids, ids)
    assert compute_metrics(features * scale, features.flip(0) / scale, ids, ids) == expected


@pytest.mark.parametrize("scale", [1e-40, 1e-44])
def test_metrics_of_features_below_the_normal_numbers_of_float32(scale):
    ids = torch.arange(3)
    assert compute_metrics(torch.eye(3) * scale, torch.eye(3), ids, ids).rank1 == 1.0
    assert compute_metrics(torch.eye(3), torch.eye(3) * scale, ids, ids).rank1 == 1.0


def test_metrics_with_any_chunk_size_are_the_same_on_integers():
    generator = torch.Generator().manual_seed(3)
    queries, gallery = (torch.randint(-3, 4, (n, 16), generator=generator, dtype=torch.float64) for n in (90, 150))
    query_ids, gallery_ids = torch.arange(90) % 13, torch.arange(150) % 13
    found = {
        size: compute_metrics(queries, gallery, query_ids, gallery_ids, chunk_size=size).as_dict()
        for size in (None, 1, 2, 3, 7, 64, 89, 1000)
    }
    assert all(metrics == found[None] for metrics in found.values())


def test_metrics_with_any_chunk_size_agree_in_float32():
    generator = torch.Generator().manual_seed(4)
    queries, gallery = torch.randn(300, 64, generator=generator), torch.randn(400, 64, generator=generator)
    query_ids, gallery_ids = torch.arange(300) % 31, torch.arange(400) % 31
    whole = compute_metrics(queries, gallery, query_ids, gallery_ids).as_dict()
    for size in (1, 5, 64):
        part = compute_metrics(queries, gallery, query_ids, gallery_ids, chunk_size=size).as_dict()
        assert part == pytest.approx(whole, rel=0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_metrics_of_half_precision_are_computed_in_float32(dtype):
    features = torch.randn(50, 32).to(dtype)
    ids = torch.arange(50) % 9
    assert compute_metrics(features, features.flip(0), ids, ids) == compute_metrics(
        features.float(), features.flip(0).float(), ids, ids
    )


def test_metrics_by_sorting_equal_those_by_counting(monkeypatch):
    similarity = torch.randint(5, (12, 80)).double()
    query_ids, gallery_ids = torch.arange(12) % 2, torch.arange(80) % 2
    counted = score_similarity(similarity, query_ids, gallery_ids)
    monkeypatch.setattr(ranks_module, "_MANY", 0)
    assert score_similarity(similarity, query_ids, gallery_ids) == counted


def test_metrics_of_some_queries_by_sorting_and_others_by_counting_equal_the_reference(monkeypatch):
    monkeypatch.setattr(ranks_module, "_MANY", 3)
    similarity = torch.randint(4, (9, 20)).double()
    query_ids, gallery_ids = torch.arange(9) % 3, torch.tensor([0] * 9 + [1] * 2 + [2] * 9)[torch.randperm(20)]
    expected = slow_metrics_of_similarity(similarity.tolist(), query_ids.tolist(), gallery_ids.tolist(), ranks=RANKS)
    found = score_similarity(similarity, query_ids, gallery_ids, ranks=RANKS).as_dict()
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_of_infinite_and_tied_similarities_equal_the_reference(dtype):
    values = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 1e-6, 1.0, torch.inf])
    similarity = values[torch.randint(len(values), (30, 40))].to(dtype)
    query_ids, gallery_ids = torch.randint(5, (30,)), torch.randint(5, (40,))
    gallery_ids[:5] = torch.arange(5)
    expected = slow_metrics_of_similarity(similarity.tolist(), query_ids.tolist(), gallery_ids.tolist(), ranks=RANKS)
    found = score_similarity(similarity, query_ids, gallery_ids, ranks=RANKS).as_dict()
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("cached", [1, 4 * 80 * 5])
@pytest.mark.parametrize("many", [20, 512])
def test_scores_in_small_blocks_are_the_same(monkeypatch, cached, many):
    similarity = torch.randn(12, 80)
    query_ids, gallery_ids = torch.arange(12) % 2, torch.tensor([0] * 30 + [1] * 10 + [2] * 40)[torch.randperm(80)]
    whole = score_similarity(similarity, query_ids, gallery_ids)
    monkeypatch.setattr(ranks_module, "CACHED_BYTES", cached)
    monkeypatch.setattr(ranks_module, "_MANY", many)
    assert score_similarity(similarity, query_ids, gallery_ids) == whole


def test_metrics_of_more_items_than_float32_counts_exactly_are_counted_in_float64(monkeypatch):
    similarity = torch.randn(12, 80)
    query_ids, gallery_ids = torch.arange(12) % 2, torch.arange(80) % 3
    whole = score_similarity(similarity, query_ids, gallery_ids)
    monkeypatch.setattr(ranks_module, "_EXACT_IN_FLOAT32", 80)
    assert score_similarity(similarity, query_ids, gallery_ids) == whole


def test_metrics_of_unknown_persons_leave_them_out_and_warn():
    features = torch.eye(4)
    with pytest.warns(UserWarning, match="2 of 4 queries have no item of their person; left out"):
        metrics = compute_metrics(
            features, features, torch.tensor([0, 9, 1, 8]), torch.tensor([0, 5, 1, 6]), per_query=True
        )
    assert (metrics.num_queries, metrics.num_without_positive) == (2, 2)
    assert metrics.mAP == 1.0
    assert metrics.queries.first_rank.tolist() == [1, 0, 1, 0]
    assert metrics.queries.num_positives.tolist() == [1, 0, 1, 0]
    assert metrics.queries.average_precision.isnan().tolist() == [False, True, False, True]


def test_metrics_per_query_average_to_the_whole():
    features, ids = torch.randn(40, 8), torch.arange(40) % 6
    metrics = compute_metrics(features, features.roll(3, 0), ids, ids, per_query=True)
    assert metrics.queries.average_precision.mean().item() == pytest.approx(metrics.mAP, abs=1e-12)
    assert metrics.queries.inverse_negative_penalty.mean().item() == pytest.approx(metrics.mINP, abs=1e-12)
    assert (metrics.queries.first_rank <= 5).double().mean().item() == metrics.rank[5]
    assert compute_metrics(features, features.roll(3, 0), ids, ids).queries is None


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_metrics_per_query_stand_in_the_order_of_the_queries(seed):
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(6, (15, 25), generator=generator).double()
    query_ids, gallery_ids = (torch.randint(6, (n,), generator=generator) for n in (15, 25))
    gallery_ids[0] = query_ids[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = score_similarity(similarity, query_ids, gallery_ids, per_query=True).queries
        for place, wanted in enumerate(query_ids.tolist()):
            if wanted in gallery_ids.tolist():
                own = score_similarity(similarity[place, None], query_ids[place, None], gallery_ids)
                assert found.average_precision[place].item() == pytest.approx(own.mAP, abs=1e-12)


def test_metrics_leave_the_inputs_as_they_were():
    features, ids = torch.randn(9, 4), torch.arange(9) % 3
    before = features.clone(), ids.clone()
    compute_metrics(features, features, ids, ids)
    assert torch.equal(features, before[0])
    assert torch.equal(ids, before[1])


@pytest.mark.gpu
def test_metrics_on_a_gpu_equal_those_on_the_cpu():
    features, ids = torch.randn(200, 32, dtype=torch.float64), torch.arange(200) % 17
    expected = compute_metrics(features, features.roll(9, 0), ids, ids)
    assert compute_metrics(features, features.roll(9, 0), ids, ids, device="cuda") == expected


FEATURES, IDS = torch.eye(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"query_features": torch.eye(3)[0]}, ValueError, r"query_features have shape \(3,\) .*\(items, dim\)"),
        ({"gallery_features": torch.empty(0, 3)}, ValueError, r"gallery_features have shape \(0, 3\)"),
        ({"query_features": torch.empty(3, 0)}, ValueError, r"query_features have shape \(3, 0\)"),
        ({"query_features": torch.ones(3, 3, dtype=torch.int64)}, ValueError, "dtype torch.int64, expected floating"),
        ({"gallery_ids": torch.tensor([0, 1])}, ValueError, r"gallery_ids have shape \(2,\) .*expected integers \(3,"),
        ({"query_ids": torch.tensor([0.0, 1.0, 2.0])}, ValueError, "query_ids .*float32, expected integers"),
        ({"query_ids": torch.tensor([True, True, False])}, ValueError, "query_ids .*bool, expected integers"),
        ({"gallery_features": torch.eye(3) * torch.nan}, ValueError, "3 of 3 gallery_features hold NaN"),
        ({"query_features": torch.eye(3).fill_diagonal_(torch.inf)}, ValueError, "3 of 3 query_features hold NaN or"),
        ({"gallery_features": torch.ones(3, 4)}, ValueError, "have 3 dimensions and gallery_features 4"),
        (
            {"gallery_ids": torch.tensor([7, 8, 9])},
            ValueError,
            "gallery ids from 7 to 9; pass person ids of the same annotation",
        ),
        ({"ranks": (0, 1)}, ValueError, "ranks is 0, expected at least 1"),
        ({"ranks": ()}, ValueError, "ranks is empty, expected at least one"),
        ({"ranks": (1.5,)}, TypeError, "ranks is 1.5, expected a whole number of at least 1"),
        ({"ranks": (True,)}, TypeError, "ranks is True, expected a whole number of at least 1"),
        ({"chunk_size": 0}, ValueError, "chunk_size is 0, expected at least 1"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size is 2.0, expected a whole number of at least 1"),
    ],
)
def test_metrics_of_bad_input_are_refused(changes, error, words):
    arguments = {
        "query_features": FEATURES,
        "gallery_features": FEATURES,
        "query_ids": IDS,
        "gallery_ids": IDS,
        **changes,
    }
    options = {name: arguments.pop(name) for name in ("ranks", "chunk_size") if name in arguments}
    with pytest.raises(error, match=words):
        compute_metrics(*arguments.values(), **options)


@pytest.mark.parametrize(
    ("similarity", "words"),
    [
        (torch.ones(3), r"similarity has shape \(3,\)"),
        (torch.ones(3, 0), r"similarity has shape \(3, 0\)"),
        (torch.ones(3, 3, dtype=torch.int64), "dtype torch.int64, expected floating point"),
        (torch.full((3, 3), torch.nan), "9 similarities are NaN"),
        (torch.ones(2, 3), r"query_ids have shape \(3,\) .*expected integers \(2,\)"),
    ],
)
def test_scores_of_bad_similarities_are_refused(similarity, words):
    with pytest.raises(ValueError, match=words):
        score_similarity(similarity, IDS, IDS)


@pytest.mark.parametrize("kind", [np.int32, np.uint16, list])
def test_metrics_take_numpy_arrays_and_lists(kind):
    queries, items = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[::-1]
    ids = [3, 1, 2] if kind is list else np.array([3, 1, 2], dtype=kind)
    expected = compute_metrics(torch.eye(3), torch.eye(3).flip(0), torch.tensor([3, 1, 2]), torch.tensor([2, 1, 3]))
    assert compute_metrics(queries, items, ids, ids[::-1]) == expected
    assert score_similarity(queries @ items.T, ids, ids[::-1]) == expected
    frozen = np.eye(3, dtype=">f4")
    frozen.setflags(write=False)
    assert compute_metrics(frozen, frozen, ids, ids).rank1 == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"query_ids": np.array(["a", "b"])},
            "query_ids is an array of <U1, expected numbers; give each person a number",
        ),
        ({"gallery_ids": ["a", "b"]}, "gallery_ids is an array of <U1, expected numbers; give each person a number"),
        ({"query_features": None}, "query_features is an array of object, expected numbers$"),
        ({"gallery_features": [[1.0], [1.0, 2.0]]}, r"gallery_features is not an array of numbers \(setting an array"),
    ],
)
def test_metrics_name_the_argument_that_is_no_array_of_numbers(given, message):
    right = {"query_features": torch.eye(2), "gallery_features": torch.eye(2)}
    right |= {"query_ids": torch.tensor([0, 1]), "gallery_ids": torch.tensor([0, 1])}
    with pytest.raises(TypeError, match=message):
        compute_metrics(**{**right, **given})
