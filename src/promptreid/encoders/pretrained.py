"""Saves a prompted model to a folder and makes it again from there."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from promptreid.backbones.loading import (
    ClipSource,
    load_clip,
    load_clip_from_config,
    model_config,
    preprocess_config,
)
from promptreid.encoders.clip import PromptedCLIP
from promptreid.errors import CheckpointError
from promptreid.hub.fingerprint import fingerprint, same_fingerprint
from promptreid.hub.manifest import PromptManifest
from promptreid.hub.prompt_files import MANIFEST, PromptFiles, read_prompt_files, write_prompt_files
from promptreid.version import __version__


def save_prompts(
    model: PromptedCLIP,
    directory: str | Path,
    *,
    encoders: Literal["auto", "always"] = "auto",
    overwrite: bool = False,
) -> Path:
    """Save a model's prompts, and its encoders where they are no longer the base's.

    After stage 1 the folder holds `prompts.safetensors` and `prompt_config.json`, some kilobytes. After stage 2 the
    encoders have changed, and prompts alone would be useless on the base: the weights then come along as open_clip's
    own `open_clip_model.safetensors` and `open_clip_config.json`.

    Args:
        model: What to save.
        directory: The folder; made if it is not there.
        encoders: `"auto"` saves the weights if they differ from the base's, `"always"` in any case.
        overwrite: Replace prompts that the folder holds already.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds prompts already.
        ValueError: It is not known where the open_clip model came from, or `encoders` is unknown.
    """
    directory = Path(directory)
    if encoders not in ("auto", "always"):
        raise ValueError(f'encoders is {encoders!r}, expected "auto" or "always"')
    if model.source is None:
        raise ValueError(
            "it is not known which open_clip model this is; make it with promptreid.load_clip(name, ...), or pass "
            "source=ClipSource(name, pretrained, image_size) to PromptedCLIP"
        )
    if (directory / MANIFEST).exists() and not overwrite:
        raise FileExistsError(f"{directory} holds prompts already; choose another folder, or pass overwrite=True")
    now = fingerprint(model.clip)
    changed = now != model.base_fingerprint or model.source.pretrained is None
    manifest = PromptManifest(
        model_name=model.source.name,
        pretrained=model.source.pretrained,
        image_size=model.image_size,
        prompts=model.config,
        text_shape=_shape(model.text.prompts.tokens),
        vision_shape=_shape(model.vision.prompts.tokens),
        base_fingerprint=model.base_fingerprint,
        encoders_fingerprint=now,
        sha256={},
        library_version=__version__,
    )
    weights = model.clip.state_dict() if changed or encoders == "always" else None
    config: dict[str, Any] | None = None
    if weights is not None:
        config = {"model_cfg": model_config(model.clip), "preprocess_cfg": preprocess_config(model.clip)}
    write_prompt_files(directory, manifest, model.prompt_state_dict(), encoders=weights, open_clip_config=config)
    return directory


def load_prompts(
    directory: str | Path,
    *,
    model: nn.Module | None = None,
    device: str | torch.device | None = None,
) -> PromptedCLIP:
    """Load a model that `save_prompts` wrote; its scores equal the saver's.

    Args:
        directory: The folder.
        model: A bare open_clip model to put the prompts into; `None` makes the right one, from the folder's own
            weights if it has them, else from the base's pretrained tag.
        device: Where the model is put; `None` leaves it on the CPU, or where `model` is.

    Returns:
        The prompted model, in eval mode.

    Raises:
        CheckpointError: A file is missing or corrupt, or the prompts do not belong to `model`; says what differs.
        FileNotFoundError: There is no such folder.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; this version loads local folders, so download a Hub repository first "
            "with huggingface_hub.snapshot_download(repo_id) and give the folder it returns"
        )
    files = read_prompt_files(folder)
    clip = _make_clip(files) if model is None else _check_clip(files, model)
    prompted = PromptedCLIP(clip, files.manifest.prompts, source=_source(files.manifest))
    try:
        prompted.load_prompt_state_dict(files.tensors)
    except CheckpointError:
        prompted.detach()
        raise
    prompted.base_fingerprint = files.manifest.base_fingerprint
    prompted = prompted if device is None else prompted.to(device)
    return prompted.eval()


def _shape(tokens: torch.Tensor) -> tuple[int, int, int]:
    blocks, prompts, width = tokens.shape
    return blocks, prompts, width


def _source(manifest: PromptManifest) -> ClipSource:
    return ClipSource(manifest.model_name, manifest.pretrained, manifest.image_size)


def _make_clip(files: PromptFiles) -> nn.Module:
    manifest = files.manifest
    if files.encoders is None or files.open_clip_config is None:
        clip = load_clip(manifest.model_name, pretrained=manifest.pretrained, image_size=manifest.image_size)
        if not same_fingerprint(fingerprint(clip), manifest.base_fingerprint):
            raise CheckpointError(
                f"the weights of {manifest.model_name} tagged {manifest.pretrained!r} are not those that the prompts "
                "were trained with; did the tag change, or is it a file that was replaced?"
            )
        return clip
    try:
        return load_clip_from_config(
            files.open_clip_config["model_cfg"],
            files.encoders,
            image_size=manifest.image_size,
            preprocess_cfg=files.open_clip_config["preprocess_cfg"],
            source=_source(manifest),
        )
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the saved encoders do not fit their open_clip_config.json: {error}") from error


def _check_clip(files: PromptFiles, clip: nn.Module) -> nn.Module:
    if isinstance(clip, PromptedCLIP):
        raise CheckpointError("model is a PromptedCLIP already; pass the open_clip model that model.detach() returns")
    if not same_fingerprint(fingerprint(clip), files.manifest.encoders_fingerprint):
        changed = not same_fingerprint(files.manifest.base_fingerprint, files.manifest.encoders_fingerprint)
        raise CheckpointError(
            f"these prompts were trained with other weights: {files.manifest.model_name} "
            f"tagged {files.manifest.pretrained!r}"
            + (", fine-tuned after that" if changed else "")
            + ". Leave model out to load the right one"
        )
    return clip
