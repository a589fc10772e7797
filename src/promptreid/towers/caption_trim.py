"""Cuts batches of captions to the longest one, where no feature changes by it."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.towers.growth import keep_positions
from promptreid.towers.modes import ThreadValue
from promptreid.towers.tower import TextTower


class CaptionTrim:
    """Cuts the batches of a text tower to their longest caption, where no feature changes by it.

    In towers that take one length of tokens it is a hook at the blocks' container. It does not stand at the first
    block, so that a block recomputed by gradient checkpointing gets the same sequence and mask again.

    Args:
        tower: The tower.
    """

    def __init__(self, tower: TextTower) -> None:
        self.tower = tower
        self._length = ThreadValue()
        self._handle: Any = None
        if tower.trim in ("end", "class_at_end"):
            # In front of other hooks, because prompts count the positions that are left.
            self._handle = tower.container.register_forward_pre_hook(self._cut, prepend=True, with_kwargs=True)

    @contextmanager
    def cut(self, tokens: Tensor) -> Generator[Tensor, None, None]:
        """Give the tokens to encode inside the block, cut or with the tower set to cut them itself.

        Shape:
            - tokens: (B, L) int64
        """
        longest = self.tower.longest_caption(tokens)
        if self.tower.trim == "slice":
            yield tokens[:, :longest]
        else:
            with self._length.held(longest):
                yield tokens

    def remove(self) -> None:
        """Take the hook out."""
        if self._handle is not None:
            self._handle.remove()

    def _cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        length: int | None = self._length.get()
        if length is None:
            return None
        sequence: Tensor = args[0]
        full = sequence.shape[1]
        kept = list(range(min(length, full)))
        if self.tower.trim == "class_at_end":
            # open_clip's mask of the padding is shifted by one position, so one position of padding is seen as well.
            kept = [*range(min(length + 1, full - 1)), full - 1]
        if len(kept) == full:
            return None
        index = torch.tensor(kept, device=sequence.device)
        cut = {name: keep_positions(value, index, length=full) for name, value in kwargs.items()}
        rest = (keep_positions(value, index, length=full) for value in args[1:])
        return (sequence.index_select(1, index), *rest), cut
