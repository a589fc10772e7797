"""Batch samplers that resume anywhere: all pairs in random order, or several of each person."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from promptreid.values import whole_number


class _ResumableSampler(Sampler[list[int]]):
    """Batches of an epoch that depend only on the seed and the epoch's number, from any batch on."""

    def __init__(self, batches: int, share: slice, *, batch_size: int, seed: int, num_replicas: int, rank: int) -> None:
        num_replicas = whole_number("num_replicas", num_replicas, minimum=1)
        rank = whole_number("rank", rank)
        if batch_size % num_replicas:
            below = batch_size - batch_size % num_replicas
            near = " or ".join(str(size) for size in (below, below + num_replicas) if size)
            raise ValueError(
                f"batch_size {batch_size} is not divisible by the {num_replicas} processes; give a multiple of "
                f"{num_replicas}, such as {near}"
            )
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank is {rank}, expected 0 to {num_replicas - 1}")
        self.batch_size = batch_size
        self.seed: int = whole_number("seed", seed)
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch: int = 0
        self.start: int = 0
        self._batches = batches
        self._share = share  # this process's part of a batch

    def __len__(self) -> int:
        """Batches a whole epoch."""
        return self._batches

    def set_position(self, *, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at batch `batch` of epoch `epoch`."""
        self.epoch, self.start = epoch, batch

    def __iter__(self) -> Iterator[list[int]]:
        # A generator takes 64 bits, in which seeds below 0 are counted as here.
        mixed = (self.seed * 1_000_003 + self.epoch) % 2**64
        batches = self._draw(torch.Generator().manual_seed(mixed))
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            yield batches[batch][self._share].tolist()

    def _draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        """The batches of an epoch."""
        raise NotImplementedError


class EpochSampler(_ResumableSampler):
    """Random batches, always the same for one seed and epoch.

    Args:
        length: Items in the dataset.
        batch_size: Items a batch, over all processes.
        seed: Shuffles every epoch together with its number.
        shuffle: Draw a new order each epoch.
        drop_last: Leave out a last batch that is not full.
        num_replicas: Processes; each gets its own slice of every batch.
        rank: This process's number.

    Raises:
        ValueError: The batch is larger than the dataset, or the processes do not divide it or the last one.
        TypeError: A number is not a whole one.

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
        length, batch_size = whole_number("length", length), whole_number("batch_size", batch_size, minimum=1)
        if batch_size > length:
            raise ValueError(f"batch_size is {batch_size}, but the dataset has {length} items; give at most {length}")
        full, last = divmod(length, batch_size)
        share = slice(rank, None, num_replicas)
        batches = full + (last > 0 and not drop_last)
        super().__init__(batches, share, batch_size=batch_size, seed=seed, num_replicas=num_replicas, rank=rank)
        if not drop_last and last % num_replicas:
            raise ValueError(
                f"the last batch has {last} items, which cannot be divided among {num_replicas} processes; "
                "set drop_last=True"
            )
        self.length = length
        self.shuffle = shuffle
        self.drop_last = drop_last

    def _draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        return order.split(self.batch_size)


class IdentitySampler(_ResumableSampler):
    """Identity-balanced batches, always the same for one seed and epoch.

    Each batch holds P different identities and K pairs of each. An epoch draws every pair about once: an identity's
    pairs are shuffled and cut into groups of K, the last one filled with others of its pairs (the same again where it
    has fewer than K), and groups are dealt to batches so that none has an identity twice. Groups too many for full
    batches are left out, other ones in each epoch.

    It has the interface of `EpochSampler`; each process gets whole identities where P can be divided among them.

    Args:
        person_ids: Identity of each pair, such as `CaptionedImages.pair_person_ids`.
        identities_per_batch: P, over all processes.
        pairs_per_identity: K.
        seed: Shuffles every epoch together with its number.
        num_replicas: Processes; each gets its own share of every batch.
        rank: This process's number.

    Attributes:
        batch_size: P times K.

    Raises:
        ValueError: There are fewer identities than P, a number is not positive, or processes do not divide the batch.
        TypeError: A number is not a whole one.

    Example:
        >>> sampler = IdentitySampler([0, 0, 0, 1, 1, 2, 2, 2], identities_per_batch=2, pairs_per_identity=2)
        >>> len(sampler), sampler.batch_size
        (2, 4)
    """

    def __init__(
        self,
        person_ids: Sequence[int] | Tensor,
        *,
        identities_per_batch: int,
        pairs_per_identity: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        ids = torch.as_tensor(person_ids)
        if ids.ndim != 1 or ids.is_floating_point() or len(ids) == 0:
            raise ValueError(f"person_ids are {ids.dtype} {tuple(ids.shape)}, expected integers (pairs,), not empty")
        identities_per_batch = whole_number("identities_per_batch", identities_per_batch, minimum=1)
        pairs_per_identity = whole_number("pairs_per_identity", pairs_per_identity, minimum=1)
        _, inverse, counts = ids.unique(return_inverse=True, return_counts=True)
        if identities_per_batch > len(counts):
            raise ValueError(
                f"identities_per_batch is {identities_per_batch}, but there are {len(counts)} identities; give at most "
                f"{len(counts)}"
            )
        batch_size = identities_per_batch * pairs_per_identity
        groups = (counts + pairs_per_identity - 1) // pairs_per_identity
        batches = _most_batches(groups, identities_per_batch)
        part = batch_size // max(1, num_replicas)
        share = slice(rank * part, (rank + 1) * part)
        super().__init__(batches, share, batch_size=batch_size, seed=seed, num_replicas=num_replicas, rank=rank)
        self.length: int = len(ids)
        self.identities_per_batch = identities_per_batch
        self.pairs_per_identity = pairs_per_identity
        self._pairs = inverse.argsort(stable=True)  # pairs sorted by identity …
        self._ends = counts.cumsum(0)  # … and where each identity's end
        self._groups = groups

    def _draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        """The batches of an epoch, (batches, P x K)."""
        batches, people = self._batches, self.identities_per_batch
        groups, owners = self._draw_groups(generator)
        # No identity may have more groups than there are batches; which are too many is drawn, not always the last.
        order = torch.randperm(len(owners), generator=generator)
        order = order[owners[order].argsort(stable=True)]
        rank_in_owner = torch.arange(len(order)) - _starts(owners[order])
        order = order[rank_in_owner < batches]
        surplus = len(order) - batches * people
        dropped = torch.randperm(len(order), generator=generator)[:surplus]
        keep = torch.ones(len(order), dtype=torch.bool)
        keep[dropped] = False
        order = order[keep]
        # McNaughton's wrap-around rule: identities laid out one after another, in a new order each epoch, and dealt
        # round the batches; an identity with at most as many groups as batches never meets itself.
        shuffled = torch.randperm(len(self._groups), generator=generator)
        order = order[shuffled[owners[order]].argsort(stable=True)]
        dealt = groups[order].view(people, batches, -1).transpose(0, 1)
        mixed: Tensor = dealt.reshape(batches, -1)[torch.randperm(batches, generator=generator)]
        return mixed.unbind()

    def _draw_groups(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each identity's pairs in groups of K, (groups, K), and the identity of each group, (groups,)."""
        size = self.pairs_per_identity
        groups: list[Tensor] = []
        start = 0
        for end in self._ends.tolist():
            pairs = self._pairs[start:end]
            pairs = pairs[torch.randperm(len(pairs), generator=generator)]
            lacking = -len(pairs) % size
            # Filled from the front, which the last group does not overlap if the identity has K pairs or more.
            filling = pairs.repeat(1 + lacking // len(pairs))[:lacking]
            groups.append(torch.cat([pairs, filling]).view(-1, size))
            start = end
        return torch.cat(groups), torch.arange(len(groups)).repeat_interleave(self._groups)


def _most_batches(groups: Tensor, people: int) -> int:
    """The most batches of P different identities: the largest B with sum(min(groups, B)) >= P * B."""
    low, high = 1, max(1, int(groups.sum()) // people)
    while low < high:
        middle = (low + high + 1) // 2
        if int(groups.clamp(max=middle).sum()) >= people * middle:
            low = middle
        else:
            high = middle - 1
    return low


def _starts(sorted_values: Tensor) -> Tensor:
    """For each position the first position that has the same value."""
    return torch.searchsorted(sorted_values, sorted_values)
