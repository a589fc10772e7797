"""EpochSampler: the order of a seed and epoch, shared among processes, gone on with exactly."""

import pytest

from promptreid.data.samplers import EpochSampler


def batches(sampler: EpochSampler, *, epoch: int = 0, batch: int = 0) -> list[list[int]]:
    sampler.set_position(epoch=epoch, batch=batch)
    return list(sampler)


def test_epoch_sampler_every_item_once_an_epoch() -> None:
    drawn = batches(EpochSampler(10, batch_size=3, drop_last=False))
    assert [len(batch) for batch in drawn] == [3, 3, 3, 1]
    assert sorted(index for batch in drawn for index in batch) == list(range(10))


def test_epoch_sampler_drop_last_leaves_out_the_rest() -> None:
    sampler = EpochSampler(10, batch_size=3)
    assert [len(batch) for batch in batches(sampler)] == [3, 3, 3]
    assert len(sampler) == 3
    assert len(EpochSampler(10, batch_size=3, drop_last=False)) == 4
    assert len(EpochSampler(9, batch_size=3, drop_last=False)) == 3


def test_epoch_sampler_without_shuffle_counts_up() -> None:
    assert batches(EpochSampler(5, batch_size=2, shuffle=False, drop_last=False)) == [[0, 1], [2, 3], [4]]


def test_epoch_sampler_order_depends_on_seed_and_epoch_alone() -> None:
    one, other = EpochSampler(50, batch_size=5, seed=4), EpochSampler(50, batch_size=5, seed=4)
    list(one)  # what was drawn before must not matter
    assert batches(one, epoch=3) == batches(other, epoch=3)
    assert batches(one, epoch=3) != batches(one, epoch=4)
    assert batches(one, epoch=3) != batches(EpochSampler(50, batch_size=5, seed=5), epoch=3)


def test_epoch_sampler_set_position_goes_on_exactly_there_once() -> None:
    sampler = EpochSampler(20, batch_size=4, seed=1)
    whole = batches(sampler, epoch=2)
    assert batches(sampler, epoch=2, batch=3) == whole[3:]
    assert list(sampler) == whole  # the next epoch begins at its beginning
    assert batches(sampler, epoch=2, batch=5) == []


def test_epoch_sampler_processes_share_every_batch() -> None:
    whole = batches(EpochSampler(24, batch_size=6, seed=2), epoch=1)
    shares = [batches(EpochSampler(24, batch_size=6, seed=2, num_replicas=3, rank=rank), epoch=1) for rank in range(3)]
    for index, batch in enumerate(whole):
        parts = [share[index] for share in shares]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert sorted(index for part in parts for index in part) == sorted(batch)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_epoch_sampler_batch_that_does_not_fit_raises(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size}, but the data set has 10 items; give 1 to 10"):
        EpochSampler(10, batch_size=batch_size)


def test_epoch_sampler_processes_that_do_not_divide_the_batch_raise() -> None:
    with pytest.raises(ValueError, match="batch_size 5 is not divisible by the 2 processes"):
        EpochSampler(10, batch_size=5, num_replicas=2)


@pytest.mark.parametrize("rank", [-1, 2])
def test_epoch_sampler_rank_out_of_range_raises(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank is {rank}, expected 0 to 1"):
        EpochSampler(10, batch_size=4, num_replicas=2, rank=rank)


def test_epoch_sampler_last_batch_that_cannot_be_shared_raises() -> None:
    with pytest.raises(ValueError, match="the last batch has 1 items, which cannot be divided among 2 processes"):
        EpochSampler(9, batch_size=4, drop_last=False, num_replicas=2)
    shares = [batches(EpochSampler(10, batch_size=4, drop_last=False, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [[len(batch) for batch in share] for share in shares] == [[2, 2, 1]] * 2
