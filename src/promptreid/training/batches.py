"""The training data as batches, the same for any number of workers and wherever a run is resumed."""

import random
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from promptreid.data.samplers import EpochSampler
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.interruption import HELD
from promptreid.training.stage import Stage


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of torch's (CPU and this process's GPU), numpy's and Python's generators, as tensors and as JSON."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_initialized():
        tensors["cuda"] = torch.cuda.get_rng_state()  # of one device: asking the others would take memory on each
    version, state, next_gauss = random.getstate()
    return tensors, {"numpy": [name, position, has_gauss, gauss], "python": [version, list(state), next_gauss]}


def set_random_state(tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Set what `random_state` gave; that of a CUDA device only where there is one."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    name, position, has_gauss, gauss = rest["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, state, next_gauss = rest["python"]
    random.setstate((version, tuple(state), next_gauss))


def seed_generators(seed: int) -> None:
    """Seed torch's, numpy's and Python's generators, of which torch's take 64 bits and numpy's 32."""
    torch.manual_seed(seed % 2**64)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def preserved_randomness() -> Generator[None, None, None]:
    """Put the generators back afterwards, so that what is drawn inside changes nothing outside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(*state)


class SeededItems(Dataset[dict[str, Tensor]]):
    """A dataset whose items are drawn from their own seed in each epoch.

    Augmentation then depends only on seed, epoch and index: not on the number of workers or processes, nor on where
    a killed run was resumed.

    Args:
        dataset: The items.
        seed: Seed of the run.
    """

    def __init__(self, dataset: Dataset[dict[str, Tensor]], *, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Items of a batch; DataLoader asks for them like this, and the generators are put back once, not each time."""
        with preserved_randomness():
            return [self._draw(index) for index in indices]

    def _draw(self, index: int) -> dict[str, Tensor]:
        # SeedSequence mixes the three numbers, so neighbours share nothing. Only the CPU's generator of torch is
        # seeded: torch.manual_seed would reset the GPU's, which dropout draws from.
        words = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(4)
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(int(words[2]))
        random.seed(int(words[3]))
        return self.dataset[index]


def comparing_losses(stage: Stage) -> list[str]:
    """Names of the losses that need several persons in a batch: their attribute `fewest_persons` says so."""
    return [name for name, loss in stage.losses.items() if getattr(loss, "fewest_persons", 1) > 1]


def check_persons_per_batch(sampler: Any, stages: Sequence[Stage]) -> None:
    """Refuse a sampler whose batches hold one person each where a loss tells the persons of a batch apart.

    Raises:
        ValueError: The sampler draws one identity per batch, and a loss needs several persons.
    """
    if getattr(sampler, "identities_per_batch", None) == 1:
        for stage in stages:
            if names := comparing_losses(stage):
                raise ValueError(
                    f"{type(sampler).__name__} has identities_per_batch=1, but the loss {names[0]!r} of stage "
                    f"{stage.name!r} tells the persons of a batch apart and learns nothing from one; give at least 2"
                )


def report_one_person(names: Sequence[str], entry: Mapping[str, Any], *, batches: int, warn: bool) -> None:
    """Refuse an epoch whose every batch held only one person, and warn of one in which some did.

    Args:
        names: The losses that cannot learn from them.
        entry: The epoch's, with their number.
        batches: Of the epoch.
        warn: Whether this process warns.

    Raises:
        ValueError: All batches of the epoch held only one person.
    """
    alone = entry["one_person_batches"]
    words = (
        f"{alone} of {batches} batches in epoch {entry['epoch']} of stage {entry['stage']!r} held only one person, "
        f"from which {', '.join(names)} cannot learn to tell persons apart; give a larger batch_size, or "
        "make_sampler=partial(IdentitySampler, …), which draws several persons a batch"
    )
    if alone == batches:
        raise ValueError(words)
    if warn:
        warnings.warn(words, stacklevel=3)


def check_training_data(dataset: Any, stages: Sequence[Stage], *, batch_size: int) -> None:
    """Refuse batches too small for the stages' losses, and persons that these cannot tell apart.

    Args:
        dataset: Its attribute `pair_person_ids` or `person_ids`, if it has one, holds the labels of its images or
            items; of a `Subset`, that of the dataset it is drawn from.
        stages: The stages.
        batch_size: Pairs per batch; a loss that needs several says so in its attribute `smallest_batch`.

    Raises:
        ValueError: A batch is too small, or there are fewer than two persons, or labels out of a loss's range.
    """
    for stage in stages:
        for name, loss in stage.losses.items():
            if batch_size < getattr(loss, "smallest_batch", 1):
                raise ValueError(
                    f"batch_size is {batch_size}, but the loss {name!r} of stage {stage.name!r} compares the pairs of "
                    f"a batch and learns nothing from so few; give at least {loss.smallest_batch}"
                )
    person_ids = _known_labels(dataset)
    if person_ids is None or person_ids.numel() == 0:
        return
    if len(torch.unique(person_ids)) < 2:
        raise ValueError(
            f"train_data holds {len(torch.unique(person_ids))} identity; telling persons apart needs at least 2"
        )
    for stage in stages:
        stage.check_labels(person_ids)


def _known_labels(dataset: Any) -> Tensor | None:
    """The labels that a dataset says it has, or those of a subset's items."""
    indices: list[int] | None = None
    while (labels := _own_labels(dataset)) is None:
        if type(dataset) is not Subset:  # one of another class may give its items other labels
            return None
        subset: Any = cast(Any, dataset)
        indices = [int(subset.indices[index]) for index in (range(len(subset)) if indices is None else indices)]
        dataset = subset.dataset
    if not isinstance(labels, Tensor) or indices is None:
        return labels if isinstance(labels, Tensor) else None
    return labels[indices] if len(labels) == len(dataset) else None  # those of images do not say whose an item is


def _own_labels(dataset: Any) -> Any:
    labels = getattr(dataset, "pair_person_ids", getattr(dataset, "person_ids", None))
    if isinstance(dataset, Subset) and isinstance(labels, Tensor) and len(labels) != len(cast(Any, dataset)):
        return None  # those of the whole dataset, as of a subset that passes attributes on
    return labels


BATCH_KEYS = ("images", "tokens", "person_ids")  # what a step takes, in this order


def batch_keys(model: PromptedCLIP) -> tuple[str, ...]:
    """The entries of a batch that a step takes, in its order: with grouped prompts one more."""
    return (*BATCH_KEYS, "groups") if model.groups else BATCH_KEYS


class BatchSampler(Protocol):
    """Draws the batches, as the samplers of `promptreid.data.samplers` do."""

    batch_size: int

    def __len__(self) -> int:
        """Number of batches in a whole epoch."""
        ...

    def __iter__(self) -> Iterator[list[int]]:
        """This process's share of each batch, as indices."""
        ...

    def set_position(self, *, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at batch `batch` of epoch `epoch`."""
        ...


MakeSampler = Callable[..., BatchSampler]


class Batches:
    """Batches of a dataset for one of several processes.

    Args:
        dataset: Items with `"images"`, `"tokens"` and `"person_ids"`.
        batch_size: Pairs per batch, over all processes.
        seed: Seed of order and augmentation.
        make_sampler: Makes the sampler from `seed`, `num_replicas` and `rank`; `EpochSampler` over all items if None.
        num_workers: Processes that load data.
        num_replicas: Processes that train.
        rank: This process's number.
        pin_memory: Load into memory that a GPU copies from faster.
        steps_per_epoch: Batches after which an epoch ends, if there are more; all if None.
        keys: What items must have.

    Raises:
        ValueError: There are no items or they cannot be counted, an item lacks something, its label is not a whole
            number, or the sampler cannot make such batches.
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
        steps_per_epoch: int | None = None,
        keys: Sequence[str] = BATCH_KEYS,
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
        self._length = min(len(self.sampler), steps_per_epoch or len(self.sampler))
        self.items: SeededItems = SeededItems(dataset, seed=seed)
        _check_item(self.items[0], keys)
        self._loader = DataLoader(
            self.items,
            batch_sampler=cast(Any, self.sampler),
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else the loader draws from the generator that dropout draws from
            worker_init_fn=_leave_signals_to_the_trainer,
        )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._length

    def epoch(self, number: int, *, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch from batch `start` on.

        Raises:
            ValueError: A label is not a whole number.
        """
        self.items.epoch = number
        self.sampler.set_position(epoch=number, batch=start)
        yield from map(_with_labels, islice(self._loader, len(self) - start))

    def settings(self) -> dict[str, Any]:
        """The settings that must match a checkpoint's to resume from it."""
        return {
            "batch_size": self.sampler.batch_size,
            "batches": len(self),
            "items": len(self.items),
            "sampler": type(self.sampler).__name__,
        }


def _length(dataset: Any) -> int:
    length = len(cast(Sized, dataset)) if hasattr(dataset, "__len__") else None
    if not length:
        found = "no length" if length is None else "no items"
        raise ValueError(f"train_data, a {type(dataset).__name__}, has {found}; expected two or more, by index")
    return length


def _check_item(item: Mapping[str, Any], keys: Sequence[str]) -> None:
    missing = [name for name in keys if name not in item]
    if missing == ["groups"]:
        raise ValueError(
            "items of train_data lack groups, and the model's prompts are grouped; make it with CaptionedImages(..., "
            "groups=model.groups), or give each item the position of its camera in model.groups, () int64"
        )
    if missing:
        raise ValueError(
            f"items of train_data lack {', '.join(missing)}; expected dictionaries of tensors with images (3, H, W), "
            "tokens (L,) and person_ids (), such as those of CaptionedImages"
        )
    _check_label(item["person_ids"])


def _check_label(label: Any) -> None:
    """Refuse what is not the whole number of one person; of any kind, as batches have int64."""
    try:
        known = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        found = repr(label)
    else:
        if known.ndim == 0 and not (known.is_floating_point() or known.is_complex() or known.dtype == torch.bool):
            return
        found = f"{known.dtype} of shape {tuple(known.shape)}"
    raise ValueError(
        f"items of train_data have person_ids {found}, expected a whole number each, () int64; ReIDSplit.labels maps "
        "an annotation's identities to labels"
    )


def _with_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    _check_label(batch["person_ids"][0])
    return {**batch, "person_ids": batch["person_ids"].long()}


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C in a terminal reaches every process; a worker that died of it would interrupt the current step.
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
