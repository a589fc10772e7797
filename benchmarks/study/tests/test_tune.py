"""Tuning is equal: every arm the same number of runs, and grids grow for all."""

import math

import pytest

import plan
import tune


def peaked(tune, peaks, tried):
    """A score that is highest at each arm's own rates, and notes what was tried."""

    def score(arm, rates):
        tried.setdefault(arm, set()).add(rates)
        return -sum(abs(math.log(rate / peak)) for rate, peak in zip(rates, peaks[arm], strict=True))

    return score


def test_arms_with_one_and_with_two_rates_get_the_same_number_of_runs():
    tried = {}
    centre = dict.fromkeys(("direct", "pd", "joint", "stage_one"), (5e-3, 3.2e-4))
    found, grids = tune.tune(centre, peaked(tune, centre, tried))
    assert found == centre
    assert grids == (tune.Grid(), tune.Grid())
    assert {arm: len(rates) for arm, rates in tried.items()} == dict.fromkeys(centre, 5)


@pytest.mark.parametrize(
    ("arm", "peak"),
    [("direct", (5e-3, 3.2e-5)), ("direct", (5e-3, 3.2e-3)), ("pd", (5e-2, 1e-3)), ("pd", (5e-3, 3.2e-3))],
)
def test_a_best_rate_at_the_edge_extends_the_grid_of_every_arm(arm, peak):
    tried = {}
    peaks = {"direct": (5e-3, 3.2e-4), "pd": (5e-3, 3.2e-4), "joint": (5e-3, 3.2e-4), arm: peak}
    found, _ = tune.tune(peaks, peaked(tune, peaks, tried))
    assert found[arm] == pytest.approx(peak, rel=0.03)
    counts = {len(rates) for rates in tried.values()}
    assert len(counts) == 1
    assert counts.pop() > 5


def test_an_arm_that_is_added_gets_as_many_runs_on_grids_as_they_stand():
    peaks = {"direct": (5e-3, 3.2e-3), "joint": (1.6e-3, 3.2e-4), "pd": (5e-3, 3.2e-4)}
    before, tried = {}, {}
    _, grids = tune.tune(["direct", "joint"], peaked(tune, peaks, before))
    found, after = tune.tune(["pd"], peaked(tune, peaks, tried), start=grids)
    assert (found["pd"], after) == (peaks["pd"], grids)
    counts = {len(rates) for rates in (before | tried).values()}
    assert len(counts) == 1
    assert counts.pop() > 5


def test_all_runs_of_a_grid_can_be_looked_at_side_by_side():
    together = []

    def each(score, runs):
        together.append(len(runs))
        return map(score, runs)

    peaks = dict.fromkeys(("direct", "pd"), (5e-3, 3.2e-4))
    tune.tune(peaks, peaked(tune, peaks, {}), each=each)
    assert together == [3, 5 + 3]  # the first rate of pd; then all of direct and the last rate of pd


def test_a_peak_beyond_every_extension_is_said():
    peaks = {"direct": (5e-3, 1e9)}
    with pytest.raises(RuntimeError, match="still at an edge after 4 extensions"):
        tune.tune(peaks, peaked(tune, peaks, {}))


def test_costs_are_kept_from_the_first_call(tmp_path):
    path = tmp_path / "new" / "costs.json"
    assert tune.keep_costs(path, (0.8, 1.1)) == (0.8, 1.1)
    assert tune.keep_costs(path, (0.7, 1.2)) == (0.8, 1.1)


def test_no_reported_run_uses_the_seed_of_tuning():
    everything = {"costs": (1.0, 1.0), "rates": dict.fromkeys(plan.ARMS, (1.0, 1.0))}
    assert tune.SEED not in {run.seed for runs in plan.parts(everything).values() for run in runs}
