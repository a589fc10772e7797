"""The study's arithmetic, worked by hand."""

import pytest

import comparison


def test_mean_and_std_of_two_values_by_hand():
    assert comparison.mean_and_std([0.2, 0.4]) == (pytest.approx(0.3), pytest.approx(0.02**0.5))


def test_std_of_one_value_is_zero():
    assert comparison.mean_and_std([0.2]) == (0.2, 0.0)


def test_difference_is_paired_by_seed_and_person():
    # Seed 0: (0.5 - 0.1 + 0.7 - 0.3) / 2 = 0.4; seed 1: 0.2. Mean 0.3, std of (0.4, 0.2) = sqrt(0.02).
    arm = {0: {7: 0.5, 9: 0.7}, 1: {7: 0.2}, 5: {1: 1.0}}
    baseline = {0: {9: 0.3, 7: 0.1}, 1: {7: 0.0}}
    difference = comparison.paired_difference(arm, baseline, draws=2000)
    assert difference.mean == pytest.approx(0.3)
    assert difference.std == pytest.approx(0.02**0.5)
    assert difference.seeds == 2
    assert difference.low == pytest.approx(0.2)  # both draws seed 1
    assert difference.high == pytest.approx(0.4)
    assert difference.found


def test_difference_of_noise_around_zero_is_not_found():
    arm = {seed: {person: (seed + person) % 2 for person in range(10)} for seed in range(4)}
    baseline = {seed: {person: (seed + person + 1) % 2 for person in range(10)} for seed in range(4)}
    assert not comparison.paired_difference(arm, baseline, draws=500).found


def test_interval_covers_the_truth_about_95_times_in_100():
    import numpy as np

    random, covered = np.random.default_rng(0), 0
    for trial in range(100):
        arm = {seed: dict(enumerate(random.normal(0.1, 1.0, size=50))) for seed in range(10)}
        nothing = {seed: dict.fromkeys(range(50), 0.0) for seed in range(10)}
        interval = comparison.paired_difference(arm, nothing, draws=300, seed=trial)
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 88


@pytest.mark.parametrize(
    ("arm", "words"), [({1: {1: 0.1}}, "no seed in common"), ({0: {2: 0.1}}, "seed 0: the two arms were not scored")]
)
def test_unpaired_scores_are_refused(arm, words):
    with pytest.raises(ValueError, match=words):
        comparison.paired_difference(arm, {0: {1: 0.0}})


def test_bootstrap_of_two_seeds_by_hand():
    # Each seed has persons of one value alone, 0 and 1, so a draw's mean depends on the seeds drawn: both 0 (1/4 of
    # draws) gives 0, both 1 gives 1, else 1/2. 2.5 % and 97.5 % of them are then 0 and 1, and the mean is 1/2.
    arm, nothing = {0: {1: 0.0, 2: 0.0}, 1: {1: 1.0, 2: 1.0}}, {0: {1: 0.0, 2: 0.0}, 1: {1: 0.0, 2: 0.0}}
    found = comparison.paired_difference(arm, nothing, draws=4000)
    assert (found.low, found.mean, found.high) == (0.0, 0.5, 1.0)


def test_bootstrap_draws_persons_within_one_seed():
    # One seed, two persons with 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    import numpy as np

    drawn = comparison._bootstrap([np.array([0.0, 1.0])], 8000, np.random.default_rng(0))
    shares = [float((drawn == value).mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
