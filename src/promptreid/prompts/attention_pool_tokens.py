"""Prompt tokens inside the attention pool of open_clip's ModifiedResNet."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from promptreid.prompts.config import NORMAL_STD
from promptreid.prompts.kind import PromptKind
from promptreid.towers.tower import AttentionPool, PixelTower


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

    tower: PixelTower

    def __init__(self, tower: PixelTower, length: int) -> None:
        if tower.attention_pool is None:
            raise ValueError(f"this {tower.kind} has no attention pool; use BorderPixels")
        super().__init__(tower, length, width=tower.attention_pool.width)
        self._pool: AttentionPool = tower.attention_pool
        self.tokens: nn.Parameter = nn.Parameter(NORMAL_STD * torch.randn(1, length, self.width))

    def register_hooks(self) -> Iterator[RemovableHandle]:
        """Register the hook at the pool."""
        yield self._pool.module.register_forward_hook(self._attend)

    def _attend(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Pool again, with the prompts as further keys and values."""
        return self._pool.attend(args[0], self.tokens[0]) if self.active else None
