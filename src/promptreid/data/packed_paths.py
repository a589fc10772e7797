"""Many paths as two tensors, which loader workers share instead of copying."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch


class PackedPaths:
    """A sequence of paths that holds no Python object for each.

    A list of paths is copied into every worker piece by piece, because counting references writes to it; tensors are
    shared, whether workers are forked or spawned.

    Args:
        paths: The paths.

    Example:
        >>> packed = PackedPaths([Path("imgs/a.jpg"), Path("imgs/b.jpg")])
        >>> packed[1], len(packed)
        ('imgs/b.jpg', 2)
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
        lengths = torch.tensor([0, *(len(path) for path in encoded)], dtype=torch.int64)
        self._ends = lengths.cumsum(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index : index + 2].tolist()
        return os.fsdecode(self._bytes[start:end].numpy().tobytes())
