"""open_clip's own vision Transformer."""

from typing import Any

from open_clip.transformer import VisionTransformer
from torch import nn

from promptreid.towers.growth import resize_grid
from promptreid.towers.tower import PositionGrid, TokenTower

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
        grid=_grid(visual),
        prefix=1,
        unordered=True,
    )


def resize(visual: Any, image_size: tuple[int, int]) -> None:
    """Let it take images of another size; pixels that fill no patch are not seen."""
    rows, columns = patch_size(visual)
    target = (image_size[0] // rows, image_size[1] // columns)
    resize_parameter(visual, "positional_embedding", source=_grid(visual), target=target)
    visual.image_size, visual.grid_size = image_size, target


def position_grid(visual: Any) -> PositionGrid:
    """Where its position embedding is."""
    return PositionGrid("visual.positional_embedding", prefix=1, shape=_grid(visual))


def patch_size(visual: Any) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    return visual.patch_size[0], visual.patch_size[1]


def resize_parameter(owner: Any, name: str, *, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Replace a position embedding by the same one resized from `source` to `target` (rows, columns)."""
    if source == target:
        return
    own: nn.Parameter = getattr(owner, name)
    resized = resize_grid(own.detach(), source=source, target=target)
    setattr(owner, name, nn.Parameter(resized, requires_grad=own.requires_grad))


def _grid(visual: Any) -> tuple[int, int]:
    return visual.grid_size[0], visual.grid_size[1]
