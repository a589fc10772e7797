"""Prompt tokens inside the attention pool of open_clip's ModifiedResNet."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from promptreid.prompts.border_pixels import refuse_second_set
from promptreid.prompts.switch import Switch
from promptreid.towers.tower import PixelTower


class PoolTokens(Protocol):
    """Learnable tokens, as the injection needs them."""

    length: int

    @property
    def tokens(self) -> Tensor:
        """The tokens, (1, P, D)."""
        ...


class AttentionPoolInjection:
    """The hook that lets the attention pool attend to prompts beside the image's own places.

    Args:
        tower: A tower with an attention pool.
        prompts: The tokens.

    Raises:
        AttachmentError: The tower already carries prompts, or is compiled.
    """

    def __init__(self, tower: PixelTower, prompts: PoolTokens) -> None:
        self.tower = tower
        self.prompts = prompts
        self.switch: Switch = Switch()
        refuse_second_set(tower)
        pool: Any = tower.attention_pool
        self._handles: list[Any] = [pool.register_forward_hook(PoolWithPrompts(self))]

    @property
    def attached(self) -> bool:
        """Whether the hook is in place."""
        return bool(self._handles)

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, in the calling thread alone."""
        with self.switch.off():
            yield

    def detach(self) -> None:
        """Take the hook out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class PoolWithPrompts:
    """Forward hook of the attention pool: pools again, with the prompts as further keys and values.

    open_clip's pool has no place to put a token in: its mean runs over every place it is given, and its position table
    has one row for each. So the pooled token is made anew; the pool is small beside the network before it.
    """

    def __init__(self, injection: AttentionPoolInjection) -> None:
        self.injection = injection

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Return the pooled feature, (B, E)."""
        prompts = self.injection.prompts
        if prompts.length == 0 or not self.injection.switch.on:
            return None
        pool: Any = module
        places = rearrange(args[0], "b d h w -> b (h w) d")
        sequence = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        sequence = sequence + pool.positional_embedding.to(sequence.dtype)
        own = prompts.tokens[0].to(sequence.dtype).expand(len(sequence), -1, -1)
        context = torch.cat([sequence, own], dim=1)
        query, key, value = (
            rearrange(projection(given), "b l (h d) -> b h l d", h=pool.num_heads)
            for projection, given in (
                (pool.q_proj, sequence[:, :1]),
                (pool.k_proj, context),
                (pool.v_proj, context),
            )
        )
        pooled = rearrange(F.scaled_dot_product_attention(query, key, value), "b h l d -> b l (h d)")
        return pool.c_proj(pooled[:, 0])
