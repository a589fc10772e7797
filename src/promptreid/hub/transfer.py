"""Moves a folder of prompts between this machine and the Hub: all of one commit, and no other files."""

import random
import re
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from promptreid.errors import CheckpointError, HubError
from promptreid.hub.card import CARD, is_untouched
from promptreid.hub.manifest import (
    ENCODERS,
    ENCODERS_CONFIG,
    MAX_MANIFEST_BYTES,
    PROMPTS,
    PromptManifest,
    parse_manifest,
)
from promptreid.hub.prompt_files import (
    FILES,
    MANIFEST,
    MAX_CONFIG_BYTES,
    MAX_WEIGHTS_BYTES,
    most_bytes,
    read_bytes,
)
from promptreid.hub.repository import TRANSPORT_ERRORS, Repository, is_unreachable, status_of

# The Hub counts a model's downloads by the requests for this file, unless it knows the library better:
# https://huggingface.co/docs/hub/models-download-stats
COUNTED = "config.json"
COUNTED_TEXT = b'{"library_name": "promptreid", "prompts": "prompt_config.json"}\n'

_COMMIT = re.compile("[0-9a-f]{40}")
_RACES = 10
_MOST_WAIT_SECONDS = 4.0


class PublishedURL(str):
    """URL of a commit, or of a pull request, and what became of the push.

    Attributes:
        is_private: Whether only the repository's owner sees it.
        is_new: Whether anything was uploaded; `False` where the repository held the same files already.
    """

    is_private: bool
    is_new: bool

    def __new__(cls, url: str, *, is_private: bool, is_new: bool) -> "PublishedURL":
        """Make the text, with its attributes."""
        made = super().__new__(cls, url)
        made.is_private, made.is_new = is_private, is_new
        return made


def download_prompts(repository: Repository, *, with_encoders: bool, again: bool = False) -> Path:
    """Download what is not in the cache yet, and return the folder of the commit in the cache.

    File by file, because `snapshot_download` lists every file of the repository, however many there are, keeps quiet
    about those that are missing, and falls back to the cache for errors that should be reported.
    """
    # A commit never changes, so there is nothing to ask about one that is in the cache.
    pinned = bool(repository.revision and _COMMIT.fullmatch(repository.revision)) and _is_cached(repository)
    offline = repository.local_files_only or (not pinned and _is_cut_off(repository))
    path = _download_file(repository, MANIFEST, repository.revision, offline=offline, again=again)
    folder = path.parent
    if not _COMMIT.fullmatch(folder.name):
        raise HubError(
            f"huggingface_hub put {MANIFEST} into {folder}, which does not belong to a commit; is this a mirror of the "
            "Hub?"
        )
    manifest = parse_manifest(read_bytes(path, limit=MAX_MANIFEST_BYTES), source=str(path))
    wanted = [name for name in manifest.sha256 if with_encoders or name == PROMPTS]
    missing = wanted if again else [name for name in wanted if not (folder / name).is_file()]
    if missing and not offline:
        _check_sizes(repository, folder.name, manifest, missing)
    for name in missing:
        _download_file(repository, name, folder.name, offline=offline, again=again)
    if missing and not offline:
        _be_counted(repository, folder.name)
    return folder


def _be_counted(repository: Repository, commit: str) -> None:
    """Ask once for the file that the Hub counts; its content is not read, and nothing depends on it."""
    with suppress(*TRANSPORT_ERRORS):
        get_hf_file_metadata(hf_hub_url(repository.repo_id, COUNTED, revision=commit), token=repository.token)


def _is_cut_off(repository: Repository) -> bool:
    """Ask for the manifest's size; if the Hub cannot be reached, the cache has to do."""
    url = hf_hub_url(repository.repo_id, MANIFEST, revision=repository.revision)

    def ask() -> int | None:
        return get_hf_file_metadata(url, token=repository.token).size

    try:
        size = repository.call(ask, revision=repository.revision, file=MANIFEST)
    except HubError as error:
        cause = error.__cause__
        if cause is None or not is_unreachable(cause) or not _is_cached(repository):
            raise
        if not isinstance(cause, OfflineModeIsEnabled):
            warnings.warn(f"the Hub cannot be reached; {repository.name} is taken from the cache", stacklevel=2)
        return True
    if size is not None and size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{MANIFEST} of {repository.name} has {size} bytes; promptreid did not write it")
    return False


def _is_cached(repository: Repository) -> bool:
    found = try_to_load_from_cache(repository.repo_id, MANIFEST, repository.cache_dir, repository.revision)
    return isinstance(found, str)


def _download_file(repository: Repository, name: str, revision: str | None, *, offline: bool, again: bool) -> Path:
    def download() -> str:
        return hf_hub_download(
            repository.repo_id,
            name,
            revision=revision,
            token=False if offline else repository.token,
            cache_dir=repository.cache_dir,
            local_files_only=offline,
            force_download=again and not offline,
        )

    return Path(repository.call(download, revision=revision, file=name))


def _check_sizes(repository: Repository, commit: str, manifest: PromptManifest, names: list[str]) -> None:
    """Refuse files that are too long, or that the Hub itself says are others, before they are downloaded."""
    api = HfApi(token=repository.token)
    limits = {PROMPTS: most_bytes(manifest.shapes), ENCODERS_CONFIG: MAX_CONFIG_BYTES, ENCODERS: MAX_WEIGHTS_BYTES}
    for item in repository.call(lambda: api.get_paths_info(repository.repo_id, names, revision=commit)):
        if not isinstance(item, RepoFile):
            continue
        if item.size > limits[item.path]:
            raise CheckpointError(
                f"{item.path} of {repository.name} has {item.size} bytes, expected at most {limits[item.path]}; "
                "promptreid did not write it"
            )
        if item.lfs is not None and item.path in (PROMPTS, ENCODERS) and item.lfs.sha256 != manifest.sha256[item.path]:
            raise CheckpointError(
                f"{item.path} of {repository.name} is not the file that its {MANIFEST} describes (their SHA-256 "
                "differ); its owner has to push it again"
            )


def upload_files(
    repository: Repository,
    files: Mapping[str, bytes | Path],
    *,
    private: bool,
    create_pr: bool,
    message: str,
    replace_card: bool = False,
) -> PublishedURL:
    """Commit files, and delete those of an older push that are not among them; other files are not touched.

    Args:
        repository: The repository; made if it is not there, and so is the branch that its revision names.
        files: Content or path of each file, by its name in the repository.
        private: Whether the repository must be private.
        create_pr: Open a pull request instead of a commit to the branch.
        message: The commit's message.
        replace_card: Also replace a card that was changed by hand.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        HubError: The commit failed; then nothing of it is in the repository.
        ValueError: The repository is public, and `private` was not set to `False`, or it holds another model.
    """
    api, revision = HfApi(token=repository.token), repository.revision
    is_private = _prepare(api, repository, private=private, create_pr=create_pr)
    for race in range(_RACES):
        head = repository.call(lambda: api.model_info(repository.repo_id, revision=revision), revision=revision)
        kept = _kept_files(repository, head, replace_card=replace_card)
        present = {item.rfilename for item in head.siblings or ()}
        kept |= {COUNTED} & present  # it serves its purpose, even if another user wrote it
        chosen = {name: content for name, content in files.items() if name not in kept}
        commit = partial(_commit, api, repository, chosen, head, create_pr=create_pr, message=message)
        try:
            made = repository.call(commit, revision=revision)
        except HubError as error:
            # Others pushed since the head was asked for: their files may have to be deleted, so look again.
            if status_of(error.__cause__ or error) not in (409, 412) or race + 1 == _RACES:
                raise
            time.sleep(min(_MOST_WAIT_SECONDS, 0.1 * 2**race) * random.random())
            continue
        is_new = bool(made.pr_url) or made.oid != head.sha
        return PublishedURL(made.pr_url or made.commit_url, is_private=is_private, is_new=is_new)
    raise HubError(f"others kept pushing to {repository.name}; try again")  # pragma: no cover  the loop ends above


def _commit(
    api: HfApi,
    repository: Repository,
    files: Mapping[str, bytes | Path],
    head: ModelInfo,
    *,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    present = {item.rfilename for item in head.siblings or ()}
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    deletions = [CommitOperationDelete(name) for name in FILES if name in present and name not in files]
    return api.create_commit(
        repository.repo_id,
        [*additions, *deletions],
        commit_message=message,
        revision=repository.revision,
        create_pr=create_pr,
        parent_commit=head.sha,
    )


def _kept_files(repository: Repository, head: ModelInfo, *, replace_card: bool) -> set[str]:
    """The file that must not be overwritten: a card that we did not write.

    Raises:
        ValueError: There is a model that we did not write.
    """
    name, present = repository.name, {item.rfilename for item in head.siblings or ()}
    foreign = [] if MANIFEST in present else [file for file in FILES if file in present]
    if foreign:
        raise ValueError(
            f"{name} holds {', '.join(foreign)} and no {MANIFEST}, so it is another model, which would be lost; choose "
            "another repo_id, or another branch by revision="
        )
    if CARD not in present or (replace_card and MANIFEST in present):
        return set()
    path = _download_file(replace(repository, cache_dir=None), CARD, head.sha, offline=False, again=False)
    if is_untouched(path.read_bytes().decode(errors="replace")):
        return set()
    warnings.warn(
        f"{CARD} of {name} was written or changed by hand and is kept, with the scores it states; to replace it, push "
        f"a folder with your own {CARD}, or delete it there first",
        stacklevel=4,
    )
    return {CARD}


def _prepare(api: HfApi, repository: Repository, *, private: bool, create_pr: bool) -> bool:
    """Make sure that the repository and the branch are there, and as private as was asked for.

    Returns:
        Whether the repository is private.
    """
    repo_id, branch = repository.repo_id, repository.revision
    info = _find(api, repository)
    if info is None:
        if create_pr:
            raise HubError(f"there is no repository {repo_id} to open a pull request in, or none you may see")
        repository.call(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        info = repository.call(lambda: api.model_info(repo_id))
    if private and not info.private:
        raise ValueError(
            f"{repo_id} is public, and private=True was asked for, which is the default; pass private=False to "
            "publish there, or choose another repo_id"
        )
    if info.private and not private:
        warnings.warn(f"{repo_id} is private and stays so; make it public in its settings on the Hub", stacklevel=4)
    if branch is not None and not create_pr:
        repository.call(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
    return bool(info.private)


def _find(api: HfApi, repository: Repository) -> ModelInfo | None:
    try:
        return repository.call(lambda: api.model_info(repository.repo_id))
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
            return None
        raise
