"""Generators saved and set, and items that depend on seed, epoch and index alone."""

import json
import random
from typing import Any

import numpy as np
import torch

from promptreid.training.batches import SeededItems, preserved_randomness, random_state, set_random_state


def draw() -> tuple[float, float, float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), float(np.random.randn()), random.random(), random.gauss(0, 1)


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
