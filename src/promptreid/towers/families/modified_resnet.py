"""open_clip's ModifiedResNet, and its attention pool."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from promptreid.towers.families.open_clip_vit import resize_parameter
from promptreid.towers.features import image_size_of
from promptreid.towers.tower import PixelTower, PositionGrid

resized_keys: tuple[str, ...] = ("visual.attnpool.positional_embedding",)
_STRIDE = 32


def matches(visual: Any) -> bool:
    """Whether an image tower is of this family."""
    return isinstance(visual, ModifiedResNet)


def describe(visual: Any) -> PixelTower:
    """What prompts must know of it."""
    return PixelTower(
        kind="open_clip.ModifiedResNet",
        module=visual,
        entrance=visual.conv1,
        image_size=image_size_of(visual),
        channels=visual.conv1.in_channels,
        pooling="attention",
        attention_pool=ResNetPool(visual.attnpool),
    )


def resize(visual: Any, image_size: tuple[int, int]) -> None:
    """Let it take images of another size.

    Raises:
        ValueError: A side is not a multiple of 32.
    """
    if image_size[0] % _STRIDE or image_size[1] % _STRIDE:
        raise ValueError(
            f"image_size is {image_size}, but the attention pool of a ModifiedResNet has one position for every "
            f"{_STRIDE} pixels; give multiples of {_STRIDE}, such as (384, 128)"
        )
    source, target = _grid(image_size_of(visual)), _grid(image_size)
    resize_parameter(visual.attnpool, "positional_embedding", source=source, target=target)
    visual.image_size = image_size


def position_grid(visual: Any) -> PositionGrid:
    """Where its pool's position embedding is."""
    return PositionGrid("visual.attnpool.positional_embedding", prefix=1, shape=_grid(image_size_of(visual)))


def patch_size(visual: Any) -> tuple[int, int]:
    """(height, width) in pixels that become one position of the map."""
    return _STRIDE, _STRIDE


def _grid(image_size: tuple[int, int]) -> tuple[int, int]:
    return image_size[0] // _STRIDE, image_size[1] // _STRIDE


@dataclass(frozen=True, eq=False)
class ResNetPool:
    """The attention pool, which can be given further keys and values.

    Its own forward cannot take a token: its mean runs over every position it is given, and its position table has one
    row for each. So the pooled token is computed again; the pool is small beside the network before it.

    Attributes:
        module: open_clip's `AttentionPool2d`.
    """

    module: nn.Module

    @property
    def width(self) -> int:
        """D, the size of one key's token."""
        pool: Any = self.module
        return int(pool.positional_embedding.shape[1])

    def attend(self, features: Tensor, further: Tensor) -> Tensor:
        """Pool a map with tokens as further keys and values.

        Shape:
            - features: (B, D, H, W)
            - further: (P, D)
            - returns: (B, E)
        """
        pool: Any = self.module
        sequence = rearrange(features, "b d h w -> b (h w) d")
        sequence = torch.cat([sequence.mean(dim=1, keepdim=True), sequence], dim=1)
        sequence = sequence + pool.positional_embedding.to(sequence.dtype)
        context = torch.cat([sequence, further.to(sequence.dtype).expand(len(sequence), -1, -1)], dim=1)
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
