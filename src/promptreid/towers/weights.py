"""Loads weights into an open_clip model, after fitting it to the layout that they were saved in."""

import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import open_clip
import timm
from open_clip.factory import load_state_dict as read_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from promptreid.errors import CheckpointError
from promptreid.files import is_finite
from promptreid.towers.families import patch_grid_of, resize_images
from promptreid.towers.features import image_size_of
from promptreid.towers.names import check_image_size

CONFIG_NAME = "open_clip_config.json"
# What of a configuration is handed on as keyword arguments, to tokenizers and layers.
_KEYWORDS: Mapping[str, Set[str]] = {
    "tokenizer_kwargs": {"clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"},
    "act_kwargs": {"approximate"},
    "norm_kwargs": {"eps", "elementwise_affine"},
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FOREIGN_SUFFIXES = (".npz", ".npy")  # other frameworks' files, which open_clip converts at the native size


def load_weights(
    clip: nn.Module, state_dict: Mapping[str, Tensor], *, saved_size: tuple[int, int] | None = None
) -> None:
    """Load every weight into `clip`, resizing what the image tower keeps by position.

    Args:
        clip: The open_clip model.
        state_dict: Its weights.
        saved_size: (height, width) the weights were saved at; `None` for a square.

    Raises:
        RuntimeError: Keys are missing or unexpected, or shapes differ.
    """
    weights = {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
    target = image_size_of(clip)
    key = patch_grid_of(clip).key
    rows = weights[key].shape[-2] if key in weights else None
    try:
        _fit_layout(clip, rows, saved_size, what=key)
        clip.load_state_dict(weights, strict=True)
    finally:
        resize_images(clip, target)


def load_weight_file(clip: nn.Module, path: Path, *, saved_size: tuple[int, int] | None = None) -> None:
    """Load a weight file in any form that open_clip reads, and leave `clip` at the size it was saved at.

    Args:
        clip: The open_clip model.
        path: The file.
        saved_size: (height, width) it was saved at; `None` reads it from the `open_clip_config.json` beside the file,
            or takes the grid for a square.

    Raises:
        RuntimeError: The weights do not fit the model, or were saved at another size than stated.
        CheckpointError: A weight is NaN or infinite.
        ValueError: The grid is not square, and nothing says how many rows and columns it has.
    """
    saved = saved_size
    if saved is None and (path.parent / CONFIG_NAME).is_file():
        saved = saved_image_size(read_config(path.parent)["model_cfg"])
    try:
        _fit_layout(clip, _rows_in_file(clip, path), saved, what=str(path))
        open_clip.load_checkpoint(clip, str(path))  # pyright: ignore[reportArgumentType]
    except (SafetensorError, EOFError, UnpicklingError) as error:
        if "Unsupported global" in str(error):  # torch's own message recommends switching the protection off
            raise RuntimeError(
                f"{path} holds more than tensors, and reading it could run code; have its author publish it as "
                "safetensors"
            ) from error
        raise RuntimeError(
            f"{path} is not a weight file, or is damaged ({type(error).__name__}); expected weights of the named "
            "architecture as .safetensors or .pt. Copy or download it again"
        ) from error
    wrong = [name for name, value in clip.state_dict().items() if not is_finite({name: value})]
    if wrong:
        raise CheckpointError(
            f"{path} holds NaN or infinity in {', '.join(wrong[:5])}; use another copy of the weights"
        )


def saved_image_size(model_cfg: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) that an open_clip configuration states."""
    stated = model_cfg["vision_cfg"]["image_size"]
    return (stated, stated) if isinstance(stated, int) else check_image_size(stated)


def read_config(folder: Path) -> dict[str, Any]:
    """What the `open_clip_config.json` of a folder says: `model_cfg` and `preprocess_cfg`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not one.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        saved_image_size(config["model_cfg"])
        check_architecture(config["model_cfg"])
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}; a folder of weights needs one to say which model it is") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an open_clip configuration with model_cfg.vision_cfg.image_size, or not a safe one: {error}"
        ) from None
    return config


def check_architecture(model_cfg: Mapping[str, Any], *, most_layers: int = 1024) -> None:
    """Refuse a foreign configuration that asks for more blocks than memory holds, or could make a library run code.

    What of it reaches transformers and timm is on a list: no `trust_remote_code`, no file of this machine, no
    repository in place of a name that timm knows.

    Raises:
        ValueError: A value is not on the list; names it.
    """
    for name, part in model_cfg.items():
        values = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        layers = values.get("layers", 0)
        counts: list[Any] = cast("list[Any]", layers) if isinstance(layers, list) else [layers]
        if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) > most_layers:
            raise ValueError(f"layers of {name} is {str(layers)[:60]}, expected 0 to {most_layers} in all")
        _check_handed_on(values)


def _check_handed_on(values: Mapping[str, Any]) -> None:
    for key, allowed in _KEYWORDS.items():
        given: Any = values.get(key) or {}
        if not isinstance(given, dict) or cast("dict[str, Any]", given).keys() - allowed:
            known = ", ".join(sorted(allowed))
            raise ValueError(f"{key} is {str(cast('Any', given))[:200]}, expected no keys but {known}")
    trunk: Any = values.get("timm_model_name")
    if trunk is not None and not (isinstance(trunk, str) and timm.is_model(trunk) and not set(trunk) & set("/:")):
        raise ValueError(f"timm_model_name is {str(trunk)[:200]!r}, which timm does not list")
    for key in ("hf_model_name", "hf_tokenizer_name"):
        named: Any = values.get(key)
        if named and not (isinstance(named, str) and _HUB_NAME.fullmatch(named)):
            raise ValueError(f"{key} is {str(named)[:200]!r}, expected the name of a Hub repository")


def _rows_in_file(clip: nn.Module, path: Path) -> int | None:
    """Rows of the position grid that a file holds; `None` if it is not found under open_clip's name."""
    key = patch_grid_of(clip).key
    if path.suffix in _FOREIGN_SUFFIXES or not key:
        return None
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return file.get_slice(key).get_shape()[-2] if key in file.keys() else None  # noqa: SIM118
    state: Any = read_state_dict(str(path))
    return state[key].shape[-2] if key in state else None


def _fit_layout(clip: nn.Module, rows: int | None, saved: tuple[int, int] | None, *, what: str) -> None:
    """Resize `clip` to what was saved, so that every weight is loaded for the position it was learned at."""
    if rows is None:
        if saved is not None:
            resize_images(clip, saved)
        return
    own = patch_grid_of(clip)
    patches = rows - own.prefix
    if saved is None:
        side = round(patches**0.5)
        saved = (side * own.patch[0], side * own.patch[1])
        hint = "it was saved for images that are not square: state their size"
    else:
        hint = "the weights were saved at another image size than stated"
    resize_images(clip, saved)
    expected = patch_grid_of(clip).shape
    if expected[0] * expected[1] != patches:
        raise RuntimeError(
            f"{what} holds {patches} patches, which is not the {expected[0]} x {expected[1]} grid expected; {hint} "
            "(weights_size=(height, width), saved_size in load_weights)"
        )
