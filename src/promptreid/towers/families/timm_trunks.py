"""timm's networks, inside open_clip's TimmModel: Transformers of tokens, and networks of maps."""

import warnings
from typing import Any

from open_clip.timm_model import TimmModel
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.tower import PatchGrid, PixelTower, TokenTower, image_size_of

# The second ends the names of Swin's tables.
resized_keys: tuple[str, ...] = ("visual.trunk.pos_embed", "relative_position_bias_table")


def matches(visual: Any) -> bool:
    """Whether an image tower is of this family."""
    return isinstance(visual, TimmModel)


def describe(visual: Any) -> TokenTower | PixelTower:
    """Describe the tower to the prompts; a network without a module that the image passes through first is refused."""
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
    """Let it take images of another size, if timm accepts it."""
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


def grid(visual: Any) -> PatchGrid:
    """How it divides the image."""
    trunk: Any = visual.trunk
    embed: Any = getattr(trunk, "patch_embed", None)
    if not hasattr(embed, "grid_size"):
        return PatchGrid()
    rows, columns = embed.grid_size
    patch = (embed.img_size[0] // rows, embed.img_size[1] // columns)
    if getattr(trunk, "pos_embed", None) is None:
        return PatchGrid(patch, (rows, columns))
    return PatchGrid(patch, (rows, columns), "visual.trunk.pos_embed", trunk.pos_embed.shape[1] - rows * columns)


def _token_tower(visual: Any, trunk: Any) -> TokenTower:
    rows, columns = trunk.patch_embed.grid_size
    relative = tuple(block.attn.rel_pos for block in trunk.blocks if getattr(block.attn, "rel_pos", None) is not None)
    return TokenTower(
        kind=f"timm.{type(trunk).__name__}",
        module=visual,
        container=trunk,
        blocks=tuple(trunk.blocks),
        width=trunk.embed_dim,
        length=rows * columns + trunk.num_prefix_tokens,
        slot=trunk.num_prefix_tokens,
        pooling=trunk.global_pool or "none",
        position_owner=None if getattr(trunk, "pos_embed", None) is None else trunk,
        position_name="pos_embed",
        grid=(rows, columns),
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
