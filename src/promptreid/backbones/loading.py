"""Makes open_clip models: any name, any image size, the right activation, and our own files again."""

import difflib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from promptreid.backbones.growth import resize_grid
from promptreid.backbones.vision import image_size_of

TINY_NAME = "promptreid-tiny"
TINY_TAG = "generated"
_TINY_FOLDER = Path(__file__).parent / "tiny"

open_clip.add_model_config(_TINY_FOLDER / f"{TINY_NAME}.json")


@dataclass(frozen=True)
class ClipSource:
    """Where an open_clip model came from: what is needed to make it again.

    Attributes:
        name: open_clip's name of the architecture, such as `"ViT-B-16"`.
        pretrained: open_clip's tag or a file's path; `None` for random weights.
        image_size: (height, width) in pixels.
    """

    name: str
    pretrained: str | None
    image_size: tuple[int, int]


def load_clip(
    name: str,
    *,
    pretrained: str | None = None,
    image_size: tuple[int, int] = (384, 128),
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Make an open_clip model for images of any size.

    It is the model that `open_clip.create_model` makes, with three traps taken out: weights that were trained with
    QuickGELU get it, position grids are resized to (height, width), and a name or tag that does not exist is
    explained. `"promptreid-tiny"` with `pretrained="generated"` is the small base that ships with this package.

    Args:
        name: One of `open_clip.list_models()`, or `"promptreid-tiny"`.
        pretrained: A tag of `open_clip.list_pretrained_tags_by_model(name)` (downloaded on first use) or the path
            of a weight file; `None` for random weights.
        image_size: (height, width) in pixels; pedestrian crops are usually (384, 128).
        device: Where the model is put.
        cache_dir: Folder for downloaded weights; `None` for open_clip's default.

    Returns:
        The open_clip model, in eval mode.

    Raises:
        ValueError: Unknown name or tag, an image size that is not two positive integers or smaller than a patch, or
            weights whose activation the named architecture does not have.

    Example:
        >>> clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
        >>> clip.visual.image_size
        (96, 48)
    """
    _check_name(name)
    size = _check_image_size(name, image_size)
    if name == TINY_NAME and pretrained == TINY_TAG:
        with _without_random_weights_warning():
            clip = open_clip.create_model(name, force_image_size=size)
        load_weights(clip, load_file(_TINY_FOLDER / f"{TINY_NAME}.safetensors"))
    else:
        clip = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_image_size=size,
            force_quick_gelu=_needs_quick_gelu(name, pretrained),
            pretrained_text=False,
            cache_dir=None if cache_dir is None else str(cache_dir),
            require_pretrained=pretrained is not None,
        )
    model_cfg = _config_of(name)
    if _needs_quick_gelu(name, pretrained):
        model_cfg["quick_gelu"] = True
    return _stamp(clip, ClipSource(name, pretrained, size), model_cfg).to(device).eval()


def load_clip_from_config(
    model_cfg: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    *,
    image_size: tuple[int, int],
    preprocess_cfg: Mapping[str, Any],
    source: ClipSource | None = None,
) -> nn.Module:
    """Make an open_clip model from its configuration and weights, without network.

    Args:
        model_cfg: open_clip's model configuration.
        state_dict: Every weight of the model; floating point of any precision.
        image_size: (height, width) in pixels to build for; the position grid is resized from the configuration's.
        preprocess_cfg: open_clip's preprocessing configuration.
        source: Where the architecture came from.

    Returns:
        The open_clip model, in eval mode.

    Raises:
        RuntimeError: The weights do not fit the configuration; missing and unexpected keys are listed.
    """
    stored = deepcopy(dict(model_cfg))
    clip = make_from_config(stored, preprocess_cfg=preprocess_cfg, image_size=image_size)
    saved = stored["vision_cfg"]["image_size"]
    load_weights(clip, state_dict, saved_size=(saved, saved) if isinstance(saved, int) else tuple(saved))
    return _stamp(clip, source, stored).eval()


def make_from_config(
    model_cfg: Mapping[str, Any],
    *,
    preprocess_cfg: Mapping[str, Any],
    image_size: tuple[int, int] | None,
    device: str = "cpu",
) -> nn.Module:
    """Make an open_clip model from its configuration, with random weights and without network."""
    config = {"model_cfg": dict(model_cfg), "preprocess_cfg": dict(preprocess_cfg)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
        with _without_random_weights_warning():
            return open_clip.create_model(
                f"local-dir:{folder}", force_image_size=image_size, pretrained_text=False, device=device
            )


def load_weights(
    clip: nn.Module, state_dict: Mapping[str, Tensor], *, saved_size: tuple[int, int] | None = None
) -> None:
    """Load every weight into `clip`, resizing the image tower's position grid.

    Args:
        clip: The open_clip model.
        state_dict: Its weights.
        saved_size: (height, width) the weights were saved at; `None` for a square.

    Raises:
        RuntimeError: Keys are missing or unexpected, or shapes differ.
    """
    weights = {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
    key = "visual.positional_embedding"
    visual: Any = clip.visual
    if key in weights and hasattr(visual, "grid_size"):
        target: tuple[int, int] = tuple(visual.grid_size)
        patches = weights[key].shape[0] - 1
        if saved_size is None:
            source = (round(patches**0.5), round(patches**0.5))
        else:
            patch: tuple[int, int] = tuple(visual.patch_size)
            source = (saved_size[0] // patch[0], saved_size[1] // patch[1])
        if source[0] * source[1] != patches:
            raise RuntimeError(
                f"{key} holds {patches} patches, which is not the {source[0]} x {source[1]} grid expected; "
                "the weights were saved at another image size than stated"
            )
        weights[key] = resize_grid(weights[key], source=source, target=target)
    clip.load_state_dict(weights, strict=True)


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


def load_tokenizer(source: ClipSource) -> Callable[..., Tensor]:
    """The tokenizer of an architecture; some of them are downloaded on first use."""
    return open_clip.get_tokenizer(source.name)


@contextmanager
def _without_random_weights_warning() -> Generator[None, None, None]:
    """Keep open_clip from warning of random weights that are replaced a moment later."""
    root = logging.getLogger()

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("No pretrained weights loaded", "Local config loaded"))

    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)


def _stamp(clip: nn.Module, source: ClipSource | None, model_cfg: dict[str, Any]) -> nn.Module:
    object.__setattr__(clip, "promptreid_source", source)
    object.__setattr__(clip, "promptreid_model_cfg", model_cfg)
    return clip


def _config_of(name: str) -> dict[str, Any]:
    return deepcopy(open_clip.get_model_config(name)) or {}


def _check_name(name: str) -> None:
    names: list[str] = open_clip.list_models()
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "open_clip.list_models() lists all of them."
    raise ValueError(f"open_clip has no model named {name!r}. {hint}")


def _check_image_size(name: str, image_size: object) -> tuple[int, int]:
    if not (
        isinstance(image_size, tuple | list)
        and len(image_size) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in image_size)
    ):
        raise ValueError(
            f"image_size is {image_size!r}, expected (height, width) in pixels: two positive integers such as "
            "(384, 128)"
        )
    height, width = image_size
    patch = _config_of(name)["vision_cfg"].get("patch_size", 1)
    if height < patch or width < patch:
        raise ValueError(
            f"image_size is ({height}, {width}), smaller than one {patch} x {patch} patch of {name}; "
            f"give multiples of {patch}, such as ({24 * patch}, {8 * patch})"
        )
    if height % patch or width % patch:
        warnings.warn(
            f"image_size ({height}, {width}) is no multiple of {name}'s patch of {patch}: the last "
            f"{height % patch} rows and {width % patch} columns of pixels are not seen; "
            f"({height - height % patch}, {width - width % patch}) loses none",
            stacklevel=3,
        )
    return height, width


def _needs_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether the weights of this tag were trained with QuickGELU; an impossible pair is refused."""
    if pretrained is None or Path(pretrained).is_file() or (name, pretrained) == (TINY_NAME, TINY_TAG):
        return False
    tags = open_clip.list_pretrained_tags_by_model(name)
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        known = ", ".join([TINY_TAG] if name == TINY_NAME else tags) or "none"
        raise ValueError(
            f"{name} has no pretrained weights tagged {pretrained!r}, and there is no file of that name. Tags: {known}"
        )
    wanted = bool(config.get("quick_gelu", False))
    if not wanted and _config_of(name).get("quick_gelu", False):
        plain = name.removesuffix("-quickgelu")
        raise ValueError(
            f"{name} computes QuickGELU, but the weights tagged {pretrained!r} were trained with GELU. "
            f"Load {plain!r} instead."
        )
    return wanted
