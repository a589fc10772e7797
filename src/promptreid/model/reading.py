"""Reads prompts from a folder or the Hub, and makes a model of any class that is a `DualEncoder` from them."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from promptreid.errors import CheckpointError
from promptreid.hub.download import Repository, read_repository
from promptreid.hub.manifest import ENCODERS
from promptreid.hub.prompt_files import PromptFiles, read_prompt_files
from promptreid.model.dual_encoder import DualEncoder
from promptreid.model.matching import check_clip, make_clip, source_in

Model = TypeVar("Model", bound=DualEncoder)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Access:
    """How to get at a repository: what `load_prompts` takes for that."""

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
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


def load_as(
    kind: type[Model],
    repo_or_directory: str | Path,
    access: Access,
    *,
    model: nn.Module | None = None,
    trust_base: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Do what `load_prompts` does, for a model of class `kind`.

    Raises:
        As `load_prompts`.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"dtype is {dtype!r}, expected a floating-point torch.dtype such as torch.bfloat16")
    if isinstance(model, DualEncoder):
        raise TypeError("model is a PromptedCLIP already; pass the open_clip model that model.detach() returns")
    files = read_prompts(repo_or_directory, access, with_encoders=model is None)
    if model is None:
        clip = make_clip(files, trust_base=trust_base, cache_dir=access.cache_dir)
    else:
        check_clip(files, model)
        clip = model
    prompted = _wrap(kind, clip, files)
    if dtype is not None:
        prompted.clip.to(dtype)
    prompted = prompted if device is None else prompted.to(device)
    return prompted.eval()


def _wrap(kind: type[Model], clip: nn.Module, files: PromptFiles) -> Model:
    manifest = files.manifest
    try:
        prompted = kind(clip, manifest.prompts, source=source_in(manifest), initialize=False)
    except ValueError as error:
        raise CheckpointError(f"these prompts cannot be put into {manifest.model_name}: {error}") from error
    try:
        prompted.load_prompt_state_dict(files.tensors)
    except CheckpointError:
        prompted.detach()
        raise
    if ENCODERS in manifest.sha256:
        prompted.base_fingerprint = manifest.base_fingerprint
        prompted.base_samples = None
    return prompted
