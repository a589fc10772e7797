"""The open_clip model that saved prompts belong to: makes it, or says why a given one is not it."""

from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import nn

from promptreid.errors import CheckpointError, HubError, UnsupportedTowerError, listed
from promptreid.hub.manifest import ENCODERS_CONFIG, PromptManifest
from promptreid.hub.prompt_files import PromptFiles, SavedEncoders, read_weights
from promptreid.hub.repository import TRANSPORT_ERRORS
from promptreid.towers.empty_models import weight_shapes
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.towers.fingerprint import (
    fingerprint,
    nearer,
    same_fingerprint,
    weights_match,
    without_tensors,
)
from promptreid.towers.loading import ClipSource, current_digests, load_clip, load_clip_from_config, source_of
from promptreid.towers.names import architecture_of, is_listed_model, is_listed_tag, without_choices
from promptreid.towers.tower import PixelTower, image_size_of, uses_quick_gelu

Origin = Literal["made", "given", "held"]
_ADVICE: dict[Origin, str] = {
    "made": "The base has changed since they were saved; make it as it was, and pass it as model=",
    "given": "Leave model out to load the right one",
    "held": "Load them by themselves, with load_prompts",
}


def make_clip(files: PromptFiles, *, trust_base: bool = False, cache_dir: str | Path | None = None) -> nn.Module:
    """Make the open_clip model that prompts belong to: from the weights beside them, else from the base's tag.

    Args:
        files: The prompts.
        trust_base: Also take an architecture or weights that open_clip does not list.
        cache_dir: Folder for a downloaded base; `None` for open_clip's default.

    Raises:
        CheckpointError: open_clip does not list the model, or it cannot be made.
        HubError: The base cannot be downloaded.
    """
    manifest = files.manifest
    _check_listed(manifest, files.encoders, trust_base=trust_base)
    source = manifest.source
    try:
        if files.encoders is not None:
            return _make_saved(files.encoders, source)
        return make_base(source, cache_dir=cache_dir)
    except UnpicklingError as error:
        # torch's own words recommend switching the protection off.
        raise CheckpointError(
            f"the weights of {_base_words(manifest)} hold more than tensors, and reading them could run code. "
            "Have their author publish them as safetensors"
        ) from error
    except (*TRANSPORT_ERRORS, RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise _not_made(manifest, error) from error


def make_base(source: ClipSource, **options: Any) -> nn.Module:
    """Make the open_clip model of a source again, as `load_clip` made it; `options` are further ones, or others."""
    settings: dict[str, Any] = {
        "pretrained": source.pretrained,
        "image_size": source.image_size,
        "weights_size": source.weights_size,
        "quick_gelu": source.quick_gelu,
    }
    return load_clip(source.name, **{**settings, **options})


def _not_made(manifest: PromptManifest, error: BaseException) -> CheckpointError | HubError:
    # open_clip reports a failed download as errors of other types.
    fault: BaseException | None = error
    while fault is not None and (type(fault) is FileNotFoundError or not isinstance(fault, TRANSPORT_ERRORS)):
        fault = fault.__context__
    if fault is not None:
        return HubError(
            f"the base of these prompts, {_base_words(manifest)}, cannot be downloaded: {str(error)[:500]}. Check the "
            "network, or make it yourself and pass it as model="
        )
    return CheckpointError(
        f"the base of these prompts, {_base_words(manifest)}, cannot be made: {str(error)[:500]}. "
        "Make it yourself and pass it as model="
    )


def check_clip(files: PromptFiles, clip: nn.Module, origin: Origin) -> tuple[float, ...]:
    """Refuse an open_clip model that prompts do not belong to, naming every difference.

    Weights are read whole, which takes 0.4 s for a ViT-B/16, unless nothing was written to them since they were read.

    Args:
        files: The prompts; weights beside them are what `clip` was made from.
        clip: The model.
        origin: Whether it was made for these prompts, given to be loaded into, or holds others already.

    Returns:
        The fingerprint of its weights, which takes time to compute.

    Raises:
        CheckpointError: Architecture, activation, image size, width, depth or weights differ.
        TypeError: It is not an open_clip model.
    """
    if isinstance(clip, torch.jit.ScriptModule):
        raise TypeError("model is TorchScript; make it without jit, as promptreid.load_clip does")
    if not hasattr(clip, "visual") or not hasattr(clip, "encode_text"):
        raise TypeError(f"model is {type(clip).__name__}, expected the open_clip model that promptreid.load_clip makes")
    manifest, whole = files.manifest, fingerprint(clip)
    differences = _setup_differences(manifest, clip)
    weights = _weight_difference(manifest, whole)
    # Weights from beside the prompts have their own digest.
    if not differences and not weights and files.encoders is None:
        weights = _checksum_difference(manifest, clip)
    if differences or weights:
        # Towers that hold the right weights are the right ones; only for an error is it worth finding them here.
        differences += [*_tower_differences(manifest, clip), *weights]
        raise CheckpointError(
            f"these prompts belong to {_base_words(manifest)}, and not to this model: {'; '.join(differences)}. "
            f"{_ADVICE[origin]}"
        )
    return whole


def _make_saved(encoders: SavedEncoders, source: ClipSource) -> nn.Module:
    config = encoders.open_clip_config
    stated = config["model_cfg"]["vision_cfg"]["image_size"]
    if stated != list(source.image_size):
        raise CheckpointError(
            f"{encoders.path.parent} contradicts itself: {ENCODERS_CONFIG} states an image size of {str(stated)[:60]}, "
            f"prompt_config.json one of {list(source.image_size)}; save the prompts again"
        )
    check_shapes(encoders, source.name)
    return load_clip_from_config(
        config["model_cfg"],
        read_weights(encoders.path),
        image_size=source.image_size,
        preprocess_cfg=config["preprocess_cfg"],
        source=source,
    )


def check_shapes(encoders: SavedEncoders, name: str) -> None:
    """Hold the header of a file of weights against its architecture, before any memory is taken for either.

    Raises:
        CheckpointError: The file lacks weights, has others, or has them in another shape.
    """
    expected = weight_shapes(encoders.open_clip_config["model_cfg"])
    if expected is None or expected == dict(encoders.shapes):
        return
    missing = sorted(expected.keys() - encoders.shapes.keys())
    unexpected = sorted(encoders.shapes.keys() - expected.keys())
    both = sorted(expected.keys() & encoders.shapes.keys())
    shapes = [name for name in both if expected[name] != tuple(encoders.shapes[name])]
    raise CheckpointError(
        f"{encoders.path} does not hold the weights of {name}: missing {listed(missing) or 'none'}, "
        f"unexpected {listed(unexpected) or 'none'}, of another shape {listed(shapes) or 'none'}; "
        "save the prompts again"
    )


def _check_listed(manifest: PromptManifest, encoders: SavedEncoders | None, *, trust_base: bool) -> None:
    if trust_base:
        return
    advice = "If you trust the author of this folder, pass trust_base=True"
    if not is_listed_model(manifest.model_name):
        raise CheckpointError(
            f"open_clip lists no architecture {manifest.model_name!r}, which these prompts belong to. {advice}"
        )
    if encoders is not None:
        if without_choices(encoders.open_clip_config["model_cfg"]) != architecture_of(manifest.model_name):
            raise CheckpointError(
                f"the model_cfg in {encoders.path.parent} is not open_clip's of {manifest.model_name}. {advice}"
            )
    elif manifest.pretrained is None or not is_listed_tag(manifest.model_name, manifest.pretrained):
        raise CheckpointError(
            f"open_clip lists no weights of {manifest.model_name} tagged {manifest.pretrained!r}. {advice}, "
            "or make the base yourself and pass it as model="
        )


def _setup_differences(manifest: PromptManifest, clip: nn.Module) -> list[str]:
    differences: list[str] = []
    source = source_of(clip)
    # The suffix stands for the activation and the commit for the weights, which are compared by themselves.
    names = [
        name.partition("@")[0].removesuffix("-quickgelu")
        for name in (manifest.model_name, (source and source.name) or "")
    ]
    if source and names[0] != names[1]:
        differences.append(f"this is {source.name}")
    if uses_quick_gelu(clip) != manifest.quick_gelu:
        names = ("GELU", "QuickGELU")
        differences.append(f"they compute {names[manifest.quick_gelu]}, this {names[not manifest.quick_gelu]}")
    if image_size_of(clip) != manifest.image_size:
        differences.append(f"they were trained at image size {manifest.image_size}, this has {image_size_of(clip)}")
    return differences


def _weight_difference(manifest: PromptManifest, whole: tuple[float, ...]) -> list[str]:
    saved, base = manifest.encoders_fingerprint, manifest.base_fingerprint
    own = whole if len(saved) >= len(whole) else without_tensors(whole)
    tuned = saved != base
    if same_fingerprint(own, saved) and not (tuned and not nearer(own, saved, base)):
        return []
    return [f"its weights differ{': theirs were fine-tuned together with the prompts' if tuned else ''}"]


def _checksum_difference(manifest: PromptManifest, clip: nn.Module) -> list[str]:
    if not manifest.weights or weights_match(manifest.weights, clip, current_digests(clip)):
        return []
    return ["some of its weights differ (at the places that are sampled they agree, and their checksums do not)"]


def _tower_differences(manifest: PromptManifest, clip: nn.Module) -> list[str]:
    differences: list[str] = []
    for name, find in (("vision", find_vision_tower), ("text", find_text_tower)):
        shape = manifest.shapes.get(f"{name}.prompts.tokens", ())
        with suppress(UnsupportedTowerError):
            tower = find(clip)
            if name in manifest.kinds or isinstance(tower, PixelTower) or len(shape) != 3:
                continue  # whether such prompts fit depends only on their shape
            if shape[2] != tower.width:
                differences.append(f"their {name} width is {shape[2]}, this has {tower.width}")
            if shape[0] > len(tower.blocks):
                differences.append(f"their {name} depth is {shape[0]}, this has {len(tower.blocks)} blocks")
    return differences


def _base_words(manifest: PromptManifest) -> str:
    tag = "" if manifest.pretrained is None else f" tagged {manifest.pretrained!r}"
    return f"{manifest.model_name}{tag} at image size {manifest.image_size}"
