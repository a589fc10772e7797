"""open_clip's own vision Transformer."""

from typing import Any

from open_clip.transformer import VisionTransformer
from torch import nn

from promptreid.towers.growth import resize_grid
from promptreid.towers.tower import PatchGrid, TokenTower

resized_keys: tuple[str, ...] = ("visual.positional_embedding",)


def matches(visual: Any) -> bool:
    """Whether an image tower is of this family."""
    return isinstance(visual, VisionTransformer)


def describe(visual: Any) -> TokenTower:
    """What prompts must know of it."""
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
