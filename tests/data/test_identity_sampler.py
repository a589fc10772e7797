"""IdentitySampler: P identities of K pairs, shared among processes, gone on with exactly."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptreid.data.samplers import IdentitySampler

IDS = [0] * 7 + [5] * 4 + [9] * 3 + [2] * 1 + [3] * 4 + [8] * 9


def make(ids: Any = IDS, *, people: int = 3, pairs: int = 2, **settings: Any) -> IdentitySampler:
    return IdentitySampler(ids, identities_per_batch=people, pairs_per_identity=pairs, **settings)


def batches(sampler: IdentitySampler, *, epoch: int = 0, batch: int = 0) -> list[list[int]]:
    sampler.set_position(epoch=epoch, batch=batch)
    return list(sampler)


def most_batches_by_trying(groups: list[int], people: int) -> int:
    """The largest number of rounds of `people` different identities, taking the fullest each time."""
    groups, rounds = sorted(groups), 0
    while len(groups) >= people and groups[-people] > 0:
        groups = sorted(groups[:-people] + [group - 1 for group in groups[-people:]])
        rounds += 1
    return rounds


@settings(max_examples=150, deadline=None)
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


def test_identity_sampler_set_position_goes_on_exactly_there_once() -> None:
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
        ({"people": 7}, "identities_per_batch is 7, but there are 6 identities"),
        ({"people": 0}, "identities_per_batch is 0 and pairs_per_identity 2, expected at least 1"),
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
