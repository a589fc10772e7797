"""Models without weights, which cost no memory: they tell the weights of an architecture, and what open_clip makes."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from promptreid.towers.downloading import CONFIG_NAME
from promptreid.towers.fingerprint import resized_keys
from promptreid.towers.loading import ClipSource, loaded_digests, make_from_config, model_config, source_of
from promptreid.towers.modes import making_models
from promptreid.towers.names import config_of, is_repository
from promptreid.towers.weights import saved_image_size


def loads_in_plain_open_clip(model_cfg: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether open_clip itself makes a model of these weights at their image size, and the model takes such images.

    It is tried, at no cost in memory: of the families whose positions are resized, only some are built for rectangles.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, torch.device("meta"), making_models():
            (Path(folder) / CONFIG_NAME).write_text(json.dumps({"model_cfg": model_cfg}), encoding="utf-8")
            clip: Any = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, device="meta")
            clip.eval().encode_image(torch.empty(1, 3, *saved_image_size(model_cfg)))
    except Exception:  # of any kind: each library has its own
        return False
    return {name: tuple(value.shape) for name, value in clip.state_dict().items()} == dict(shapes)


def unlike_source(clip: nn.Module, source: ClipSource) -> tuple[list[str], list[str]]:
    """Names of weights that `clip` has and a model from `source` does not, or in another shape; and the reverse.

    Where `load_clip` made the model from there, the names are known. Where the caller says where it is from, the
    architecture of that name is made without memory, if open_clip has one.
    """
    own = {name: tuple(value.shape) for name, value in clip.state_dict().items()}
    told, known = source != source_of(clip), loaded_digests(clip)
    if known is not None and not told:
        return sorted(own.keys() - known.keys()), sorted(known.keys() - own.keys())
    config = ({} if is_repository(source.name) else config_of(source.name)) if told else model_config(clip)
    expected = weight_shapes(config) if "embed_dim" in config else None
    if expected is None:
        return [], []
    # Others, such as masks, may follow from the image size, which is compared by itself.
    fixed = {name for name, _ in clip.named_parameters() if told and not name.endswith(resized_keys())}
    other = {name for name in fixed & expected.keys() if own[name] != expected[name]}
    return sorted(own.keys() - expected.keys() | other), sorted(expected.keys() - own.keys() | other)


def weight_shapes(model_cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Name and shape of every weight of an architecture, at no cost in memory.

    Args:
        model_cfg: open_clip's model configuration.

    Returns:
        The shapes; `None` if the architecture cannot be made without memory, or without network.

    Raises:
        TypeError, ValueError, KeyError: It is not a model configuration.
    """
    try:
        with torch.device("meta"):
            empty = make_from_config(model_cfg, preprocess_cfg={}, image_size=None, device="meta")
    except (NotImplementedError, RuntimeError, OSError):  # the last where transformers asks the Hub and gets no answer
        return None
    return {name: tuple(value.shape) for name, value in empty.state_dict().items()}
