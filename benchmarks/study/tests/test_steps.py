"""Budgets in steps."""

import pytest

import steps


@pytest.mark.parametrize(
    ("wanted", "about", "rounds"), [(240, 60, (4, 60)), (250, 60, (4, 62)), (20, 60, (1, 20)), (1, 60, (1, 1))]
)
def test_rounds_come_near_the_steps(wanted, about, rounds):
    assert steps.split_steps(wanted, about=about) == rounds


def flat(sampler, rounds, length):
    found = []
    for number in range(rounds):
        sampler.set_position(epoch=number)
        found += [index % length for batch in sampler for index in batch]
    return found


def test_passes_follow_one_another_without_a_break():
    # 3 rounds of 2 batches of 4 are 24 positions: two whole passes over 10 pairs and four of the third.
    found = flat(steps.StepSampler(10, batch_size=4, steps=2, seed=1), 3, 10)
    assert sorted(found[:10]) == sorted(found[10:20]) == list(range(10))
    assert len(set(found[20:])) == 4
    assert found[:10] != found[10:20]


def test_each_time_a_pair_comes_in_a_round_it_has_an_index_of_its_own():
    sampler = steps.StepSampler(3, batch_size=4, steps=5, seed=0)
    sampler.set_position(epoch=7)
    indices = [index for batch in sampler for index in batch]
    assert len(set(indices)) == 20
    repeated = steps.Repeated([{}] * 3, steps=5, batch_size=4)
    assert max(indices) < len(repeated)


def test_resuming_within_a_round_gives_the_same_batches():
    sampler = steps.StepSampler(10, batch_size=4, steps=5, seed=3)
    sampler.set_position(epoch=2)
    whole = list(sampler)
    sampler.set_position(epoch=2, batch=3)
    assert list(sampler) == whole[3:]


def test_processes_share_every_batch():
    whole = list(steps.StepSampler(10, batch_size=4, steps=2))
    shares = [list(steps.StepSampler(10, batch_size=4, steps=2, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert [sorted(one + two) for one, two in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


@pytest.mark.parametrize(("length", "batch_size", "number"), [(0, 4, 1), (3, 0, 1), (3, 3, 2)])
def test_impossible_batches_are_refused(length, batch_size, number):
    with pytest.raises(ValueError, match="at least 1 of each, and batches that divide"):
        steps.StepSampler(length, batch_size=batch_size, steps=1, num_replicas=number)
