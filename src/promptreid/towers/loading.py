"""Makes open_clip models: any name, any image size, the right activation, and our own files again."""

import importlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from promptreid.defaults import IMAGE_SIZE
from promptreid.errors import WeightsError, explain_missing_transformers
from promptreid.towers.downloading import (
    CONFIG_NAME,
    commit_of,
    download_config,
    making_sense_of,
    names_repository,
    with_model,
    with_tagged_weights,
)
from promptreid.towers.families import patch_grid_of, resize_images
from promptreid.towers.fingerprint import WeightDigests, weight_digests, weight_marks
from promptreid.towers.modes import making_models
from promptreid.towers.names import (
    check_image_size,
    check_name,
    check_patch,
    choose_quick_gelu,
    config_of,
    is_listed_tag,
    is_repository,
    needs_quick_gelu,
    pretrained_name,
)
from promptreid.towers.tiny import tiny_weights
from promptreid.towers.tower import fill_unset_parameters, image_size_of
from promptreid.towers.weights import (
    Checkpoint,
    check_finite,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    read_config,
    saved_image_size,
    weights_in,
)


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


def load_clip(
    name: str,
    *,
    pretrained: str | Path | None = None,
    image_size: tuple[int, int] | None = IMAGE_SIZE,
    weights_size: tuple[int, int] | None = None,
    quick_gelu: bool | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Make an open_clip model for images of any size.

    It is the model that `open_clip.create_model` makes, without three traps: weights that were trained with
    QuickGELU get it, position grids are resized from (height, width) to (height, width), and a name or tag that does
    not exist is explained. `"promptreid-tiny"` with `pretrained="generated_v3"` is the small base that ships with this
    package.

    Args:
        name: One of `open_clip.list_models()`, `"promptreid-tiny"`, or `"hf-hub:user/repo"` (with a branch, tag or
            commit: `"hf-hub:user/repo@v1"`) or `"local-dir:folder"`. All of a repository is loaded from one commit,
            which the model remembers.
        pretrained: A tag of `open_clip.list_pretrained_tags_by_model(name)`, the path of a weight file or folder, or a
            Hub repository `"user/repo"` or `"user/repo@revision"`: open_clip's, OpenAI's, transformers' or the field's
            own, see `docs/weights.md`; `None` for random weights, or for those of `name`. Tags and repositories are
            downloaded on first use.
        image_size: (height, width) in pixels; pedestrian crops are usually (384, 128). `None` for what the weights
            were saved at. If it is left out, a checkpoint that a re-identification project trained at another size is
            resized with a warning.
        weights_size: (height, width) that a weight *file* was saved at; `None` reads it from the
            `open_clip_config.json` beside the file, or takes the grid for a square if it can be one.
        quick_gelu: Whether weights in a *file* were trained with QuickGELU; `None` for what the file or the
            configuration beside it says, and GELU with a warning where neither does.
        device: Where the model is put.
        cache_dir: Folder for downloaded weights; `None` for open_clip's default.

    Returns:
        The open_clip model, in eval mode.

    Raises:
        ValueError: Unknown name or tag, an image size that is not two positive integers or that the tower cannot
            take, or weights whose activation the named architecture does not have.
        HubError: The weights cannot be downloaded; names the file and the cause.
        CheckpointError: The weights are damaged, and a second download gave the same result.
        TypeError: `name` is not text, or `pretrained` neither text nor a path.
        MissingExtraError: The text tower is Hugging Face's, and transformers is not installed.
        WeightsError: The weights do not fit, are damaged or not finite, or were saved in another layout; missing and
            unexpected keys are listed.

    Example:
        >>> clip = load_clip("promptreid-tiny", pretrained="generated_v3", image_size=(96, 48))
        >>> clip.visual.image_size
        (96, 48)
    """
    check_name(name)
    pretrained = pretrained_name(pretrained)
    size = None if image_size is None else check_image_size(image_size)
    saved = None if weights_size is None else check_image_size(weights_size, what="weights_size")
    cache = None if cache_dir is None else str(cache_dir)
    needs_quick_gelu(name, pretrained)  # refuses anything else, and weights of another activation
    # Building a large tower takes long; one whose patch is known is refused first.
    patch = None if is_repository(name) else config_of(name)["vision_cfg"].get("patch_size")
    if size is not None and patch:
        check_patch(name, size, (patch, patch))
    if is_repository(name):
        if quick_gelu is not None or saved is not None:
            raise ValueError(
                f"{name} says itself whether it computes QuickGELU and at which size it was saved; leave quick_gelu "
                "and weights_size out"
            )
        clip, config, name = _load_repository(name, pretrained, cache)
    elif pretrained is None or is_listed_tag(name, pretrained):
        if saved is not None:
            raise ValueError(f"weights_size is {saved}, that of a file, but pretrained is {pretrained!r}; leave it out")
        config = _config_to_make(name, choose_quick_gelu(name, pretrained, given=quick_gelu, saved=None))
        quick_gelu = None  # the name and the tag say it
        clip = _load_named(name, pretrained, config, cache=cache)
    else:
        load = partial(_load_file, name, saved=saved, given=quick_gelu, cache=cache)
        if names_repository(pretrained):
            clip, config, file = with_model(pretrained, cache, load)
            pretrained = f"{pretrained.partition('@')[0]}@{commit_of(file.path)}"
        else:
            clip, config, file = load(Path(pretrained))
        quick_gelu = bool(config.get("quick_gelu"))
        trained = file.trained_size and (saved or file.saved_size)
        # `is`, as an equal size was asked for: by somebody who knows it, or by a base that is made again.
        if image_size is IMAGE_SIZE and trained and trained != IMAGE_SIZE:
            own = f"{trained[0]} x {trained[1]}"
            warnings.warn(
                f"{pretrained} is {file.title}'s, trained on images of {own}, and is resized to {IMAGE_SIZE[0]} x "
                f"{IMAGE_SIZE[1]}, which changes its scores; give {own} as image_size to keep them",
                stacklevel=2,
            )
    if size is not None:
        if not patch and not is_repository(name):
            check_patch(name, size, patch_grid_of(clip).patch)
        resize_images(clip, size)
    digests = None if pretrained is None and not is_repository(name) else weight_digests(clip)
    source = ClipSource(name, pretrained, image_size_of(clip), saved, quick_gelu)
    return stamp(clip.to(device).eval(), source, config, digests=digests)


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
        WeightsError: The weights do not fit the configuration, or are not finite.
    """
    stored = deepcopy(dict(model_cfg))
    saved = saved_image_size(stored)
    clip = make_from_config(stored, preprocess_cfg=preprocess_cfg, image_size=saved)
    load_weights(clip, state_dict, saved_size=saved)
    resize_images(clip, image_size)
    return stamp(clip, source, stored).eval()


def make_from_config(
    model_cfg: Mapping[str, Any],
    *,
    preprocess_cfg: Mapping[str, Any],
    image_size: tuple[int, int] | None,
    device: str = "cpu",
) -> nn.Module:
    """Make an open_clip model from its configuration, with random weights and without network.

    Args:
        model_cfg: open_clip's model configuration.
        preprocess_cfg: open_clip's preprocessing configuration.
        image_size: (height, width) in pixels; `None` for the configuration's.
        device: Where it is made; `"meta"` takes no memory.
    """
    stated = saved_image_size(model_cfg)
    square = deepcopy(dict(model_cfg))
    # Not every tower can be built for a rectangle, and each can be resized to one afterwards.
    square["vision_cfg"]["image_size"] = max(stated)
    config = {"model_cfg": square, "preprocess_cfg": dict(preprocess_cfg)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        with making_models():
            clip = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, device=device)
    resize_images(clip, image_size or stated)
    return clip


def _config_to_make(name: str, quick_gelu: bool) -> dict[str, Any]:
    """open_clip's configuration of an architecture, for which everything that it needs is installed."""
    config = config_of(name)
    if "hf_model_name" in config.get("text_cfg", {}):
        with explain_missing_transformers(f"the text tower of {name}"):
            importlib.import_module("transformers")
    if quick_gelu:
        config["quick_gelu"] = True
    return config


def _load_file(
    name: str,
    path: Path,
    *,
    saved: tuple[int, int] | None,
    given: bool | None,
    cache: str | None,
) -> tuple[nn.Module, dict[str, Any], Checkpoint]:
    """Make a model that open_clip has a configuration of, with weights from a file, at the size they were saved at.

    Also returns its configuration and what kind of checkpoint it is.
    """
    checkpoint = read_checkpoint(path)
    quick = choose_quick_gelu(name, str(path), given=given, saved=checkpoint.quick_gelu)
    config = _config_to_make(name, quick)
    text = config.get("text_cfg", {})
    if checkpoint.text_positions is not None and "multimodal_cfg" not in config:
        text["context_length"] = checkpoint.text_positions - bool(text.get("embed_cls"))
    if checkpoint.base is not None and not is_listed_tag(name, checkpoint.base):
        raise WeightsError(
            f"{path} is {checkpoint.title}'s, which is trained from the weights tagged {checkpoint.base!r}, and {name} "
            "has none; name the architecture that it was saved from, such as ViT-B-16"
        )
    clip = _load_named(name, checkpoint.base, config, cache=cache)
    load_checkpoint(clip, checkpoint, saved_size=saved)
    return clip, config, checkpoint


def _load_named(name: str, tag: str | None, config: Mapping[str, Any], *, cache: str | None) -> nn.Module:
    """Make a model that open_clip has a configuration of, with the weights of a tag or without."""
    listed = tag if tag is not None and open_clip.get_pretrained_cfg(name, tag) else None

    def make() -> nn.Module:
        return open_clip.create_model(
            name,
            pretrained=listed,
            force_quick_gelu=bool(config.get("quick_gelu")),
            force_context_length=config.get("text_cfg", {}).get("context_length"),
            pretrained_text=False,
            cache_dir=cache,
            require_pretrained=listed is not None,
        )

    with making_models():
        clip = make() if listed is None else with_tagged_weights(name, listed, cache, make)
    if tag is None:
        fill_unset_parameters(clip)
    elif (shipped := tiny_weights(name, tag)) is not None:
        load_weights(clip, load_file(shipped))
    else:
        check_finite(clip.state_dict(), f"the file of {name} tagged {tag!r}")
    return clip


def repository_folder(name: str, cache: str | None = None) -> Path:
    """The folder of `"local-dir:folder"`, or the one in the cache with the configuration of `"hf-hub:user/repo"`."""
    schema, location = name.split(":", 1)
    if schema == "local-dir":
        return Path(location)
    return download_config(location, cache=cache).parent


def _load_repository(name: str, pretrained: str | None, cache: str | None) -> tuple[nn.Module, dict[str, Any], str]:
    """Make the model of a folder or a Hub repository, open_clip's or a CLIPModel's; also its name with the commit."""
    if pretrained is not None:
        raise ValueError(f"{name} brings its own weights, and pretrained is {pretrained!r}; leave pretrained out")
    folder = repository_folder(name, cache)
    found = weights_in(folder) if name.startswith("local-dir:") else None
    config = read_config(folder)
    stored = deepcopy(config["model_cfg"])
    with making_sense_of(folder / CONFIG_NAME):
        clip = make_from_config(stored, preprocess_cfg=config.get("preprocess_cfg", {}), image_size=None)

    def load(weights: Path) -> None:
        load_checkpoint(clip, read_checkpoint(weights), saved_size=saved_image_size(stored))

    if found is not None:
        load(found)
    else:
        name = f"{name.partition('@')[0]}@{commit_of(folder / CONFIG_NAME)}"
        with_model(name.split(":", 1)[1], cache, load)  # of the commit that the configuration is from
    return clip, stored, name
