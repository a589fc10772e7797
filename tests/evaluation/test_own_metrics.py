"""Metrics that are added to `METRICS`: what goes wrong names them, and what lacks them does without."""

import math

import pytest
import torch

from promptreid.evaluation.comparison import Comparison
from promptreid.evaluation.metrics import compute_metrics
from promptreid.evaluation.pictures import curves
from promptreid.scores import METRICS, Metric
from promptreid.training.seeds import SeedScores


@pytest.fixture
def metrics():
    """The order of the metrics is put back too."""
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def compute():
    return compute_metrics(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3)).as_dict()


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (lambda results: math.nan, "metric 'mine' of METRICS is nan; let its compute return a finite number"),
        (lambda results: 1 / 0, "metric 'mine' of METRICS cannot be computed: ZeroDivisionError"),
    ],
)
def test_metric_without_a_finite_value_is_named(monkeypatch, own, words):
    monkeypatch.setitem(METRICS, "mine", Metric("Mine", compute=own))
    with pytest.raises(ValueError, match=words):
        compute()


def test_metric_that_some_scores_lack_is_left_out_of_their_comparison(monkeypatch):
    old = compute()
    monkeypatch.setitem(METRICS, "R, strict", Metric("R, strict", compute=lambda results: 0.5))
    new = compute()
    assert new["R, strict"] == 0.5
    assert "R, strict" not in SeedScores({0: new, 1: old}).mean
    for runs in ({"a": new, "b": old}, {"a": old, "b": new}):
        comparison = Comparison({name: SeedScores({0: scores, 1: scores}) for name, scores in runs.items()}, {})
        assert "R, strict" not in comparison.markdown()
        assert "b less a: Rank-1 +0.00 points" in " ".join(comparison.sentences())


def test_interval_of_a_comparison_is_of_rank_1_whatever_comes_first(metrics):
    first = {"first": Metric("First", is_fraction=False), **METRICS}
    METRICS.clear()
    METRICS.update(first)
    scores = {seed: {"first": 7.0 + seed, "rank1": 0.25 + seed / 4} for seed in range(2)}
    # 37.5 ± 12.7062 * 12.5
    assert "| -121.33 to 196.33 |" in Comparison({"a": SeedScores(scores)}, {}).markdown()


def test_curve_of_a_metric_that_is_not_a_fraction_is_not_in_percent(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(METRICS, "MedR", Metric("Median rank", is_fraction=False))
    drawn = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure) or path)
    curves.draw_compared_curves(tmp_path / "c.png", {"a": [[{"scores": {"MedR": 7.0}}]]}, metric="MedR")
    (axis,) = drawn[0].axes
    assert axis.get_ylabel() == "MedR"
    assert [list(line.get_ydata()) for line in axis.lines] == [[7.0], [7.0]]
