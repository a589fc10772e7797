"""Where an open_clip model came from: what is needed to make it again."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from promptreid.backbones.vision import image_size_of


@dataclass(frozen=True)
class ClipSource:
    """Where an open_clip model came from: what is needed to make it again.

    Attributes:
        name: open_clip's name of the architecture, such as `"ViT-B-16"`, or `"hf-hub:…"` or `"local-dir:…"`.
        pretrained: open_clip's tag or a file's path; `None` for random weights.
        image_size: (height, width) in pixels.
    """

    name: str
    pretrained: str | None
    image_size: tuple[int, int]


def stamp(clip: nn.Module, source: ClipSource | None, model_cfg: dict[str, Any]) -> nn.Module:
    """Let `clip` remember its source and its configuration, outside of its state."""
    object.__setattr__(clip, "promptreid_source", source)
    object.__setattr__(clip, "promptreid_model_cfg", model_cfg)
    return clip


def source_of(clip: nn.Module) -> ClipSource | None:
    """Where `clip` came from, or `None` if it was not made by `load_clip`."""
    return getattr(clip, "promptreid_source", None)


def model_config(clip: nn.Module) -> dict[str, Any]:
    """open_clip's configuration of `clip`, at the image size it has now.

    Raises:
        ValueError: The model was not made by `load_clip`, so its configuration is not known.
    """
    config: dict[str, Any] | None = getattr(clip, "promptreid_model_cfg", None)
    if config is None:
        raise ValueError(
            "this open_clip model does not know its own configuration; make it with promptreid.load_clip(name, ...) "
            "to be able to save its weights"
        )
    config = deepcopy(config)
    config["vision_cfg"]["image_size"] = list(image_size_of(clip))
    return config


def preprocess_config(clip: nn.Module) -> dict[str, Any]:
    """open_clip's preprocessing of `clip` (mean, std, size, …), squashing and never cropping a person."""
    stated = dict(getattr(clip.visual, "preprocess_cfg", None) or {})
    return {**stated, "size": list(image_size_of(clip)), "resize_mode": "squash"}
