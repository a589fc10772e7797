"""open_clip's own vision Transformer, and how position grids are resized."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from promptreid.towers.tower import PatchGrid, TokenTower

resized_keys: tuple[str, ...] = ("visual.positional_embedding",)


def matches(visual: Any) -> bool:
    """Whether an image tower is of this family."""
    return isinstance(visual, VisionTransformer)


def describe(visual: Any) -> TokenTower:
    """Describe the tower to the prompts."""
    return TokenTower(
        kind="open_clip.VisionTransformer",
        module=visual,
        container=visual.transformer,
        blocks=tuple(visual.transformer.resblocks),
        width=visual.transformer.width,
        length=visual.positional_embedding.shape[0],
        slot=1,
        pooling="attention" if visual.attn_pool is not None else visual.pool_type,
        position_owner=visual,
        grid=grid(visual).shape,
        prefix=1,
        unordered=True,
        pooled_at=0 if visual.attn_pool is None and visual.pool_type == "tok" else None,
    )


def resize(visual: Any, image_size: tuple[int, int]) -> None:
    """Let it take images of another size; pixels that fill no patch are not seen."""
    own = grid(visual)
    target = (image_size[0] // own.patch[0], image_size[1] // own.patch[1])
    resize_parameter(visual, "positional_embedding", source=own.shape, target=target)
    visual.image_size, visual.grid_size = image_size, target


def grid(visual: Any) -> PatchGrid:
    """How it divides the image."""
    patch, shape = (tuple(pair) for pair in (visual.patch_size, visual.grid_size))
    return PatchGrid(patch, shape, "visual.positional_embedding", prefix=1)


def resize_parameter(owner: Any, name: str, *, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Replace a position embedding by the same one resized from `source` to `target` (rows, columns)."""
    if source == target:
        return
    own: nn.Parameter = getattr(owner, name)
    resized = resize_grid(own.detach(), source=source, target=target)
    setattr(owner, name, nn.Parameter(resized, requires_grad=own.requires_grad))


def resize_grid(positions: Tensor, *, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position grid from one (rows, columns) to another, without changing class tokens.

    Shape:
        - positions: (prefix + rows * columns, D)
        - returns: (prefix + target rows * target columns, D)
    """
    if source == target:
        return positions
    prefix = positions.shape[0] - source[0] * source[1]
    patches = rearrange(positions[prefix:].float(), "(h w) d -> 1 d h w", h=source[0])
    patches = F.interpolate(patches, size=target, mode="bicubic", antialias=True, align_corners=False)
    resized = rearrange(patches, "1 d h w -> (h w) d").to(positions.dtype)
    return torch.cat([positions[:prefix], resized])
