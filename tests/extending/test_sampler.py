"""The sampler of docs/training.md."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
PERSONS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6])


@pytest.fixture
def make():
    text = PAGE.read_text(encoding="utf-8").split("\n## Your own sampler\n")[1].split("\n## ")[0]
    [code] = re.findall(r"^(import torch\n.*?)^\n\ntrainer = ", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(code, f"{PAGE.name}, a sampler", "exec"), names)
    return partial(names["OnePairEach"], PERSONS, persons_per_batch=4, seed=3)


def test_no_person_occurs_twice_in_a_batch_and_epochs_differ(make):
    sampler = make(num_replicas=1, rank=0)
    epochs = []
    for epoch in range(20):
        sampler.set_position(epoch=epoch)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler) == 1
        assert all(len(set(PERSONS[batch].tolist())) == len(batch) == 4 for batch in epochs[-1])
    assert len({str(batches) for batches in epochs}) > 10
    assert {pair for batches in epochs for batch in batches for pair in batch} == set(range(len(PERSONS)))


def test_epoch_continues_at_any_batch_as_it_would_have(make):
    whole, resumed = (make(persons_per_batch=2, num_replicas=1, rank=0) for _ in range(2))
    whole.set_position(epoch=5)
    resumed.set_position(epoch=5, batch=2)
    batches = list(whole)
    assert len(batches) == 3
    assert list(resumed) == batches[2:]


def test_processes_share_each_batch(make):
    whole = list(make(num_replicas=1, rank=0))
    parts = [list(make(num_replicas=2, rank=rank)) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
