"""Samplers: the order of a seed and epoch, shared among processes, resumed exactly."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptreid.data.samplers import EpochSampler, IdentitySampler


def batches(sampler: EpochSampler | IdentitySampler, *, epoch: int = 0, batch: int = 0) -> list[list[int]]:
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


def test_epoch_sampler_set_position_resumes_exactly_there_once() -> None:
    sampler = EpochSampler(20, batch_size=4, seed=1)
    whole = batches(sampler, epoch=2)
    assert batches(sampler, epoch=2, batch=3) == whole[3:]
    assert list(sampler) == whole  # the next epoch begins at its beginning
    assert batches(sampler, epoch=2, batch=5) == []


@pytest.mark.parametrize(
    ("seed", "order"),
    [
        (7, [[2, 6, 9, 5, 4], [3, 1, 0, 8, 7]]),
        (2**44 - 1, [[9, 0, 1, 3, 7], [8, 4, 2, 5, 6]]),
        (-3, [[7, 1, 8, 2, 6], [0, 4, 5, 9, 3]]),
    ],
)
def test_epoch_sampler_order_of_a_seed_is_that_of_all_versions(seed: int, order: list[list[int]]) -> None:
    assert batches(EpochSampler(10, batch_size=5, seed=seed), epoch=3) == order


@pytest.mark.parametrize("seed", [2**44, 2**45, 1764311334000000000, 2**64 - 1, 2**80])
def test_epoch_sampler_takes_a_seed_of_any_size(seed: int) -> None:
    drawn = [batches(EpochSampler(50, batch_size=50, seed=seed + more), epoch=3) for more in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_samplers_take_numbers_of_numpy() -> None:
    numbers: dict[str, Any] = {"seed": np.int64(3), "num_replicas": np.int64(1), "rank": np.int64(0)}
    for sampler in (
        EpochSampler(np.int64(8), batch_size=np.int64(4), **numbers),
        make(people=np.int64(4), pairs=np.int64(2), **numbers),
    ):
        plain = [sampler.seed, sampler.batch_size, sampler.length, sampler.num_replicas, sampler.rank]
        assert [type(number) for number in plain] == [int] * 5
        assert len(batches(sampler)) == len(sampler)


@pytest.mark.parametrize("name", ["batch_size", "seed", "num_replicas", "rank"])
def test_epoch_sampler_number_that_is_not_whole_is_refused_by_name(name: str) -> None:
    given: dict[str, Any] = {"batch_size": 4, name: 1.0}
    with pytest.raises(TypeError, match=f"{name} is 1.0, expected a whole number"):
        EpochSampler(8, **given)


@pytest.mark.parametrize(("name", "said"), [("people", "identities_per_batch"), ("pairs", "pairs_per_identity")])
def test_identity_sampler_number_that_is_not_whole_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(TypeError, match=f"{said} is 2.0, expected a whole number"):
        make(**{name: 2.0})


def test_epoch_sampler_processes_share_every_batch() -> None:
    whole = batches(EpochSampler(24, batch_size=6, seed=2), epoch=1)
    shares = [batches(EpochSampler(24, batch_size=6, seed=2, num_replicas=3, rank=rank), epoch=1) for rank in range(3)]
    for index, batch in enumerate(whole):
        parts = [share[index] for share in shares]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert sorted(index for part in parts for index in part) == sorted(batch)


@pytest.mark.parametrize(
    ("batch_size", "words"),
    [(0, "expected at least 1"), (-1, "expected at least 1"), (11, "but the dataset has 10 items; give at most 10")],
)
def test_epoch_sampler_batch_that_does_not_fit_raises(batch_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size}, {words}"):
        EpochSampler(10, batch_size=batch_size)


def test_epoch_sampler_processes_that_do_not_divide_the_batch_raise() -> None:
    with pytest.raises(
        ValueError, match="batch_size 5 is not divisible by the 2 processes; give a multiple of 2, such as 4 or 6"
    ):
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


IDS = [0] * 7 + [5] * 4 + [9] * 3 + [2] * 1 + [3] * 4 + [8] * 9


def make(ids: Any = IDS, *, people: int = 3, pairs: int = 2, **settings: Any) -> IdentitySampler:
    return IdentitySampler(ids, identities_per_batch=people, pairs_per_identity=pairs, **settings)


def most_batches_by_trying(groups: list[int], people: int) -> int:
    """The largest number of rounds of `people` different identities, taking the fullest each time."""
    groups, rounds = sorted(groups), 0
    while len(groups) >= people and groups[-people] > 0:
        groups = sorted(groups[:-people] + [group - 1 for group in groups[-people:]])
        rounds += 1
    return rounds


@settings(max_examples=150)
@given(
    ids=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    people=st.integers(1, 6),
    pairs=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_identity_sampler_every_batch_has_p_identities_of_k_pairs(
    ids: list[int], people: int, pairs: int, epoch: int
) -> None:
    people = min(people, len(set(ids)))
    sampler = make(ids, people=people, pairs=pairs)
    drawn = batches(sampler, epoch=epoch)
    counts = Counter(ids)
    groups = [-(-count // pairs) for count in counts.values()]
    assert len(drawn) == len(sampler) == most_batches_by_trying(groups, people)
    for batch in drawn:
        owners = Counter(ids[index] for index in batch)
        assert len(owners) == people
        assert set(owners.values()) == {pairs}
        for owner in owners:
            own = [index for index in batch if ids[index] == owner]
            assert len(set(own)) == min(pairs, counts[owner])  # none twice where there are enough


def test_identity_sampler_an_epoch_draws_every_pair_where_groups_come_out_even() -> None:
    ids = [pid for pid in range(6) for _ in range(4)]
    drawn = batches(make(ids, people=3, pairs=2))
    assert sorted(index for batch in drawn for index in batch) == list(range(24))


def test_identity_sampler_pairs_left_out_differ_between_epochs() -> None:
    ids = [pid for pid in range(7) for _ in range(2)]  # 7 groups of 2, batches of 2 groups: one is left out
    missing = set()
    for epoch in range(40):
        drawn = {index for batch in batches(make(ids, people=2, pairs=2), epoch=epoch) for index in batch}
        missing |= set(range(14)) - drawn
    assert missing == set(range(14))


def test_identity_sampler_order_depends_on_seed_and_epoch_alone() -> None:
    one, other = make(seed=4), make(torch.tensor(IDS), seed=4)
    list(one)
    assert batches(one, epoch=3) == batches(other, epoch=3)
    assert batches(one, epoch=3) != batches(one, epoch=4)
    assert batches(one, epoch=3) != batches(make(seed=5), epoch=3)


def test_identity_sampler_set_position_resumes_exactly_there_once() -> None:
    sampler = make()
    whole = batches(sampler, epoch=2)
    assert len(whole) > 2
    assert batches(sampler, epoch=2, batch=2) == whole[2:]
    assert list(sampler) == whole


def test_identity_sampler_processes_share_every_batch_by_whole_identities() -> None:
    whole = batches(make(people=4), epoch=1)
    shares = [batches(make(people=4, num_replicas=2, rank=rank), epoch=1) for rank in range(2)]
    for index, batch in enumerate(whole):
        assert shares[0][index] + shares[1][index] == batch
        assert all(len({IDS[place] for place in share[index]}) == 2 for share in shares)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"people": 7}, "identities_per_batch is 7, but there are 6 identities; give at most 6"),
        ({"people": 0}, "identities_per_batch is 0, expected at least 1"),
        ({"pairs": 0}, "expected at least 1"),
        ({"num_replicas": 4}, "batch_size 6 is not divisible by the 4 processes"),
        ({"num_replicas": 2, "rank": 2}, "rank is 2, expected 0 to 1"),
        ({"ids": []}, r"person_ids are torch.float32 \(0,\), expected integers \(pairs,\), not empty"),
        ({"ids": [[1, 2]]}, r"expected integers \(pairs,\)"),
        ({"ids": [0.5, 1.0]}, "person_ids are torch.float32"),
    ],
)
def test_identity_sampler_bad_arguments_raise(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**settings)
