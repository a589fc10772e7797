"""timm's networks, inside open_clip's TimmModel: Transformers of tokens, and networks of maps."""

import warnings
from typing import Any

from open_clip.timm_model import TimmModel
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.features import image_size_of
from promptreid.towers.tower import PixelTower, PositionGrid, TokenTower

# The second ends the names of Swin's tables.
resized_keys: tuple[str, ...] = ("visual.trunk.pos_embed", "relative_position_bias_table")


def matches(visual: Any) -> bool:
    """Whether an image tower is of this family."""
    return isinstance(visual, TimmModel)


def describe(visual: Any) -> TokenTower | PixelTower:
    """What prompts must know of it.

    Raises:
        UnsupportedTowerError: The network has no module that the image passes through first.
    """
    trunk: Any = visual.trunk
    if isinstance(trunk, VisionTransformer | Eva | VisionTransformerRelPos):
        return _token_tower(visual, trunk)
    entrance = getattr(trunk, "stem", None) or getattr(trunk, "patch_embed", None)
    if not isinstance(entrance, nn.Module):
        raise UnsupportedTowerError(
            f"no prompts for an image tower of class {type(trunk).__module__}.{type(trunk).__qualname__}: of timm's "
            "networks, VisionTransformer, Eva and VisionTransformerRelPos can take prompts, and those with a stem or "
            "patch_embed that the image passes through first."
        )
    return PixelTower(
        kind=f"timm.{type(trunk).__name__}",
        module=visual,
        entrance=entrance,
        image_size=image_size_of(visual),
        channels=3,
        pooling=_pooling(visual),
    )


def resize(visual: Any, image_size: tuple[int, int]) -> None:
    """Let it take images of another size.

    Raises:
        ValueError: timm refuses the size.
    """
    try:
        with warnings.catch_warnings():
            # timm's own interpolation of Swin's bias tables.
            warnings.filterwarnings("ignore", message="Using a non-tuple sequence", category=UserWarning)
            visual.set_input_size(image_size)
    except NotImplementedError:  # on a device without memory
        raise
    except (AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(
            f"timm's {type(visual.trunk).__name__} cannot take images of {image_size}: {error}. Give multiples of its "
            "patch or window, such as (384, 128) or (224, 224)"
        ) from error


def position_grid(visual: Any) -> PositionGrid | None:
    """Where its position embedding is, if it has one."""
    trunk: Any = visual.trunk
    if getattr(trunk, "pos_embed", None) is None or not hasattr(trunk, "patch_embed"):
        return None
    rows, columns = trunk.patch_embed.grid_size
    prefix = trunk.pos_embed.shape[1] - rows * columns
    return PositionGrid("visual.trunk.pos_embed", prefix=prefix, shape=(rows, columns))


def patch_size(visual: Any) -> tuple[int, int]:
    """(height, width) in pixels of a patch; (1, 1) where there is no grid of them."""
    embed: Any = getattr(visual.trunk, "patch_embed", None)
    if not hasattr(embed, "grid_size"):
        return 1, 1
    height, width = embed.img_size
    return height // embed.grid_size[0], width // embed.grid_size[1]


def _token_tower(visual: Any, trunk: Any) -> TokenTower:
    grid = trunk.patch_embed.grid_size
    relative = tuple(block.attn.rel_pos for block in trunk.blocks if getattr(block.attn, "rel_pos", None) is not None)
    return TokenTower(
        kind=f"timm.{type(trunk).__name__}",
        module=visual,
        container=trunk,
        blocks=tuple(trunk.blocks),
        width=trunk.embed_dim,
        length=grid[0] * grid[1] + trunk.num_prefix_tokens,
        slot=trunk.num_prefix_tokens,
        pooling=trunk.global_pool or "none",
        position_owner=None if getattr(trunk, "pos_embed", None) is None else trunk,
        position_name="pos_embed",
        grid=(grid[0], grid[1]),
        prefix=trunk.num_prefix_tokens,
        bias_arguments=("shared_rel_pos",),
        rotary_arguments=("rope",),
        relative_biases=relative,
    )


def _pooling(visual: Any) -> str:
    head_pool = getattr(visual.head, "pool", None)
    if head_pool is not None:
        return type(head_pool).__name__
    pool = getattr(getattr(visual.trunk, "head", None), "global_pool", None)
    return str(getattr(pool, "pool_type", None) or getattr(visual.trunk, "global_pool", None) or "avg")
