"""Where randomness stands, to save and to set again; and items drawn the same whoever draws them."""

import random
from collections.abc import Generator, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


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


@contextmanager
def preserved_randomness() -> Generator[None, None, None]:
    """Put the generators back afterwards, so that what runs inside changes nothing outside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(*state)


class SeededItems(Dataset[dict[str, Tensor]]):
    """A data set whose items are drawn from a seed of their own in each epoch.

    Augmentation then depends on seed, epoch and index alone: not on the number of workers or processes, nor on where
    a killed run went on.

    Args:
        dataset: The items.
        seed: Of the run.
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
        torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            return [self._draw(index) for index in indices]
        finally:
            torch.set_rng_state(torch_state)
            np.random.set_state(numpy_state)
            random.setstate(python_state)

    def _draw(self, index: int) -> dict[str, Tensor]:
        self._seed(index)
        return self.dataset[index]

    def _seed(self, index: int) -> None:
        # SeedSequence mixes the three numbers, so neighbours share nothing. Only the CPU's generator of torch is
        # seeded: torch.manual_seed would reset the GPU's, which dropout draws from.
        words = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(4)
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(int(words[2]))
        random.seed(int(words[3]))
