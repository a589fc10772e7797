"""Thresholds: by hand, and what they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptreid.evaluation.calibration import calibrate_threshold, calibrate_without_labels


def axis(angle_degrees):
    angle = torch.tensor(angle_degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def test_threshold_of_four_queries_is_the_one_worked_by_hand():
    # Every query lies at 0°, its right item at 10°. The best wrong items lie at 60°, 50°, 40° and 30° for queries of
    # persons 0 to 3, whose items are at 30° (person 0), 40° (1), 50° (2), 60° (3).
    gallery = axis([30.0, 40.0, 50.0, 60.0])
    queries, ids = axis([0.0, 0.0, 0.0, 0.0]), torch.arange(4)
    # Best wrong: 40° for person 0, 30° for all others: cos 30° three times, cos 40° once.
    none = calibrate_threshold(queries, gallery, ids, ids, false_alarm_rate=0.0)
    assert none.threshold == pytest.approx(float(axis(30.0)[0]), abs=1e-6)
    assert none.threshold > float(axis(30.0)[0])
    assert (none.false_alarm_rate, none.num_queries, none.gallery_size) == (0.0, 4, 4)
    most = calibrate_threshold(queries, gallery, ids, ids, false_alarm_rate=0.75)
    assert most.threshold == pytest.approx(float(axis(40.0)[0]), abs=1e-6)
    assert most.false_alarm_rate == 0.75
    assert most.hit_rate == 0.25  # only person 0's own item, at 30°, scores above cos 40°


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(0, 0.99), st.integers(2, 40))
def test_threshold_never_alarms_more_often_than_allowed(seed, rate, count):
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = (torch.randn(count, 4, generator=generator) for _ in range(2))
    ids = torch.arange(count) % 7 if count > 7 else torch.arange(count)
    calibration = calibrate_threshold(queries, gallery, ids, ids, false_alarm_rate=rate)
    assert calibration.false_alarm_rate <= rate
    assert 0 <= calibration.hit_rate <= 1


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_threshold_for_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=f"false_alarm_rate is {rate}, expected 0 <= rate < 1"):
        calibrate_threshold(torch.eye(2), torch.eye(2), torch.arange(2), torch.arange(2), false_alarm_rate=rate)


def test_threshold_of_one_person_is_refused():
    with pytest.raises(ValueError, match="no query has both a right and a wrong item"):
        calibrate_threshold(torch.eye(2), torch.eye(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2).long())
    with pytest.raises(ValueError, match="query_features hold NaN"):
        calibrate_threshold(torch.eye(2) * torch.nan, torch.eye(2), torch.arange(2), torch.arange(2))


def test_threshold_without_labels_lies_just_above_the_first_score_that_must_not_reach_it():
    # Of the best scores 0.1, 0.2, 0.3, 0.4 a quarter, which is one, may reach the threshold: it is just above 0.3.
    chosen = calibrate_without_labels([0.4, 0.1, 0.3, 0.2], gallery_size=9, false_alarm_rate=0.25)
    assert chosen.threshold == pytest.approx(0.3, abs=1e-6)
    assert chosen.threshold > 0.3
    assert (chosen.false_alarm_rate, chosen.hit_rate, chosen.num_queries, chosen.gallery_size) == (0.25, None, 4, 9)
    assert calibrate_without_labels([0.4, 0.4, 0.1], gallery_size=9, false_alarm_rate=0.5).false_alarm_rate == 0.0


@pytest.mark.parametrize(
    ("scores", "rate", "words"),
    [
        ([0.1] * 19, 0.05, "19 sentences are too few for a rate of 0.05; give 20 or more"),
        ([], 0.0, "0 sentences are too few"),
        ([0.1, float("nan")], 0.5, "best_scores hold NaN"),
        ([0.1, 0.2], 1.0, "false_alarm_rate is 1.0"),
    ],
)
def test_threshold_without_labels_of_bad_scores_is_refused(scores, rate, words):
    with pytest.raises(ValueError, match=words):
        calibrate_without_labels(scores, gallery_size=9, false_alarm_rate=rate)


@given(st.integers(0, 2**31), st.floats(0.05, 0.9))
def test_threshold_without_labels_is_reached_at_most_as_often_as_allowed(seed, rate):
    best = torch.rand(50, generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = calibrate_without_labels(best, gallery_size=9, false_alarm_rate=rate)
    assert sum(score >= chosen.threshold for score in best) <= rate * len(best)


def test_threshold_is_the_lowest_that_the_rate_allows():
    # 0.29 * 100 is 28.999999999999996 in floating point, and 29 of 100 are no more than 0.29.
    assert (
        calibrate_without_labels([i / 100 for i in range(100)], gallery_size=9, false_alarm_rate=0.29).false_alarm_rate
        == 0.29
    )


@pytest.mark.parametrize("scale", [1e-40, 1e20])
def test_threshold_does_not_depend_on_the_length_of_features(scale):
    ids, near = torch.arange(3), torch.eye(3) + 0.1
    expected = calibrate_threshold(near, near, ids, ids)
    assert expected.hit_rate == 1.0
    found = calibrate_threshold(near * scale, near * scale, ids, ids)
    assert (found.threshold, found.hit_rate) == (pytest.approx(expected.threshold, abs=1e-4), 1.0)
