"""What the blocks of a text tower are told of the captions of one batch, and the hooks that act on it.

It is known only outside the blocks, so it reaches them through context variables: each thread has its own. The hooks
stand at the blocks' container and not at the first block, so that a block recomputed by gradient checkpointing is
given the same sequence and mask again.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.prompts.switch import Switch
from promptreid.towers.families.text_towers import caption_end
from promptreid.towers.growth import keep_positions, mask_before_end
from promptreid.towers.tower import TextTower

_kept_lengths: ContextVar[tuple[tuple[int, int], ...]] = ContextVar("promptreid_kept_lengths", default=())
_caption_ends: ContextVar[tuple[tuple[int, Tensor], ...]] = ContextVar("promptreid_caption_ends", default=())


@contextmanager
def trimmed(switch: Switch, length: int) -> Generator[None, None, None]:
    """Let a tower see only the first `length` places inside the block, in the calling thread alone."""
    token = _kept_lengths.set((*_kept_lengths.get(), (switch.key, length)))
    try:
        yield
    finally:
        _kept_lengths.reset(token)


class TrimSequence:
    """Forward pre-hook of the blocks' container: cuts the batch to its longest caption."""

    def __init__(self, switch: Switch, tower: TextTower) -> None:
        self.switch = switch
        self.tower = tower

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the container's arguments, cut."""
        lengths = [length for key, length in _kept_lengths.get() if key == self.switch.key]
        if not lengths:
            return None
        sequence: Tensor = args[0]
        full = sequence.shape[1]
        kept = list(range(min(lengths[-1], full)))
        if self.tower.trim == "class_at_end":
            # open_clip's mask of the padding is shifted by one place, so one place of padding is seen as well.
            kept = [*range(min(lengths[-1] + 1, full - 1)), full - 1]
        if len(kept) == full:
            return None
        index = torch.tensor(kept, device=sequence.device)
        cut = {name: keep_positions(value, index, length=full) for name, value in kwargs.items()}
        rest = (keep_positions(value, index, length=full) for value in args[1:])
        return (sequence.index_select(1, index), *rest), cut


class NoteCaptionEnds:
    """Forward pre-hook of the token embedding: remembers where the captions of this batch end."""

    def __init__(self, switch: Switch, tower: TextTower) -> None:
        self.switch = switch
        self.tower = tower

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take note of the caption ends."""
        others = tuple(entry for entry in _caption_ends.get() if entry[0] != self.switch.key)
        _caption_ends.set((*others, (self.switch.key, caption_end(self.tower, args[0]))))


class HidePromptsBeforeEnd:
    """Forward pre-hook of the blocks' container: lets prompts act as if they stood right before the caption's end.

    Prompts carry no position, so where they stand is only a matter of who sees whom. They are put in after the start
    token as ever, and this mask, one for each caption, shows them to the end token alone and what follows it.
    """

    def __init__(self, switch: Switch, tower: TextTower, *, count: int, heads: int) -> None:
        self.switch = switch
        self.tower = tower
        self.count = count
        self.heads = heads

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the container's arguments with a mask that has room for the prompts."""
        ends = [end for key, end in _caption_ends.get() if key == self.switch.key]
        if not ends or not self.switch.on:
            return None
        sequence: Tensor = args[0]
        mask = mask_before_end(ends[0], length=sequence.shape[1], slot=self.tower.slot, count=self.count)
        mask = mask.repeat_interleave(self.heads, dim=0).to(sequence.dtype)
        return (sequence,), {**kwargs, "attn_mask": mask}
