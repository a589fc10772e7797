"""What open_clip knows by name: architectures, tags of their weights, and where those are published."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from promptreid.backbones.loading import TINY_NAME, TINY_TAG, make_from_config


def is_listed_model(name: str) -> bool:
    """Whether open_clip lists an architecture of this name."""
    return name in open_clip.list_models()


def is_listed_tag(name: str, pretrained: str) -> bool:
    """Whether open_clip lists weights with this tag for this architecture."""
    return (name, pretrained) == (TINY_NAME, TINY_TAG) or bool(open_clip.get_pretrained_cfg(name, pretrained))


def published_at(name: str, pretrained: str) -> str | None:
    """The Hub repository of the weights with this tag, or `None` if open_clip names none."""
    stated: dict[str, Any] = open_clip.get_pretrained_cfg(name, pretrained) or {}
    # open_clip writes owner/name/ or owner/name/file.
    parts = str(stated.get("hf_hub") or "").split("/")
    return "/".join(parts[:2]) if len(parts) >= 2 and all(parts[:2]) else None


def architecture_of(name: str) -> dict[str, Any]:
    """open_clip's configuration of a listed architecture, without what one may choose: image size and activation."""
    return without_choices(open_clip.get_model_config(name) or {})


def without_choices(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """A model configuration without its image size and activation."""
    config = deepcopy(model_cfg)
    config.pop("quick_gelu", None)
    if isinstance(config.get("vision_cfg"), dict):
        config["vision_cfg"].pop("image_size", None)
    return config


def weight_shapes(model_cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Name and shape of every weight of an architecture, at no cost in memory.

    Args:
        model_cfg: open_clip's model configuration.

    Returns:
        The shapes; `None` if the architecture cannot be made without memory.

    Raises:
        TypeError, ValueError, KeyError: It is no model configuration.
    """
    try:
        with torch.device("meta"):
            empty = make_from_config(model_cfg, preprocess_cfg={}, image_size=None, device="meta")
    except (NotImplementedError, RuntimeError):
        return None
    return {name: tuple(value.shape) for name, value in empty.state_dict().items()}


def uses_quick_gelu(clip: nn.Module) -> bool:
    """Whether a model computes QuickGELU, which the weights cannot tell."""
    return any(isinstance(module, QuickGELU) for module in clip.modules())


def is_scripted(clip: object) -> bool:
    """Whether a model is TorchScript, into which no prompts can be put."""
    return isinstance(clip, torch.jit.ScriptModule)
