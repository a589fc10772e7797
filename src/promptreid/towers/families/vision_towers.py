"""Finds the image tower of an open_clip model."""

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import dtype, nn

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.tower import PixelTower, TokenTower, refuse_compiled


def find_vision_tower(clip: nn.Module) -> TokenTower | PixelTower:
    """Describe the image tower of `clip` to a prompt.

    Args:
        clip: An open_clip model.

    Returns:
        A `TokenTower` where the image becomes a sequence of tokens: prompts go in right after the class and register
        tokens. Else a `PixelTower`.

    Raises:
        UnsupportedTowerError: The tower is not of a kind that prompts can be put into.
        AttachmentError: The model is TorchScript or compiled.
    """
    refuse_compiled(clip)
    visual: Any = getattr(clip, "visual", None)
    if isinstance(visual, VisionTransformer):
        return _built_in_tower(visual)
    if isinstance(visual, ModifiedResNet):
        return PixelTower(
            kind="open_clip.ModifiedResNet",
            visual=visual,
            entrance=visual.conv1,
            image_size=image_size_of(clip),
            channels=visual.conv1.in_channels,
            pooling="attention",
            attention_pool=visual.attnpool,
        )
    if isinstance(visual, TimmModel):
        trunk: Any = visual.trunk
        if isinstance(trunk, TimmVisionTransformer | Eva | VisionTransformerRelPos):
            return _timm_tower(trunk)
        entrance = getattr(trunk, "stem", None) or getattr(trunk, "patch_embed", None)
        if isinstance(entrance, nn.Module):
            return PixelTower(
                kind=f"timm.{type(trunk).__name__}",
                visual=visual,
                entrance=entrance,
                image_size=image_size_of(clip),
                channels=3,
                pooling=_pooling_of(visual),
            )
        visual = trunk
    visual = clip if visual is None else visual
    raise UnsupportedTowerError(
        f"no prompts for an image tower of class {type(visual).__module__}.{type(visual).__qualname__}: known are "
        "open_clip's VisionTransformer and ModifiedResNet, timm's VisionTransformer, Eva and VisionTransformerRelPos, "
        "and timm's networks with a stem or patch_embed. Pass an open_clip model, for example "
        'promptreid.load_clip("ViT-B-16").'
    )


def _built_in_tower(visual: VisionTransformer) -> TokenTower:
    return TokenTower(
        kind="open_clip.VisionTransformer",
        container=visual.transformer,
        blocks=tuple(visual.transformer.resblocks),
        width=visual.transformer.width,
        length=visual.positional_embedding.shape[0],
        slot=1,
        pooling="attention" if visual.attn_pool is not None else visual.pool_type,
        position_owner=visual,
        grid=(visual.grid_size[0], visual.grid_size[1]),
        prefix=1,
        unordered=True,
    )


def _timm_tower(trunk: Any) -> TokenTower:
    grid = trunk.patch_embed.grid_size
    relative = tuple(block.attn.rel_pos for block in trunk.blocks if getattr(block.attn, "rel_pos", None) is not None)
    return TokenTower(
        kind=f"timm.{type(trunk).__name__}",
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


def _pooling_of(visual: Any) -> str:
    head_pool = getattr(visual.head, "pool", None)
    if head_pool is not None:
        return type(head_pool).__name__
    pool = getattr(getattr(visual.trunk, "head", None), "global_pool", None)
    return str(getattr(pool, "pool_type", None) or getattr(visual.trunk, "global_pool", None) or "avg")


def image_size_of(clip: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that `clip` takes."""
    visual: Any = clip.visual
    size: int | tuple[int, int] = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_dtype_of(clip: nn.Module) -> dtype:
    """Precision of the images that `clip` takes: that of its first convolution."""
    visual: Any = clip.visual
    kernels = [parameter for parameter in visual.parameters() if parameter.ndim == 4]
    return (kernels or list(visual.parameters()))[0].dtype


def image_statistics_of(clip: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that images are normalised with, as open_clip states them."""
    stated: dict[str, Any] = getattr(clip.visual, "preprocess_cfg", None) or {}
    mean = stated.get("mean", (0.48145466, 0.4578275, 0.40821073))
    std = stated.get("std", (0.26862954, 0.26130258, 0.27577711))
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
