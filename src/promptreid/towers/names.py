"""The names that open_clip knows: architectures and tags of weights; and valid arguments of `load_clip`."""

import difflib
import os
import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from promptreid.towers.downloading import names_repository
from promptreid.towers.tiny import TINY_FOLDER, TINY_NAME, TINY_WEIGHTS, tiny_weights

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.")
_REPOSITORIES = ("hf-hub:", "local-dir:")

open_clip.add_model_config(TINY_FOLDER / f"{TINY_NAME}.json")


def is_repository(name: str) -> bool:
    """Whether `name` is that of a Hub repository or a folder, with its own configuration and weights."""
    return name.startswith(_REPOSITORIES)


def config_of(name: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture."""
    return deepcopy(open_clip.get_model_config(name)) or {}


def check_name(name: str) -> None:
    """Refuse a name that open_clip does not have, and suggest similar ones.

    Raises:
        ValueError: open_clip has no model of this name.
        TypeError: The name is not text.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"name is {type(name).__name__}, expected one of open_clip.list_models(), such as 'ViT-B-16'")
    names: list[str] = open_clip.list_models()
    if name in names or is_repository(name):
        return
    known = {_loosely(each): each for each in names}
    near = [known[each] for each in difflib.get_close_matches(_loosely(name), known, n=3, cutoff=0.5)]
    hint = f"Did you mean {', '.join(near)}?" if near else "open_clip.list_models() lists all of them."
    raise ValueError(f"open_clip has no model named {name!r}. {hint}")


def pretrained_name(pretrained: str | os.PathLike[str] | None) -> str | None:
    """A tag, a repository or a file of weights as text.

    Raises:
        TypeError: It is neither text nor a path.
    """
    name = os.fspath(pretrained) if isinstance(pretrained, os.PathLike) else pretrained
    if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"pretrained is {type(pretrained).__name__}, expected a tag, a Hub repository or the path of a weight file"
        )
    return name


def _loosely(name: str) -> str:
    """A name in the way people remember it: without case, and with one sign for `-`, `_` and `/`."""
    return name.lower().replace("_", "-").replace("/", "-")


def check_image_size(image_size: object, *, what: str = "image_size") -> tuple[int, int]:
    """Return (height, width), or refuse it.

    Raises:
        ValueError: It is not two positive integers.
    """
    if not (
        isinstance(image_size, tuple | list)
        and len(image_size) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in image_size)
    ):
        raise ValueError(
            f"{what} is {image_size!r}, expected (height, width) in pixels: two positive integers such as (384, 128)"
        )
    height, width = image_size
    return int(height), int(width)


def check_patch(name: str, image_size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Refuse an image smaller than a patch, and warn of pixels that no patch covers.

    Raises:
        ValueError: There would be no patch.
    """
    (height, width), (rows, columns) = image_size, patch
    if height < rows or width < columns:
        raise ValueError(
            f"image_size is ({height}, {width}), smaller than one {rows} x {columns} patch of {name}; "
            f"give multiples of {rows}, such as ({24 * rows}, {8 * columns})"
        )
    if height % rows or width % columns:
        warnings.warn(
            f"image_size ({height}, {width}) is not a multiple of {name}'s patch of {rows}: the last "
            f"{height % rows} rows and {width % columns} columns of pixels are not seen; "
            f"({height - height % rows}, {width - width % columns}) loses none",
            stacklevel=3,
        )


def needs_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether the weights of this tag were trained with QuickGELU; an impossible pair is refused.

    Raises:
        ValueError: The tag does not exist, or its weights need another activation than the architecture has.
    """
    if pretrained is None or is_repository(name) or tiny_weights(name, pretrained):
        return False
    tags = open_clip.list_pretrained_tags_by_model(name)
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config and (Path(pretrained).exists() or names_repository(pretrained)):
        return False
    if not config:
        known = ", ".join(TINY_WEIGHTS if name == TINY_NAME else tags) or "none"
        raise ValueError(
            f"{name} has no pretrained weights tagged {pretrained!r}, and there is no file of that name. Tags: {known}"
        )
    wanted = bool(config.get("quick_gelu", False))
    if not wanted and config_of(name).get("quick_gelu", False):
        plain = name.removesuffix("-quickgelu")
        raise ValueError(
            f"{name} computes QuickGELU, but the weights tagged {pretrained!r} were trained with GELU. "
            f"Load {plain!r} instead."
        )
    return wanted


def choose_quick_gelu(name: str, pretrained: str | None, *, given: bool | None, saved: bool | None) -> bool:
    """Whether a model is to compute QuickGELU.

    Args:
        name: open_clip's name of the architecture.
        pretrained: The tag of its weights or their file.
        given: What the user says; `None` for nothing.
        saved: What the file of the weights says; `None` for nothing.

    Raises:
        ValueError: The user, the architecture's name and the weights contradict each other.
        TypeError: What the user says is neither true nor false.
    """
    if given is not None and not isinstance(given, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"quick_gelu is {given!r}, expected True, False or None")
    of_name = bool(config_of(name).get("quick_gelu", False))
    tagged = pretrained is not None and is_listed_tag(name, pretrained)
    of_weights = of_name or needs_quick_gelu(name, pretrained) if tagged else saved
    wanted = of_weights if given is None else given
    weights = f"the weights {'tagged ' if tagged else 'in '}{pretrained!r}"
    if tagged and given is not None and given != of_weights:
        raise ValueError(
            f"quick_gelu is {given}, but {weights} were trained with {'QuickGELU' if of_weights else 'GELU'}; leave "
            "quick_gelu out"
        )
    if of_name and wanted is False:
        trained = "quick_gelu is False" if given is not None else f"{weights} were trained with GELU"
        raise ValueError(f"{name} computes QuickGELU, but {trained}. Load {name.removesuffix('-quickgelu')!r} instead.")
    if pretrained is not None and wanted is None and not of_name and f"{name}-quickgelu" in open_clip.list_models():
        warnings.warn(
            f"{pretrained} does not say whether its weights were trained with GELU or QuickGELU; GELU is taken. Pass "
            "quick_gelu=True if they descend from OpenAI's, else quick_gelu=False",
            stacklevel=4,
        )
    return of_name or bool(wanted)


def is_listed_model(name: str) -> bool:
    """Whether open_clip lists an architecture of this name."""
    return name in open_clip.list_models()


def is_listed_tag(name: str, pretrained: str) -> bool:
    """Whether open_clip lists weights with this tag for this architecture."""
    return bool(tiny_weights(name, pretrained) or open_clip.get_pretrained_cfg(name, pretrained))


def published_at(name: str, pretrained: str) -> str | None:
    """The Hub repository of the weights with this tag, or `None` if open_clip names none."""
    stated: dict[str, Any] = open_clip.get_pretrained_cfg(name, pretrained) or {}
    # open_clip writes owner/name/ or owner/name/file.
    parts = str(stated.get("hf_hub") or "").split("/")
    return "/".join(parts[:2]) if len(parts) >= 2 and all(parts[:2]) else None


# Licences of published weights, by how their tags begin, as their authors state them beside the weights.
_LICENSES = {"openai": "mit", "laion": "mit", "datacomp": "mit", "webli": "apache-2.0", "generated": "mit"}


def license_of(pretrained: str) -> str | None:
    """The Hub's identifier of the licence of the weights with this tag, or `None` if it is not known here."""
    listed = not names_repository(pretrained)  # a repository may be called openai/… and be anybody's
    return next((terms for start, terms in _LICENSES.items() if listed and pretrained.startswith(start)), None)


def architecture_of(name: str) -> dict[str, Any]:
    """open_clip's configuration of a listed architecture, without what one may choose: image size and activation."""
    return without_choices(open_clip.get_model_config(name) or {})


def listed_as(model_cfg: dict[str, Any]) -> str | None:
    """open_clip's name of an architecture, from its configuration; `None` if it lists none like it."""
    wanted = without_choices(model_cfg)
    return next((name for name in open_clip.list_models() if architecture_of(name) == wanted), None)


def without_choices(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """A model configuration without its image size and activation."""
    config = deepcopy(model_cfg)
    config.pop("quick_gelu", None)
    if isinstance(config.get("vision_cfg"), dict):
        config["vision_cfg"].pop("image_size", None)
    return config


def names_that_fit(weights: Mapping[str, Tensor]) -> list[str]:
    """open_clip's names of the architectures with OpenAI's towers that have weights of these shapes, shortest first.

    Args:
        weights: Weights under open_clip's names; of any device, `meta` too. Image size and activation do not count.
    """
    shapes = {name.removeprefix("text."): value.shape for name, value in weights.items()}
    try:
        patches, tokens = shapes["visual.conv1.weight"], shapes["token_embedding.weight"]
        found = {
            "embed_dim": shapes["visual.proj"][1],
            "vision": (patches[0], patches[3], _depth(shapes, "visual.")),
            "text": (tokens[1], _depth(shapes, None), tokens[0]),
        }
    except (KeyError, IndexError):
        return []
    fits = [name for name in open_clip.list_models() if _summary(config_of(name)) == found]
    return sorted(fits, key=lambda name: (len(name), name))


def siglip_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """open_clip's configuration of the architecture that a SiglipModel's `config.json` describes, if it lists that.

    Raises:
        KeyError, TypeError: It is not a configuration of transformers.
    """
    vision, text = config["vision_config"], config["text_config"]
    # What transformers leaves out are the numbers of SigLIP's ViT-B/16.
    size, patch = int(vision.get("image_size", 224)), int(vision.get("patch_size", 16))
    wanted = {
        "embed_dim": int(vision.get("hidden_size", 768)),
        "width": int(text.get("hidden_size", 768)),
        "layers": int(text.get("num_hidden_layers", 12)),
        "heads": int(text.get("num_attention_heads", 12)),
        "vocab_size": int(text.get("vocab_size", 32000)),
        "context_length": int(text.get("max_position_embeddings", 64)),
    }
    fits: list[dict[str, Any]] = []
    for name in open_clip.list_models():
        listed = config_of(name)
        found = {"embed_dim": listed["embed_dim"], **listed.get("text_cfg", {})}
        trunk = listed.get("vision_cfg", {}).get("timm_model_name", "")
        if f"_patch{patch}_siglip_" in trunk and {key: found.get(key) for key in wanted} == wanted:
            fits.append(listed)
    if not fits:
        return None
    # Of one architecture at several sizes, that of this size has the tokenizer of this model.
    chosen = min(fits, key=lambda each: abs(each["vision_cfg"]["image_size"] - size))
    chosen["vision_cfg"]["image_size"] = size
    return chosen


def _depth(shapes: Mapping[str, Any], tower: str | None) -> int:
    found = (_BLOCK.match(name) for name in shapes)
    return len({block[2] for block in found if block is not None and block[1] == tower})


def _summary(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that `names_that_fit` compares; less for towers of other kinds."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config:
        return {}
    return {
        "embed_dim": config.get("embed_dim"),
        "vision": (vision.get("width"), vision.get("patch_size"), vision.get("layers")),
        "text": (text.get("width"), text.get("layers"), text.get("vocab_size", 49408)),
    }
