"""What scripts say they will take."""

import pytest

import plan
import speed


@pytest.fixture
def known():
    step = {"stage_one": 1.0, "stage_two": 2.0, "direct": 1.5, "joint": 3.0}
    return speed.Speed(step, image=0.1, drawing=0.01)


@pytest.fixture
def make_run():
    """Runs of N₁ 10, N₂ 20, a look every 10 steps; 5 images for validation and 15 to test."""
    return lambda arm, **changes: plan.Run(
        arm, 0, (1e-3, 1e-3), budget=plan.Budget((4, 5, 15), 1, (96, 48), 8, 10, 20, 10), **changes
    )


@pytest.mark.parametrize(
    ("arm", "training", "looks"),
    [
        ("zero_shot", 0, 0),
        ("stage_one", 10, 1),
        ("pd", 10 + 40, 3),
        ("direct", 45, 3),
        ("direct_short", 30, 2),
        ("joint", 90, 3),
        ("prompts_both", 10 + 60, 3),
        ("norms_stage_one", 10 + 30, 3),
        ("direct_random_prompts", 60, 3),
    ],
)
def test_seconds_of_a_run_by_hand(known, make_run, arm, training, looks):
    # At the end 1,000 pairs of the base's domain, 15 images of the test and 5 of validation, 0.1 s each.
    assert known.of(make_run(arm)) == pytest.approx(training + 0.5 * looks + 102)


def test_data_are_drawn_once_a_seed_and_gap(known, make_run):
    runs = [make_run("zero_shot"), make_run("zero_shot"), make_run("zero_shot", gap=0.0)]
    assert known.of_all(runs) == pytest.approx(3 * 102 + 2 * 24 * 0.01)


def test_costs_are_in_steps_of_direct_fine_tuning(known):
    assert known.costs == (0.667, 1.333)


def test_speed_is_measured_for_every_kind_of_step(monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(speed, "BUDGET", replace(speed.BUDGET, batch_size=4))
    found = speed.measure_speed(steps=1)
    assert set(found.step) == set(speed.KINDS)
    assert min(*found.step.values(), found.image, found.drawing) > 0


def test_nothing_is_measured_where_all_is_done(capsys, monkeypatch):
    monkeypatch.setattr(speed, "measure_speed", lambda device: pytest.fail("measured"))
    speed.announce("main", [], 70, "cpu")
    assert capsys.readouterr().out == "main: all 70 runs are done\n"
