"""Fits an image tower to another image size, position grids from (height, width) to (height, width)."""

import warnings
from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from promptreid.towers.families.vision_towers import image_size_of
from promptreid.towers.growth import resize_grid

_RESNET_STRIDE = 32
# What an image tower keeps by place, and how many rows of it are of tokens that are no place.
_POSITION_KEYS = ("positional_embedding", "trunk.pos_embed", "attnpool.positional_embedding")


def resize_images(clip: nn.Module, image_size: tuple[int, int]) -> None:
    """Let `clip` take images of another size; what it has learned by place is resized.

    Args:
        clip: The open_clip model, bare.
        image_size: (height, width) in pixels.

    Raises:
        ValueError: The tower cannot take images of that size.
    """
    visual: Any = clip.visual
    if isinstance(visual, VisionTransformer):
        _resize_built_in(visual, image_size)
    elif isinstance(visual, ModifiedResNet):
        _resize_resnet(visual, image_size)
    elif isinstance(visual, TimmModel):
        _resize_timm(visual, image_size)
    elif image_size != image_size_of(clip):
        raise ValueError(
            f"an image tower of class {type(visual).__qualname__} cannot be resized from {image_size_of(clip)} to "
            f"{image_size}; load it at its own size"
        )
    stated = getattr(visual, "preprocess_cfg", None)
    if stated is not None:
        stated["size"] = image_size


def position_rows(clip: nn.Module) -> tuple[str, int, tuple[int, int] | None]:
    """Key of the position grid in `clip.state_dict()`, rows before it, and its (rows, columns).

    Returns:
        `("", 0, None)` for a tower that learns nothing by absolute place.
    """
    visual: Any = clip.visual
    if isinstance(visual, VisionTransformer):
        return "visual.positional_embedding", 1, (visual.grid_size[0], visual.grid_size[1])
    if isinstance(visual, ModifiedResNet):
        return "visual.attnpool.positional_embedding", 1, _resnet_grid(image_size_of(clip))
    trunk: Any = getattr(visual, "trunk", None)
    if getattr(trunk, "pos_embed", None) is None or not hasattr(trunk, "patch_embed"):
        return "", 0, None
    rows, columns = trunk.patch_embed.grid_size
    return "visual.trunk.pos_embed", trunk.pos_embed.shape[1] - rows * columns, (rows, columns)


def patch_of(clip: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that become one place of the grid; (1, 1) where any size is taken."""
    visual: Any = clip.visual
    if isinstance(visual, VisionTransformer):
        patch: Any = visual.patch_size
        return patch[0], patch[1]
    if isinstance(visual, ModifiedResNet):
        return _RESNET_STRIDE, _RESNET_STRIDE
    embed: Any = getattr(getattr(visual, "trunk", None), "patch_embed", None)
    if not hasattr(embed, "grid_size"):
        return 1, 1
    height, width = embed.img_size
    return height // embed.grid_size[0], width // embed.grid_size[1]


def _resize_built_in(visual: Any, image_size: tuple[int, int]) -> None:
    grid = (image_size[0] // visual.patch_size[0], image_size[1] // visual.patch_size[1])
    source = (visual.grid_size[0], visual.grid_size[1])
    _replace(visual, "positional_embedding", source, grid)
    visual.image_size, visual.grid_size = image_size, grid


def _resize_resnet(visual: Any, image_size: tuple[int, int]) -> None:
    if image_size[0] % _RESNET_STRIDE or image_size[1] % _RESNET_STRIDE:
        raise ValueError(
            f"image_size is {image_size}, but the attention pool of a ModifiedResNet has one place for every "
            f"{_RESNET_STRIDE} pixels; give multiples of {_RESNET_STRIDE}, such as (384, 128)"
        )
    size: Any = visual.image_size
    source = _resnet_grid((size, size) if isinstance(size, int) else size)
    _replace(visual.attnpool, "positional_embedding", source, _resnet_grid(image_size))
    visual.image_size = image_size


def _resnet_grid(image_size: tuple[int, int]) -> tuple[int, int]:
    return image_size[0] // _RESNET_STRIDE, image_size[1] // _RESNET_STRIDE


def _replace(owner: Any, name: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    if source == target:
        return
    own: nn.Parameter = getattr(owner, name)
    resized = resize_grid(own.detach(), source=source, target=target)
    setattr(owner, name, nn.Parameter(resized, requires_grad=own.requires_grad))


def _resize_timm(visual: Any, image_size: tuple[int, int]) -> None:
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
