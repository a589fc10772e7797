"""Saves a prompted model to a folder and makes it again from there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from promptreid.backbones.catalog import uses_quick_gelu
from promptreid.backbones.loading import model_config, preprocess_config
from promptreid.encoders.clip import PromptedCLIP
from promptreid.encoders.matching import check_clip, make_clip, source_in
from promptreid.errors import CheckpointError
from promptreid.files import is_finite
from promptreid.hub.download import Repository, read_repository
from promptreid.hub.fingerprint import fingerprint, weights_changed
from promptreid.hub.manifest import PromptManifest
from promptreid.hub.manifest_values import ENCODERS
from promptreid.hub.prompt_files import MANIFEST, PromptFiles, read_prompt_files, write_prompt_files
from promptreid.version import __version__

Encoders = Literal["auto", "always"]
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def save_prompts(
    model: PromptedCLIP,
    directory: str | Path,
    *,
    encoders: Encoders = "auto",
    overwrite: bool = False,
) -> Path:
    """Save a model's prompts, and its encoders where they are no longer the base's.

    After stage 1 the folder holds `prompts.safetensors` and `prompt_config.json`, some kilobytes. After stage 2 the
    encoders have changed, and prompts alone would be useless on the base: the weights then come along as open_clip's
    own `open_clip_model.safetensors` and `open_clip_config.json`. Killed at any moment, a save over an older one
    leaves the older or the newer one; other files in the folder are not touched.

    Args:
        model: What to save.
        directory: The folder; made if it is not there.
        encoders: `"auto"` saves the weights if they differ from the base's, `"always"` in any case.
        overwrite: Replace prompts that the folder holds already.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds prompts already.
        NotADirectoryError: `directory` is a file.
        OSError: The disk is full, or the folder cannot be written.
        TypeError: `model` is no `PromptedCLIP`.
        ValueError: It is not known where the open_clip model came from, something to be saved is not finite, or
            `encoders` is unknown.

    Example:
        >>> import tempfile
        >>> from promptreid import PromptedCLIP, load_clip, load_prompts
        >>> clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
        >>> folder = save_prompts(PromptedCLIP(clip), tempfile.mkdtemp())
        >>> sorted(path.name for path in folder.glob("[!.]*"))
        ['prompt_config.json', 'prompts.safetensors']
        >>> load_prompts(folder).image_size
        (96, 48)
    """
    directory = Path(directory)
    _check_saveable(model, encoders)
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; give a folder to save prompts in")
    if (directory / MANIFEST).exists() and not overwrite:
        raise FileExistsError(f"{directory} holds prompts already; choose another folder, or pass overwrite=True")
    manifest = _describe(model)
    tensors = {name: value.float() for name, value in model.prompt_state_dict().items()}
    weights = model.clip.state_dict() if encoders == "always" or _encoders_changed(model) else None
    config: dict[str, Any] | None = None
    if weights is not None:
        config = {"model_cfg": model_config(model.clip), "preprocess_cfg": preprocess_config(model.clip)}
    if not is_finite({**tensors, **(weights or {})}):
        raise ValueError("the model holds NaN or infinity; training diverged, so nothing was saved")
    write_prompt_files(directory, manifest, tensors, encoders=weights, open_clip_config=config)
    return directory


def load_prompts(
    repo_or_directory: str | Path,
    *,
    model: nn.Module | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    trust_base: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> PromptedCLIP:
    """Load a model that `save_prompts` or `push_prompts` wrote; its scores equal the saver's.

    Prompts belong to the weights, the activation and the image size they were trained with, and a `model` that
    differs in any of them is refused. To use them at another image size all the same, at other scores, set them
    yourself: `PromptedCLIP(clip, saved.config).load_prompt_state_dict(saved.prompt_state_dict())`.

    Args:
        repo_or_directory: A folder, or else the id of a repository on the Hub.
        model: A bare open_clip model to put the prompts into; `None` makes the right one, from the folder's own
            weights if it has them, else from the base's pretrained tag.
        revision: Branch, tag or commit of the repository; `None` for main.
        token: Access token for it; `None` for the one that is logged in.
        cache_dir: huggingface_hub's cache, and the folder for a base that is downloaded; `None` for their defaults.
        local_files_only: Take the repository from the cache alone.
        trust_base: Make the base even if open_clip does not list its architecture or weights: a file on your disk,
            say. Somebody you do not know could then make open_clip load what they like.
        device: Where the model is put; `None` leaves it on the CPU, or where `model` is.
        dtype: Precision of the encoders; prompts stay float32, as in training.

    Returns:
        The prompted model, in eval mode.

    Raises:
        CheckpointError: A file is missing or corrupt, the base is not one that open_clip lists, or the prompts do
            not belong to `model`; says what differs.
        HubError: The repository, its revision or a file is not there or may not be seen, or the Hub is not reached.
        AttachmentError: `model` carries prompts already.
        FileNotFoundError: There is no such folder, and it is no repository's id either.
        TypeError: `model` is no open_clip model, or `dtype` is not floating point.
        ValueError: `revision` was given for a folder.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"dtype is {dtype!r}, expected a floating-point torch.dtype such as torch.bfloat16")
    if isinstance(model, PromptedCLIP):
        raise TypeError("model is a PromptedCLIP already; pass the open_clip model that model.detach() returns")
    access = Access(revision, token, cache_dir, local_files_only)
    files = read_prompts(repo_or_directory, access, with_encoders=model is None)
    if model is None:
        clip = make_clip(files, trust_base=trust_base, cache_dir=cache_dir)
    else:
        check_clip(files, model)
        clip = model
    prompted = _wrap(clip, files)
    if dtype is not None:
        prompted.clip.to(dtype)
    prompted = prompted if device is None else prompted.to(device)
    return prompted.eval()


@dataclass(frozen=True)
class Access:
    """How to get at a repository: what `load_prompts` takes for that."""

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


def read_prompts(repo_or_directory: str | Path, access: Access, *, with_encoders: bool) -> PromptFiles:
    """Read prompts from a folder or a repository, without making a model.

    Raises:
        As `load_prompts`.
    """
    if not isinstance(repo_or_directory, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{repo_or_directory!r} is neither a folder nor the id of a Hub repository such as 'user/name'")
    folder = Path(repo_or_directory)
    if folder.is_dir():
        if access.revision is not None:
            raise ValueError(f"{folder} is a folder, which has no revision {access.revision!r}; leave revision out")
        return read_prompt_files(folder, with_encoders=with_encoders)
    if isinstance(repo_or_directory, Path) or folder.exists() or not _REPO_ID.fullmatch(repo_or_directory):
        raise FileNotFoundError(
            f"there is no folder {folder}; give a folder that save_prompts wrote, or the id of a Hub repository such "
            "as 'user/name'"
        )
    repository = Repository(repo_or_directory, access.revision, access.token, access.cache_dir, access.local_files_only)
    return read_repository(repository, with_encoders=with_encoders)


def _wrap(clip: nn.Module, files: PromptFiles) -> PromptedCLIP:
    manifest = files.manifest
    prompted = PromptedCLIP(clip, manifest.prompts, source=source_in(manifest), initialize=False)
    try:
        prompted.load_prompt_state_dict(files.tensors)
    except CheckpointError:
        prompted.detach()
        raise
    if ENCODERS in manifest.sha256:
        prompted.base_fingerprint = manifest.base_fingerprint
        prompted.base_samples = None
    return prompted


def _check_saveable(model: PromptedCLIP, encoders: str) -> None:
    if not isinstance(model, PromptedCLIP):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"model is {type(model).__name__}, expected a PromptedCLIP; wrap it: PromptedCLIP(clip)")
    if encoders not in ("auto", "always"):
        raise ValueError(f'encoders is {encoders!r}, expected "auto" or "always"')
    if model.source is None:
        raise ValueError(
            "it is not known which open_clip model this is; make it with promptreid.load_clip(name, ...), or pass "
            "source=ClipSource(name, pretrained, image_size) to PromptedCLIP"
        )
    gained = sorted(model.clip.state_dict().keys() - (model.base_samples or model.clip.state_dict()).keys())
    if gained:
        raise ValueError(
            f"the open_clip model has gained {', '.join(gained[:5])} since it was wrapped, and open_clip could not "
            "load what would be saved; take them out first"
        )


def _encoders_changed(model: PromptedCLIP) -> bool:
    if model.source is None or model.source.pretrained is None or model.base_samples is None:
        return True
    return weights_changed(model.base_samples, model.clip)


def _describe(model: PromptedCLIP) -> PromptManifest:
    if model.source is None:
        raise ValueError("it is not known which open_clip model this is")
    return PromptManifest(
        model_name=model.source.name,
        pretrained=model.source.pretrained,
        image_size=model.image_size,
        quick_gelu=uses_quick_gelu(model.clip),
        prompts=model.config,
        shapes={name: tuple(value.shape) for name, value in model.prompt_state_dict().items()},
        base_fingerprint=model.base_fingerprint,
        encoders_fingerprint=fingerprint(model.clip) if _encoders_changed(model) else model.base_fingerprint,
        sha256={},
        library_version=__version__,
    )
