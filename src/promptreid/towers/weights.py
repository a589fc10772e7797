"""Loads weights into an open_clip model, after fitting it to the layout that they were saved in."""

import json
import logging
import re
import zipfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import open_clip
import timm
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CLIPVisionCfg, convert_to_custom_text_state_dict
from torch import Tensor, nn

from promptreid.errors import WeightsError, found_in, listed
from promptreid.towers.checkpoint_kinds import kind_of, unwrapped
from promptreid.towers.downloading import CONFIG_NAME, FOREIGN_CONFIG_NAME, FOREIGN_IMAGES_NAME, FOREIGN_WEIGHTS
from promptreid.towers.families import patch_grid_of, resize_images
from promptreid.towers.names import check_image_size, names_that_fit
from promptreid.towers.tower import image_size_of
from promptreid.towers.transformers_names import SIGLIP_MARK, SIGLIP_PREPROCESSING, open_clip_config, says_quick_gelu
from promptreid.towers.weight_files import WeightFile, damaged, open_weights

# What of a configuration is handed on as keyword arguments, to tokenizers and layers.
_KEYWORDS: Mapping[str, Set[str]] = {
    "tokenizer_kwargs": {"clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"},
    "act_kwargs": {"approximate"},
    "norm_kwargs": {"eps", "elementwise_affine"},
}
# Of these, what open_clip knows; it would assert.
_VALUES: Mapping[str, Set[str]] = {
    "clean": {"canonicalize", "lower", "whitespace"},
    "reduction_mask": {"simple", "random", "shuffle", "syntax", ""},
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
_WEIGHT_NAMES = tuple(f"{stem}{end}" for stem in _STEMS for end in (".safetensors", ".bin", ".pt")) + FOREIGN_WEIGHTS
_FOREIGN_SUFFIXES = (".npz", ".npy")  # other frameworks' files, which open_clip converts at the native size
_WITHOUT_FEATURES = ("logit_scale", "logit_bias")  # no feature is computed from them, and the field does not save them

_log = logging.getLogger("promptreid.towers")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights of known kind, and what it and the configuration beside it say of the model.

    Attributes:
        path: The file.
        title: Whose kind of checkpoint it is.
        quick_gelu: Whether it was trained with QuickGELU; `None` if nothing says it.
        saved_size: (height, width) it was saved at; `None` if nothing says it.
        trained_size: The same of the project that trained it, where its kind tells it.
        preprocess: open_clip's preprocessing, as far as it is known.
        left_out: Names in the file that are not weights of the two encoders.
        file: The tensors, not read yet; `None` for another framework's file, which open_clip reads.
        names: The names to load weights by → those in the file.
        convert: Brings the weights under those names into open_clip's names and layout.
        base: Tag of the weights that it was trained from and whose `lacks` it does not hold; `None` if it is whole.
        lacks: The weights that are the base's.
    """

    path: Path
    title: str = "another framework's"
    quick_gelu: bool | None = None
    saved_size: tuple[int, int] | None = None
    trained_size: tuple[int, int] | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict[str, Any])
    left_out: tuple[str, ...] = ()
    file: WeightFile | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    base: str | None = None
    lacks: tuple[str, ...] = ()

    def shapes(self) -> dict[str, Tensor]:
        """The encoders' weights on the `meta` device, under open_clip's names."""
        return self._converted(lambda file, name: file.shapes[name])

    def tensors(self) -> dict[str, Tensor]:
        """The encoders' weights under open_clip's names."""
        return self._converted(lambda file, name: file.read(name))

    @cached_property
    def text_positions(self) -> int | None:
        """Positions of its text tower, where that has a table of them."""
        shapes = self.shapes()
        tables = [shapes[name] for name in ("positional_embedding", "text.positional_embedding") if name in shapes]
        return tables[0].shape[0] if tables and tables[0].ndim else None

    def _converted(self, take: Callable[[WeightFile, str], Tensor]) -> dict[str, Tensor]:
        if self.file is None:
            return {}
        return self.convert({name: take(self.file, full) for name, full in self.names.items()})


def read_checkpoint(path: Path) -> Checkpoint:
    """Say what a file of weights is, or that of a folder, without reading the weights.

    Args:
        path: A file as safetensors, torch.save or TorchScript write it, or a folder of open_clip or transformers with
            one.

    Raises:
        WeightsError: It is damaged, of no known kind, or of one that cannot search by words.
        FileNotFoundError: The folder holds no weights.
        ValueError: A configuration beside it is not one.
    """
    if path.is_dir():
        path = weights_in(path)
    beside = read_config(path.parent) if (path.parent / CONFIG_NAME).is_file() else {}
    config: dict[str, Any] = beside.get("model_cfg", {})
    stated = _preprocessing(beside.get("preprocess_cfg") or {})
    size = saved_image_size(config) if config else None
    quick = bool(config.get("quick_gelu", False)) if config else None
    if path.suffix in _FOREIGN_SUFFIXES:
        return Checkpoint(path, quick_gelu=quick, saved_size=size, preprocess=stated)
    file = open_weights(path)
    short = unwrapped(file.shapes)
    kind = kind_of(short, file.shapes, file.description)
    if kind.title == "transformers" and not config:
        quick, stated = read_foreign_config(path.parent)
        stated = {**(SIGLIP_PREPROCESSING if SIGLIP_MARK in short else {}), **stated}
    names = {own: full for name, full in short.items() if (own := kind.name(name)) is not None}
    grid = names.get("visual.positional_embedding")
    told = None if grid is None else kind.image_size(file.shapes[grid].shape[0] - 1, file.description)
    return Checkpoint(
        path,
        title=kind.title,
        quick_gelu=kind.quick_gelu if quick is None else quick,
        saved_size=size or told,
        trained_size=told,
        preprocess={**kind.preprocess, **stated},
        left_out=tuple(sorted(short.keys() - {name for name in short if kind.name(name) is not None})),
        file=file,
        names=names,
        convert=kind.convert,
        base=kind.base,
        lacks=kind.lacks,
    )


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder as open_clip or transformers write it.

    Raises:
        FileNotFoundError: The folder has no weights.
    """
    weights = next((folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(
            f"{folder} holds no open_clip_model.safetensors, .bin or .pt, and no model.safetensors or "
            f"pytorch_model.bin of transformers (found: {found_in(folder)}); give the file of weights itself, or "
            "rename it"
        )
    return weights


def load_checkpoint(clip: nn.Module, checkpoint: Checkpoint, *, saved_size: tuple[int, int] | None = None) -> None:
    """Load a checkpoint, and leave `clip` at the size that it was saved at.

    Args:
        clip: The open_clip model.
        checkpoint: What `read_checkpoint` returned.
        saved_size: (height, width) it was saved at; `None` for what the checkpoint says, or else a square.

    Raises:
        WeightsError: The weights do not fit the model, are not finite, or were saved at another size than stated.
    """
    saved = saved_size or checkpoint.saved_size
    if checkpoint.file is None:
        if saved is not None:
            resize_images(clip, saved)
        try:
            open_clip.load_checkpoint(clip, str(checkpoint.path))  # pyright: ignore[reportArgumentType]
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise damaged(checkpoint.path, error) from error
    else:
        lent = {name: value for name, value in clip.state_dict().items() if name in checkpoint.lacks}
        # Names and shapes first, before memory is taken for the values.
        empty = {name: value.to("meta") for name, value in lent.items()}
        _load_fitted(clip, checkpoint.shapes() | empty, saved, what=str(checkpoint.path))
        tensors = checkpoint.tensors()
        if checkpoint.base is not None:
            _check_base(clip, tensors, checkpoint)
        _load_fitted(clip, tensors | lent, saved, what=str(checkpoint.path))
    stated: dict[str, Any] | None = getattr(clip.visual, "preprocess_cfg", None)
    if stated is not None:
        stated.update(checkpoint.preprocess)
    if checkpoint.left_out:
        heads = sorted({name.split(".")[0] for name in checkpoint.left_out})
        _log.info("%s is %s's: left out %s", checkpoint.path, checkpoint.title, ", ".join(heads))


def _check_base(clip: nn.Module, tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Refuse to complete a checkpoint whose text tower is not that of its base, to half a precision's rounding."""
    own = clip.state_dict()
    other = [
        name
        for name, value in tensors.items()
        if not name.startswith("visual.") and not torch.allclose(value.float(), own[name].float(), rtol=1e-3, atol=1e-6)
    ]
    if other:
        raise WeightsError(
            f"{checkpoint.path} holds no {', '.join(checkpoint.lacks)}, and its text tower is not that of the "
            f"{checkpoint.base!r} weights, which could lend them: {listed(other)} differ. It cannot search by words; "
            f'start from the weights it was trained from: pretrained="{checkpoint.base}"'
        )


def load_weights(
    clip: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    saved_size: tuple[int, int] | None = None,
    what: str = "the state dict",
) -> None:
    """Load every weight into `clip`, resizing what the image tower keeps by position.

    Args:
        clip: The open_clip model.
        state_dict: Its weights.
        saved_size: (height, width) the weights were saved at; `None` for a square.
        what: What they are, for errors.

    Raises:
        WeightsError: Keys are missing or unexpected, shapes differ, or values are not finite.
    """
    target = image_size_of(clip)
    try:
        _load_fitted(clip, state_dict, saved_size, what=what)
    finally:
        resize_images(clip, target)


def _load_fitted(
    clip: nn.Module, state_dict: Mapping[str, Tensor], saved: tuple[int, int] | None, *, what: str
) -> None:
    """Resize `clip` to what was saved, compare names and shapes, and load; on the `meta` device nothing is loaded."""
    weights = _as_open_clip(clip, state_dict)
    key = patch_grid_of(clip).key
    try:
        _fit_layout(clip, weights[key].shape[-2] if key in weights else None, saved, what=what)
    except WeightsError:
        _check_fit(clip, weights, what, but=key)  # of another architecture the number of patches says nothing
        raise
    _check_fit(clip, weights, what)
    if not any(value.is_meta for value in weights.values()):
        check_finite(weights, what)
        clip.load_state_dict(weights, strict=True)


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        WeightsError: There are some; says where.
    """
    bad = [name for name, value in weights.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise WeightsError(
            f"{what} holds NaN or infinity in {listed(bad)} ({len(bad)} of {len(weights)} weights); it is damaged, or "
            "its training diverged. Copy or download it again, or take an earlier checkpoint"
        )


def _as_open_clip(clip: Any, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32 under the names of today's open_clip, which still takes older ones."""
    weights = {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
    weights = convert_state_dict(clip, weights)
    if "positional_embedding" in weights and not hasattr(clip, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    for name in _WITHOUT_FEATURES:
        own: Tensor | None = getattr(clip, name, None)
        if own is None:
            weights.pop(name, None)
        elif name in weights:
            weights[name] = weights[name].reshape(own.shape)
        else:
            weights[name] = own.detach().to(next(iter(weights.values())).device) if weights else own.detach()
    position_ids = "text.transformer.embeddings.position_ids"
    if position_ids in weights and position_ids not in clip.state_dict():
        del weights[position_ids]
    return weights


def _check_fit(clip: nn.Module, weights: Mapping[str, Tensor], what: str, *, but: str | None = None) -> None:
    own = clip.state_dict()
    faults = {
        "Missing key(s)": sorted(own.keys() - weights.keys()),
        "Unexpected key(s)": sorted(weights.keys() - own.keys()),
        "size mismatch for": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in weights and name != but and weights[name].shape != own[name].shape
        ],
        "whole numbers in": [
            name
            for name, value in weights.items()
            if name in own and own[name].is_floating_point() and not (value.is_meta or value.is_floating_point())
        ],
    }
    found = "; ".join(f"{fault} {listed(names)}" for fault, names in faults.items() if names)
    if found:
        raise WeightsError(f"{what} does not hold the weights of this architecture: {found}. {_advice(weights)}")


def _advice(weights: Mapping[str, Tensor]) -> str:
    fits = names_that_fit(weights)
    if fits:
        return f"Its shapes are those of {fits[0]}: name that"
    return "Name the architecture that it was saved from, one of open_clip.list_models()"


def saved_image_size(model_cfg: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) that an open_clip configuration states, or else open_clip's default."""
    stated = model_cfg["vision_cfg"].get("image_size", CLIPVisionCfg.image_size)
    return (stated, stated) if isinstance(stated, int) else check_image_size(stated)


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in the `open_clip_config.json` of a folder, or else transformers': `model_cfg` and `preprocess_cfg`.

    Raises:
        FileNotFoundError: The folder has no configuration.
        ValueError: The file is not a configuration.
    """
    path = folder / CONFIG_NAME
    foreign = not path.is_file() and (folder / FOREIGN_CONFIG_NAME).is_file()
    try:
        if foreign:
            path = folder / FOREIGN_CONFIG_NAME
            stated = json.loads(path.read_text(encoding="utf-8"))
            config = {"model_cfg": open_clip_config(stated), "preprocess_cfg": read_foreign_config(folder)[1]}
        else:
            config = json.loads(path.read_text(encoding="utf-8"))
        saved_image_size(config["model_cfg"])
        if not isinstance(config["model_cfg"].get("quick_gelu", False), bool):
            raise TypeError(f"quick_gelu is {config['model_cfg']['quick_gelu']!r}, expected true or false")
        check_architecture(config["model_cfg"])
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}; a folder of weights needs one to say which model it is") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not an open_clip configuration with model_cfg.vision_cfg, or not a safe one: {error}"
            + (
                "; nor is it a CLIPModel's or SiglipModel's, and other models of transformers are loaded by "
                "open_clip's name" * foreign
            )
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
        for name in _VALUES.keys() & cast("dict[str, Any]", given).keys():
            if given[name] not in (None, *_VALUES[name]):
                known = ", ".join(sorted(_VALUES[name] - {""}))
                raise ValueError(f"{name} of {key} is {str(given[name])[:200]!r}, expected one of {known}")
    trunk: Any = values.get("timm_model_name")
    if trunk is not None and not (isinstance(trunk, str) and timm.is_model(trunk) and not set(trunk) & set("/:")):
        raise ValueError(f"timm_model_name is {str(trunk)[:200]!r}, which timm does not list")
    for key in ("hf_model_name", "hf_tokenizer_name"):
        named: Any = values.get(key)
        if named and not (isinstance(named, str) and _HUB_NAME.fullmatch(named)):
            raise ValueError(f"{key} is {str(named)[:200]!r}, expected the name of a Hub repository")


def read_foreign_config(folder: Path) -> tuple[bool | None, dict[str, Any]]:
    """Read transformers' configurations beside weights: whether they compute QuickGELU, and the preprocessing."""
    texts = [folder / name for name in (FOREIGN_CONFIG_NAME, FOREIGN_IMAGES_NAME)]
    try:
        model, images = (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} for path in texts)
        statistics = {
            "mean": images.get("image_mean"),
            "std": images.get("image_std"),
            "interpolation": {"2": "bilinear", "3": "bicubic"}.get(str(images.get("resample"))),
        }
        return (says_quick_gelu(model) if model else None), _preprocessing(statistics)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{texts[0]} or {texts[1].name} is not a configuration of transformers: {error}") from None


def _preprocessing(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Of a preprocessing configuration, what does not follow from the image size that is chosen here."""
    return {key: stated[key] for key in ("mean", "std", "interpolation") if stated.get(key)}


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
        raise WeightsError(
            f"{what} holds {patches} patches, which is not the {expected[0]} x {expected[1]} grid expected; {hint} "
            "(weights_size=(height, width), saved_size in load_weights)"
        )
