"""Batches: data that cannot be trained on is refused, and items depend on seed, epoch and index alone."""

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.batches import (
    Batches,
    SeededItems,
    check_training_data,
    preserved_randomness,
    random_state,
    set_random_state,
)
from promptreid.training.recipe import TwoStageSchedule


def test_training_data_of_one_person_is_refused(model: PromptedCLIP) -> None:
    schedule = TwoStageSchedule(model, num_identities=3)
    with pytest.raises(ValueError, match="train_data holds 1 identity; telling persons apart needs at least 2"):
        check_training_data(SimpleNamespace(person_ids=torch.zeros(5, dtype=torch.int64)), schedule, batch_size=4)


@pytest.mark.parametrize("labels", [[0, 1, 3], [-1, 0, 1]])
def test_training_data_with_labels_out_of_range_is_refused(model: PromptedCLIP, labels: list[int]) -> None:
    schedule = TwoStageSchedule(model, num_identities=3)
    message = rf"loss 'identity' of stage 'stage_two', made for num_identities=3: .* from {labels[0]} to {labels[2]}"
    with pytest.raises(ValueError, match=message):
        check_training_data(SimpleNamespace(person_ids=torch.tensor(labels)), schedule, batch_size=4)


def test_training_data_that_does_not_say_its_persons_is_let_through(model: PromptedCLIP) -> None:
    check_training_data(SimpleNamespace(), TwoStageSchedule(model, num_identities=3), batch_size=4)


def nested(dataset: Any) -> Any:
    return Subset(Subset(dataset, range(1, len(dataset))), torch.arange(len(dataset) - 2).flip(0))


@pytest.mark.parametrize("choose", [lambda data: Subset(data, [0, 7, 9]), nested])
def test_training_data_of_a_subset_with_labels_out_of_range_is_refused(
    model: PromptedCLIP, pairs: Any, choose: Any
) -> None:
    with pytest.raises(ValueError, match=r"num_identities=3: person_ids run from 0 to 4"):
        check_training_data(choose(pairs), TwoStageSchedule(model, num_identities=3), batch_size=2)
    check_training_data(choose(pairs), TwoStageSchedule(model, num_identities=5), batch_size=2)


def test_training_data_of_a_subset_is_judged_by_its_own_items(model: PromptedCLIP, pairs: Any) -> None:
    schedule = TwoStageSchedule(model, num_identities=3)
    check_training_data(Subset(pairs, [0, 1, 2, 5]), schedule, batch_size=2)
    with pytest.raises(ValueError, match="train_data holds 1 identity"):
        check_training_data(Subset(pairs, [0, 5]), schedule, batch_size=2)


class PassesOn(Subset):
    """A subset that has the attributes of its dataset."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


def test_training_data_of_a_subset_with_the_attributes_of_the_whole_is_not_judged_by_those(
    model: PromptedCLIP, pairs: Any
) -> None:
    check_training_data(PassesOn(pairs, [0, 1, 2, 5]), TwoStageSchedule(model, num_identities=3), batch_size=2)


def test_training_data_of_a_subset_of_captions_is_judged_by_the_captions(model: PromptedCLIP, pairs: Any) -> None:
    pairs.pair_person_ids, pairs.person_ids = pairs.person_ids, torch.tensor([0, 1, 4])  # of images, as others are
    schedule = TwoStageSchedule(model, num_identities=3)
    check_training_data(Subset(pairs, [5, 6]), schedule, batch_size=2)
    with pytest.raises(ValueError, match="person_ids run from 0 to 3"):
        check_training_data(Subset(pairs, [5, 8]), schedule, batch_size=2)
    del pairs.pair_person_ids
    check_training_data(Subset(pairs, [5, 8]), schedule, batch_size=2)  # nobody knows whose they are


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int64, np.int32, int])
def test_batches_whole_labels_of_any_kind_become_int64(pairs: Any, kind: Any) -> None:
    labels = pairs.person_ids
    pairs.person_ids = labels.to(kind) if isinstance(kind, torch.dtype) else [kind(label) for label in labels]
    batches = Batches(pairs, batch_size=5, seed=0)
    (one, _) = batches.epoch(0)
    assert one["person_ids"].dtype == torch.int64
    assert torch.equal(one["person_ids"], labels[next(iter(batches.sampler))])


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (torch.tensor(1.0), r"torch\.float32 of shape \(\)"),
        (torch.tensor(True), r"torch\.bool of shape \(\)"),
        (torch.tensor([1]), r"torch\.int64 of shape \(1,\)"),
        (0.5, r"torch\.float"),
        ("7", "'7'"),
        (None, "None"),
    ],
)
def test_batches_labels_that_are_not_whole_numbers_are_refused(pairs: Any, label: Any, found: str) -> None:
    pairs.person_ids = [label] * 10
    message = rf"items of train_data have person_ids {found}.*, expected a whole number each, \(\) int64; .*labels maps"
    with pytest.raises(ValueError, match=message):
        Batches(pairs, batch_size=2, seed=0)


def test_batches_a_later_label_that_is_not_a_whole_number_is_refused(pairs: Any) -> None:
    pairs.person_ids = [torch.tensor(0)] * 5 + [torch.tensor(1.5)] * 5
    with pytest.raises(ValueError, match=r"person_ids torch\.float32 of shape \(\), expected a whole number"):
        list(Batches(pairs, batch_size=10, seed=0).epoch(0))


def test_batches_item_without_tokens_is_refused() -> None:
    items: Any = [{"images": torch.zeros(3, 2, 2), "person_ids": torch.tensor(0)}] * 4
    with pytest.raises(ValueError, match="items of train_data lack tokens; expected dictionaries"):
        Batches(items, batch_size=2, seed=0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [([], "train_data, a list, has no items; expected two"), (iter([]), "train_data, a list_iterator, has no length")],
)
def test_batches_nothing_to_count_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(dataset, batch_size=2, seed=0)


def test_batches_processes_that_do_not_divide_the_batch_are_refused(pairs: Any) -> None:
    with pytest.raises(ValueError, match="batch_size 5 is not divisible by the 2 processes"):
        Batches(pairs, batch_size=5, seed=0, num_replicas=2)


def test_batches_draw_with_the_sampler_that_is_asked_for(pairs: Any) -> None:
    class Backwards:
        batch_size = 5

        def __init__(self, *, seed: int, num_replicas: int, rank: int) -> None:
            self.made_with = (seed, num_replicas, rank)
            self.start = 0

        def __len__(self) -> int:
            return 10 // self.batch_size

        def __iter__(self) -> Any:
            order = list(range(10))[::-1]
            return (order[i * self.batch_size :][: self.batch_size] for i in range(self.start, len(self)))

        def set_position(self, *, epoch: int, batch: int = 0) -> None:
            self.start = batch

    with pytest.raises(ValueError, match="batch_size is 4, but the sampler makes batches of 5"):
        Batches(pairs, batch_size=4, seed=7, make_sampler=Backwards)
    batches = Batches(pairs, batch_size=5, seed=7, make_sampler=Backwards)
    assert batches.sampler.made_with == (7, 1, 0)
    (batch,) = batches.epoch(0, start=1)
    assert torch.equal(batch["tokens"], pairs.tokens[[4, 3, 2, 1, 0]])
    assert batches.settings() == {"batch_size": 5, "batches": 2, "items": 10, "sampler": "Backwards"}


def draw() -> tuple[float, float, float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), float(np.random.randn()), random.random(), random.gauss(0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_per_epoch_ends_epochs_early_and_resumes_within(pairs: Any, workers: int) -> None:
    whole = Batches(pairs, batch_size=2, seed=0)
    short = Batches(pairs, batch_size=2, seed=0, steps_per_epoch=3, num_workers=workers)
    assert len(whole) > len(short) == 3
    assert short.settings()["batches"] == 3
    expected = [batch["tokens"] for batch in whole.epoch(1)][:3]
    for start in (0, 2, 3):
        found = [batch["tokens"] for batch in short.epoch(1, start=start)]
        assert len(found) == 3 - start
        assert all(torch.equal(one, other) for one, other in zip(found, expected[start:], strict=True))
    assert len(Batches(pairs, batch_size=2, seed=0, steps_per_epoch=10_000)) == len(whole)


def test_random_state_through_json_gives_the_same_numbers() -> None:
    draw()  # leaves half a pair of normal numbers behind in numpy and Python
    tensors, rest = random_state()
    first = draw()
    draw()
    set_random_state(tensors, json.loads(json.dumps(rest)))
    assert draw() == first


def test_preserved_randomness_hides_what_is_drawn_inside() -> None:
    state = random_state()
    expected = draw()
    set_random_state(*state)
    with preserved_randomness():
        draw()
        draw()
    assert draw() == expected


def test_seeded_items_depend_on_seed_epoch_and_index_alone(pairs: Any) -> None:
    items, again = SeededItems(pairs, seed=3), SeededItems(pairs, seed=3)
    first = items[2]["images"]
    torch.rand(1)
    assert torch.equal(again[2]["images"], first)
    again.epoch = 1
    assert not torch.equal(again[2]["images"], first)
    assert not torch.equal(SeededItems(pairs, seed=4)[2]["images"], first)
    assert len(items) == 10


def test_seeded_items_leave_the_generators_where_they_were(pairs: Any) -> None:
    state = random_state()
    expected = draw()
    set_random_state(*state)
    SeededItems(pairs, seed=3)[0]
    assert draw() == expected


class Relabelled(Subset):
    """Gives the persons of its part new numbers."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.dataset[self.indices[index]]
        return {**item, "person_ids": item["person_ids"] // 10}

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        return [self[index] for index in indices]


class SaysSo(Relabelled):
    @property
    def person_ids(self) -> torch.Tensor:
        return self.dataset.person_ids[torch.tensor(self.indices)] // 10


def test_training_data_of_another_kind_of_subset_is_judged_by_what_it_says_itself(
    model: PromptedCLIP, pairs: Any
) -> None:
    pairs.person_ids = pairs.person_ids * 10
    indices, stages = [0, 1, 4, 9], TwoStageSchedule(model, num_identities=5)
    check_training_data(Relabelled(pairs, indices), stages, batch_size=2)
    check_training_data(Subset(Relabelled(pairs, indices), [0, 1]), stages, batch_size=2)
    check_training_data(SaysSo(pairs, indices), stages, batch_size=2)
    with pytest.raises(ValueError, match=r"num_identities=3: person_ids run from 0 to 4"):
        check_training_data(
            Subset(SaysSo(pairs, indices), [0, 2]), TwoStageSchedule(model, num_identities=3), batch_size=2
        )
