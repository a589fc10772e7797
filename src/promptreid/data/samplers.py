"""Batches of indices that a killed run can go on from exactly."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[list[int]]):
    """Random batches, the same for the same seed and epoch whatever came before.

    Args:
        length: Items in the data set.
        batch_size: Items a batch, over all processes.
        seed: Shuffles every epoch together with its number.
        shuffle: Draw a new order each epoch.
        drop_last: Leave out a last batch that is not full.
        num_replicas: Processes; each gets its own slice of every batch.
        rank: This process's number.

    Raises:
        ValueError: The batch is larger than the data set, or the processes do not divide it or the last one.

    Example:
        >>> sampler = EpochSampler(5, batch_size=2, seed=0)
        >>> sampler.set_position(epoch=3, batch=1)
        >>> len(list(sampler)), len(sampler)
        (1, 2)
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if batch_size < 1 or batch_size > length:
            raise ValueError(f"batch_size is {batch_size}, but the data set has {length} items; give 1 to {length}")
        if batch_size % num_replicas:
            raise ValueError(f"batch_size {batch_size} is not divisible by the {num_replicas} processes")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank is {rank}, expected 0 to {num_replicas - 1}")
        last = length % batch_size
        if not drop_last and last % num_replicas:
            raise ValueError(
                f"the last batch has {last} items, which cannot be divided among {num_replicas} processes; "
                "set drop_last=True"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch: int = 0
        self.start: int = 0

    def __len__(self) -> int:
        """Batches a whole epoch."""
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_position(self, *, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at batch `batch` of epoch `epoch`."""
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.length))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield whole[self.rank :: self.num_replicas]
