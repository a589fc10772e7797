"""open_clip's ModifiedResNet, and its attention pool."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from promptreid.towers.families.open_clip_vit import resize_parameter
from promptreid.towers.tower import AttentionPool, PatchGrid, PixelTower, image_size_of

resized_keys: tuple[str, ...] = ("visual.attnpool.positional_embedding",)
_STRIDE = 32


def matches(visual: Any) -> bool:
    """Whether an image tower is of this family."""
    return isinstance(visual, ModifiedResNet)


def describe(visual: Any) -> PixelTower:
    """Describe the tower to the prompts."""
    pool = visual.attnpool
    return PixelTower(
        kind="open_clip.ModifiedResNet",
        module=visual,
        entrance=visual.conv1,
        image_size=image_size_of(visual),
        channels=visual.conv1.in_channels,
        pooling="attention",
        attention_pool=AttentionPool(pool, int(pool.positional_embedding.shape[1]), partial(_attend, pool)),
    )


def grid(visual: Any) -> PatchGrid:
    """How it divides the image: its pool has one position for every 32 pixels."""
    height, width = image_size_of(visual)
    shape = (height // _STRIDE, width // _STRIDE)
    return PatchGrid((_STRIDE, _STRIDE), shape, "visual.attnpool.positional_embedding", prefix=1)


def resize(visual: Any, image_size: tuple[int, int]) -> None:
    """Let it take images of another size; a side that is not a multiple of 32 is refused."""
    if image_size[0] % _STRIDE or image_size[1] % _STRIDE:
        raise ValueError(
            f"image_size is {image_size}, but the attention pool of a ModifiedResNet has one position for every "
            f"{_STRIDE} pixels; give multiples of {_STRIDE}, such as (384, 128)"
        )
    source, visual.image_size = grid(visual).shape, image_size
    resize_parameter(visual.attnpool, "positional_embedding", source=source, target=grid(visual).shape)


def _attend(pool: Any, features: Tensor, further: Tensor) -> Tensor:
    """Pool a map with tokens as further keys and values.

    The pool's own forward cannot take a token: its mean runs over every position it is given, and its position table
    has one row for each. So the feature is computed again; the pool is small beside the network before it.
    """
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
