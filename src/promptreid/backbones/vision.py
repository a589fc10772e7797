"""Finds the image tower of an open_clip model."""

from typing import Any

from open_clip.transformer import VisionTransformer
from torch import nn

from promptreid.backbones.towers import TokenTower
from promptreid.errors import UnsupportedTowerError


def find_vision_tower(clip: nn.Module) -> TokenTower:
    """Describe the image tower of `clip` to a prompt.

    Args:
        clip: An open_clip model.

    Returns:
        The tower; prompts go in right after the class token.

    Raises:
        UnsupportedTowerError: The tower is not of a kind that prompts can be put into.
    """
    visual = getattr(clip, "visual", None)
    if isinstance(visual, VisionTransformer):
        return TokenTower(
            kind="open_clip.VisionTransformer",
            container=visual.transformer,
            blocks=tuple(visual.transformer.resblocks),
            width=visual.transformer.width,
            length=visual.positional_embedding.shape[0],
            slot=1,
            position_owner=visual,
            grid=(visual.grid_size[0], visual.grid_size[1]),
        )
    raise UnsupportedTowerError(
        f"no prompts for an image tower of class {type(visual).__module__}.{type(visual).__qualname__} yet: "
        "this version knows open_clip's built-in VisionTransformer (ViT-B-32, ViT-B-16, ViT-L-14, …). "
        'Create such a model, for example promptreid.load_clip("ViT-B-16").'
    )


def image_size_of(clip: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that `clip` takes."""
    visual: Any = clip.visual
    size: int | tuple[int, int] = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_statistics_of(clip: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that images are normalised with, as open_clip states them."""
    stated: dict[str, Any] = getattr(clip.visual, "preprocess_cfg", None) or {}
    mean = stated.get("mean", (0.48145466, 0.4578275, 0.40821073))
    std = stated.get("std", (0.26862954, 0.26130258, 0.27577711))
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
