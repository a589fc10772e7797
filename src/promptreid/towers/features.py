"""Reads facts from a model: image size, preprocessing, feature size, and parameters that no feature depends on."""

from collections.abc import Iterator
from typing import Any, TypedDict

import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from promptreid.towers.tower import TextTower

# Parameters of the pair as a whole, and CoCa's decoder, which writes captions.
_SCALES = ("logit_scale", "logit_bias")

_DECODER = "text_decoder"


def text_module_of(clip: nn.Module) -> nn.Module | None:
    """The module that encodes text, which is the model itself in open_clip's `CLIP`; `None` if there is none."""
    return clip if isinstance(clip, CLIP) else getattr(clip, "text", None)


def image_size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that a model, or an image tower of it, takes."""
    visual: Any = getattr(model, "visual", model)
    size: int | tuple[int, int] = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_dtype_of(clip: nn.Module) -> torch.dtype:
    """Precision of the images that `clip` takes: that of its first convolution."""
    visual: Any = clip.visual
    kernels = [parameter for parameter in visual.parameters() if parameter.ndim == 4]
    return (kernels or list(visual.parameters()))[0].dtype


class ImagePreprocessing(TypedDict):
    """How images are resized, `"bicubic"` or `"bilinear"`, and normalised: mean and standard deviation per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def image_preprocessing_of(clip: nn.Module) -> ImagePreprocessing:
    """The preprocessing of images for `clip`, as open_clip states it."""
    stated: dict[str, Any] = getattr(clip.visual, "preprocess_cfg", None) or {}
    mean = stated.get("mean", (0.48145466, 0.4578275, 0.40821073))
    std = stated.get("std", (0.26862954, 0.26130258, 0.27577711))
    return {
        "mean": tuple(float(value) for value in mean),
        "std": tuple(float(value) for value in std),
        "interpolation": "bilinear" if stated.get("interpolation") == "bilinear" else "bicubic",
    }


def feature_size_of(clip: nn.Module) -> int:
    """E, size of the features that both towers share."""
    # The text tower says it in every family; timm's image towers do not.
    text: Any = text_module_of(clip)
    projection: Any = getattr(text, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return projection.shape[1]
    return int(getattr(text, "output_dim", None) or text.transformer.width)


def parameters_without_features(clip: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of an open_clip model that neither image nor text features are computed from.

    Losses on features give them no gradient, which `DistributedDataParallel` takes for an error.
    """
    yield from (parameter for name, parameter in clip.named_parameters() if is_without_features(name))


def is_without_features(name: str) -> bool:
    """Whether no image or text feature is computed from the weight of this name."""
    return name in _SCALES or name.split(".")[0] == _DECODER


def fill_unset_parameters(clip: nn.Module) -> None:
    """Draw the projection of CoCa's decoder, which open_clip leaves uninitialised, so that it may be NaN."""
    decoder: Any = getattr(clip, _DECODER, None)
    if decoder is not None:
        projection: nn.Parameter = decoder.text_projection
        nn.init.normal_(projection, std=projection.shape[0] ** -0.5)


def join_skipped_blocks(tower: TextTower, features: Tensor) -> Tensor:
    """The same features, plus zero times the parameters of all blocks, some of which the tower may have skipped.

    Without it a skipped block's parameters get no gradient, and `DistributedDataParallel` waits for it in vain.

    Shape:
        - features: (B, E)
        - returns: (B, E)
    """
    trained = [part for block in tower.blocks for part in block.parameters() if part.requires_grad]
    if not (trained and tower.container.training and torch.is_grad_enabled()):
        return features
    return features + 0 * torch.stack([part.sum(dtype=torch.float32) for part in trained]).sum().to(features.dtype)


def uses_quick_gelu(clip: nn.Module) -> bool:
    """Whether a model computes QuickGELU, which the weights cannot tell."""
    return any(isinstance(module, QuickGELU) for module in clip.modules())
