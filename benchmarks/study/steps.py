"""Budgets in steps: rounds of equal length, whatever the number of pairs."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptreid.data.dataset import CaptionedImages


def split_steps(steps: int, *, about: int) -> tuple[int, int]:
    """How many rounds of how many steps come nearest to `steps` with rounds of about `about`.

    Example:
        >>> split_steps(240, about=60), split_steps(250, about=60)
        ((4, 60), (4, 62))
    """
    rounds = max(1, round(steps / about))
    return rounds, max(1, round(steps / rounds))


class Repeated(Dataset[dict[str, Tensor]]):
    """Pairs several times over: each time has an index of its own, so the trainer augments it differently.

    Args:
        pairs: The pairs.
        steps: Batches that a round takes from them.
        batch_size: Pairs a batch.
    """

    def __init__(self, pairs: CaptionedImages, *, steps: int, batch_size: int) -> None:
        self.pairs = pairs
        self.times = -(-steps * batch_size // len(pairs)) + 1  # a round may begin and end within a pass

    @property
    def person_ids(self) -> Tensor:
        """Labels of the images."""
        return self.pairs.person_ids

    def __len__(self) -> int:
        return self.times * len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.pairs[index % len(self.pairs)]


class StepSampler:
    """Batches for rounds of a given number of steps; passes over the pairs follow one another without a break.

    So a training set of one hundredth gets as many steps as the whole one, and a batch may hold a pair twice if
    there are fewer pairs than it holds. The same for the same seed, wherever a run resumes. Indices are those of
    `Repeated`: pass by pass within a round.

    Args:
        length: Pairs.
        batch_size: Pairs a batch.
        steps: Batches a round, which the trainer calls an epoch.
        seed: Of the order.
        num_replicas: Processes; each gets its slice of every batch.
        rank: This process's number.
    """

    def __init__(
        self, length: int, *, batch_size: int, steps: int, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        if min(length, batch_size, steps) < 1 or batch_size % num_replicas:
            raise ValueError(
                f"length is {length}, batch_size {batch_size} and steps {steps} for {num_replicas} processes; expected "
                "at least 1 of each, and batches that divide by the processes"
            )
        self.length = length
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Batches a round."""
        return self.steps

    def set_position(self, *, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at batch `batch` of round `epoch`."""
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        first = self.epoch * self.steps
        for batch in range(first + start, first + self.steps):
            positions = range(batch * self.batch_size + self.rank, (batch + 1) * self.batch_size, self.num_replicas)
            yield [self._index(position, first_pass=first * self.batch_size // self.length) for position in positions]

    def _index(self, position: int, *, first_pass: int) -> int:
        number, within = divmod(position, self.length)
        return (number - first_pass) * self.length + _order(self.length, self.seed, number)[within]


@lru_cache(maxsize=2)
def _order(length: int, seed: int, number: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randperm(length, generator=generator).tolist()
