"""Fetches a folder of prompts from the Hub into huggingface_hub's cache, all of one commit, nothing else."""

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from promptreid.errors import CheckpointError, CorruptFileError, HubError
from promptreid.hub.hub_errors import TRANSPORT_ERRORS, call_hub, is_unreachable
from promptreid.hub.manifest import (
    ENCODERS,
    ENCODERS_CONFIG,
    MAX_MANIFEST_BYTES,
    PROMPTS,
    PromptManifest,
    parse_manifest,
)
from promptreid.hub.prompt_files import (
    MANIFEST,
    MAX_CONFIG_BYTES,
    MAX_WEIGHTS_BYTES,
    PromptFiles,
    largest_prompts,
    read_bytes,
    read_prompt_files,
)

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository of prompts on the Hub, and how to get at it.

    Attributes:
        repo_id: Its id, `"user/name"`.
        revision: Branch, tag or commit; `None` for main.
        token: Access token; `None` for the one that is logged in.
        cache_dir: huggingface_hub's cache; `None` for its default.
        local_files_only: Use the cache alone.

    Raises:
        ValueError: `repo_id` is none.
    """

    repo_id: str
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the id of a repository.

    Raises:
        ValueError: It is not `"user/name"`.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not the id of a Hub repository, such as 'user/name': {error}") from error


def read_repository(repository: Repository, *, with_encoders: bool) -> PromptFiles:
    """Fetch and read the prompts of a repository; a damaged copy in the cache is fetched once more.

    Raises:
        HubError: The repository, revision or a file is not there, or cannot be reached.
        CheckpointError: The files are corrupt, foreign or newer than this library.
    """
    try:
        return read_prompt_files(
            _fetch(repository, with_encoders=with_encoders, anew=False), with_encoders=with_encoders
        )
    except CorruptFileError:
        if repository.local_files_only:
            raise
        return read_prompt_files(
            _fetch(repository, with_encoders=with_encoders, anew=True), with_encoders=with_encoders
        )


def _fetch(repository: Repository, *, with_encoders: bool, anew: bool) -> Path:
    """Download what is not in the cache yet, and return the folder of the commit in the cache."""
    # A commit never changes, so there is nothing to ask about one that is in the cache.
    pinned = bool(repository.revision and _COMMIT.fullmatch(repository.revision)) and _is_cached(repository)
    offline = repository.local_files_only or (not pinned and _is_cut_off(repository))
    path = _download(repository, MANIFEST, repository.revision, offline=offline, anew=anew)
    folder = path.parent
    if not _COMMIT.fullmatch(folder.name):
        raise HubError(
            f"huggingface_hub put {MANIFEST} into {folder}, which is no commit's; is it a mirror of the Hub?"
        )
    manifest = parse_manifest(read_bytes(path, limit=MAX_MANIFEST_BYTES), source=str(path))
    wanted = [name for name in manifest.sha256 if with_encoders or name == PROMPTS]
    missing = wanted if anew else [name for name in wanted if not (folder / name).is_file()]
    if missing and not offline:
        _check_sizes(repository, folder.name, manifest, missing)
    for name in missing:
        _download(repository, name, folder.name, offline=offline, anew=anew)
    return folder


def _is_cut_off(repository: Repository) -> bool:
    """Ask for the manifest's size; if the Hub cannot be reached, the cache has to do."""
    url = hf_hub_url(repository.repo_id, MANIFEST, revision=repository.revision)

    def ask() -> int | None:
        return get_hf_file_metadata(url, token=repository.token).size

    try:
        size = call_hub(ask, repo_id=repository.repo_id, revision=repository.revision, file=MANIFEST)
    except HubError as error:
        cause = error.__cause__
        if cause is None or not is_unreachable(cause) or not _is_cached(repository):
            raise
        if not isinstance(cause, OfflineModeIsEnabled):
            warnings.warn(f"the Hub cannot be reached; {repository.repo_id} is taken from the cache", stacklevel=2)
        return True
    if size is not None and size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{MANIFEST} of {repository.repo_id} has {size} bytes; it is none that promptreid wrote")
    return False


def _is_cached(repository: Repository) -> bool:
    try:
        _cached(repository, MANIFEST, repository.revision)
    except TRANSPORT_ERRORS:
        return False
    return True


def _cached(repository: Repository, name: str, revision: str | None) -> str:
    return hf_hub_download(
        repository.repo_id, name, revision=revision, cache_dir=repository.cache_dir, local_files_only=True
    )


def _download(repository: Repository, name: str, revision: str | None, *, offline: bool, anew: bool) -> Path:
    def fetch() -> str:
        if offline:
            return _cached(repository, name, revision)
        return hf_hub_download(
            repository.repo_id,
            name,
            revision=revision,
            token=repository.token,
            cache_dir=repository.cache_dir,
            force_download=anew,
        )

    return Path(call_hub(fetch, repo_id=repository.repo_id, revision=revision, file=name))


def _check_sizes(repository: Repository, commit: str, manifest: PromptManifest, names: list[str]) -> None:
    """Refuse files that are too long, or that the Hub itself says are others, before they are downloaded."""

    def ask() -> list[RepoFile]:
        found = HfApi(token=repository.token).get_paths_info(repository.repo_id, names, revision=commit)
        return [item for item in found if isinstance(item, RepoFile)]

    limits = {PROMPTS: largest_prompts(manifest), ENCODERS_CONFIG: MAX_CONFIG_BYTES, ENCODERS: MAX_WEIGHTS_BYTES}
    for item in call_hub(ask, repo_id=repository.repo_id, revision=commit):
        limit = limits[item.path]
        if item.size > limit:
            raise CheckpointError(
                f"{item.path} of {repository.repo_id} has {item.size} bytes, expected at most {limit}; "
                "it is none that promptreid wrote"
            )
        if item.lfs is not None and item.path in (PROMPTS, ENCODERS) and item.lfs.sha256 != manifest.sha256[item.path]:
            raise CheckpointError(
                f"{item.path} of {repository.repo_id} is not the file that its {MANIFEST} describes (their SHA-256 "
                "differ); its owner has to push it again"
            )
