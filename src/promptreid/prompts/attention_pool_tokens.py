"""Prompt tokens inside the attention pool of open_clip's ModifiedResNet."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from promptreid.prompts.config import NORMAL_STD
from promptreid.prompts.kind import PromptKind
from promptreid.towers.tower import AttentionPool, PixelTower, Tower


class AttentionPoolTokens(PromptKind):
    """Learnable tokens that the attention pool attends to beside the image's positions, drawn from N(0, 0.02).

    Args:
        tower: The tower they are for.
        length: P, how many.

    Shape:
        - tokens: (1, P, D) float32

    Raises:
        ValueError: The tower has no attention pool.
    """

    def __init__(self, tower: Tower, length: int) -> None:
        pool = tower.attention_pool if isinstance(tower, PixelTower) else None
        if pool is None:
            raise ValueError(
                f'place is "attention_pool", but this {tower.kind} has none; open_clip\'s ModifiedResNet does (RN50, '
                'RN101, …). Leave place at "auto"'
            )
        super().__init__(tower, length, width=pool.width)
        self._pool: AttentionPool = pool
        self.tokens: nn.Parameter = nn.Parameter(NORMAL_STD * torch.randn(1, length, self.width))

    def register_hooks(self) -> Iterator[RemovableHandle]:
        """Register the hook at the pool."""
        yield self._pool.module.register_forward_hook(self._attend)

    def _attend(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Pool again, with the prompts as further keys and values."""
        return self._pool.attend(args[0], self.tokens[0]) if self.active else None
