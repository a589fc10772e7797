"""What an open_clip model remembers of how it was made: source, configuration, and digests of its weights."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from promptreid.towers.fingerprint import WeightDigests, weight_digests, weight_marks
from promptreid.towers.names import is_repository
from promptreid.towers.tower import image_size_of


@dataclass(frozen=True)
class ClipSource:
    """Where an open_clip model came from: what is needed to make it again.

    Attributes:
        name: open_clip's name of the architecture, such as `"ViT-B-16"`, or `"hf-hub:user/repo@commit"` or
            `"local-dir:…"`.
        pretrained: open_clip's tag or a file's path; `None` for random weights.
        image_size: (height, width) in pixels.
        weights_size: The same of a file's weights, where `load_clip` was told.
        quick_gelu: Whether a file's weights were trained with QuickGELU; `None` where the rest says it. Sources that
            differ only in this are equal, since the model itself tells.
    """

    name: str
    pretrained: str | None
    image_size: tuple[int, int]
    weights_size: tuple[int, int] | None = None
    quick_gelu: bool | None = field(default=None, compare=False)

    @property
    def commit(self) -> str | None:
        """The commit of the Hub repository; `None` where the name has none."""
        return self.name.partition("@")[2] or None if self.name.startswith("hf-hub:") else None


def stamp(
    clip: nn.Module, source: ClipSource | None, model_cfg: dict[str, Any], *, digests: WeightDigests | None = None
) -> nn.Module:
    """Let `clip` remember its source, its configuration and what its weights were, outside of its state."""
    object.__setattr__(clip, "promptreid_source", source)
    object.__setattr__(clip, "promptreid_model_cfg", model_cfg)
    object.__setattr__(clip, "promptreid_digests", digests)
    if digests is not None:
        object.__setattr__(clip, "promptreid_read", (weight_marks(clip), digests))
    return clip


def current_digests(clip: nn.Module) -> WeightDigests:
    """`weight_digests` of a model, which are made again only if something was written to its weights since."""
    marks, digests = getattr(clip, "promptreid_read", (None, {}))
    now = weight_marks(clip)
    if now != marks:
        digests = weight_digests(clip)
        object.__setattr__(clip, "promptreid_read", (now, digests))
    return digests


def loaded_digests(clip: nn.Module) -> WeightDigests | None:
    """`weight_digests` of a model as they were loaded; `None` for random ones, or if `load_clip` did not make it."""
    return getattr(clip, "promptreid_digests", None)


def digests_of(clip: nn.Module, source: ClipSource | None) -> WeightDigests | None:
    """`loaded_digests` of a model that was loaded from `source`.

    An empty dictionary where they are not known, as when only the caller says where it is from; `None` for random
    weights, which nobody can make again.
    """
    if source is None or (source.pretrained is None and not is_repository(source.name)):
        return None
    known = loaded_digests(clip)
    return known if known is not None and source == source_of(clip) else {}


def source_of(clip: nn.Module) -> ClipSource | None:
    """Where `clip` came from, or `None` if it was not made by `load_clip`."""
    return getattr(clip, "promptreid_source", None)


def model_config(clip: nn.Module) -> dict[str, Any]:
    """open_clip's configuration of `clip`, at the image size it has now.

    Raises:
        ValueError: The model was not made by `load_clip`, so its configuration is not known.
    """
    config = stated_config(clip)
    if config is None:
        raise ValueError(
            "this open_clip model does not know its own configuration; make it with promptreid.load_clip(name, ...) "
            "to be able to save its weights"
        )
    config = deepcopy(config)
    config["vision_cfg"]["image_size"] = list(image_size_of(clip))
    return config


def stated_config(clip: nn.Module) -> dict[str, Any] | None:
    """open_clip's configuration that `clip` was made from; `None` if `load_clip` did not make it."""
    return getattr(clip, "promptreid_model_cfg", None)


def stated_context_length(clip: nn.Module) -> int | None:
    """L, tokens of a caption, by the configuration that `clip` was made from; `None` if nothing says it."""
    config = stated_config(clip) or {}
    return config.get("text_cfg", {}).get("context_length")


def preprocess_config(clip: nn.Module) -> dict[str, Any]:
    """open_clip's preprocessing of `clip` (mean, std, size, …), squashing and never cropping a person."""
    stated = dict(getattr(clip.visual, "preprocess_cfg", None) or {})
    return {**stated, "size": list(image_size_of(clip)), "resize_mode": "squash"}
