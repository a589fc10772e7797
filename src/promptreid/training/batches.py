"""The training data as batches, the same whatever the number of workers and wherever a run goes on."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from promptreid.data.samplers import EpochSampler
from promptreid.training.randomness import SeededItems

NEEDED = ("images", "tokens", "person_ids")


class BatchSampler(Protocol):
    """What draws the batches; the samplers of `promptreid.data.samplers` do."""

    batch_size: int

    def __len__(self) -> int:
        """Batches a whole epoch."""
        ...

    def __iter__(self) -> Iterator[list[int]]:
        """This process's share of each batch, as indices."""
        ...

    def set_position(self, *, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at batch `batch` of epoch `epoch`."""
        ...


MakeSampler = Callable[..., BatchSampler]


class Batches:
    """Batches of a data set for one of several processes.

    Args:
        dataset: Items with `"images"`, `"tokens"` and `"person_ids"`.
        batch_size: Pairs a batch, over all processes.
        seed: Of order and augmentation.
        make_sampler: Makes the sampler from `seed`, `num_replicas` and `rank`; `EpochSampler` over all items if None.
        num_workers: Processes that load data.
        num_replicas: Processes that train.
        rank: This process's number.
        pin_memory: Load into memory that a GPU copies from faster.

    Raises:
        ValueError: There are no items or they cannot be counted, an item lacks something, or the sampler cannot make
            such batches.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Tensor]],
        *,
        batch_size: int,
        seed: int,
        make_sampler: MakeSampler | None = None,
        num_workers: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        pin_memory: bool = False,
    ) -> None:
        length = _length(dataset)
        make = partial(EpochSampler, length, batch_size=batch_size) if make_sampler is None else make_sampler
        self.sampler: BatchSampler = make(seed=seed, num_replicas=num_replicas, rank=rank)
        if self.sampler.batch_size != batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but the sampler makes batches of {self.sampler.batch_size}; give both "
                "the same"
            )
        if len(self.sampler) < 1:
            raise ValueError(f"the sampler makes no batch of {batch_size} from {length} items")
        self.items: SeededItems = SeededItems(dataset, seed=seed)
        _check_item(self.items[0])
        self._loader = DataLoader(
            self.items,
            batch_sampler=cast(Any, self.sampler),
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else the loader draws from the generator that dropout draws from
            worker_init_fn=_leave_signals_to_the_trainer,
        )

    def __len__(self) -> int:
        """Batches a whole epoch."""
        return len(self.sampler)

    def epoch(self, number: int, *, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch from batch `start` on."""
        self.items.epoch = number
        self.sampler.set_position(epoch=number, batch=start)
        yield from self._loader

    def settings(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint to go on from it."""
        return {
            "batch_size": self.sampler.batch_size,
            "batches": len(self.sampler),
            "items": len(self.items),
            "sampler": type(self.sampler).__name__,
        }


def _length(dataset: Any) -> int:
    length = len(cast(Sized, dataset)) if hasattr(dataset, "__len__") else None
    if not length:
        how_many = "no length" if length is None else "no items"
        raise ValueError(f"train_data, a {type(dataset).__name__}, has {how_many}; expected two or more, by index")
    return length


def _check_item(item: Mapping[str, Any]) -> None:
    missing = [name for name in NEEDED if name not in item]
    if missing:
        raise ValueError(
            f"items of train_data lack {', '.join(missing)}; expected dictionaries of tensors with images (3, H, W), "
            "tokens (L,) and person_ids (), such as those of CaptionedImages"
        )


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C in a terminal reaches every process; a worker that died of it would break the step under way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
