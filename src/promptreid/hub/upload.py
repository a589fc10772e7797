"""Puts a folder of prompts on the Hub: the files that belong to it, in one commit, and nothing else."""

import random
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from promptreid.errors import HubError
from promptreid.hub.hub_errors import call_hub, status_of
from promptreid.hub.prompt_files import FILES

_RACES = 10
_MOST_WAIT_SECONDS = 4.0


@dataclass(frozen=True)
class Target:
    """Where to publish.

    Attributes:
        repo_id: The repository, `"user/name"`.
        private: Whether it is, or may be made, private alone.
        revision: Branch; made from main if it is not there. `None` for main.
        create_pr: Open a pull request in place of a commit to the branch.
        token: Access token; `None` for the one that is logged in.
    """

    repo_id: str
    private: bool = True
    revision: str | None = None
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)


def upload_files(target: Target, files: Mapping[str, bytes | Path], *, message: str) -> str:
    """Commit files, and take away those of an older push that are not among them.

    Args:
        target: Where.
        files: Content or place of each file, by its name in the repository.
        message: The commit's message.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        HubError: It did not work; nothing of it is in the repository then.
        ValueError: The repository is public, and `target.private` was not set to `False`.
    """
    api = HfApi(token=target.token)
    _prepare(api, target)
    for race in range(_RACES):
        head = _head(api, target)
        present = {item.rfilename for item in head.siblings or ()}
        try:
            commit = call_hub(
                lambda head=head, present=present: _commit(api, target, files, message, head.sha, present),
                repo_id=target.repo_id,
                revision=target.revision,
            )
        except HubError as error:
            # Others pushed since the head was asked for: their files may need to be taken away, so look again.
            if status_of(error.__cause__ or error) not in (409, 412) or race + 1 == _RACES:
                raise
            time.sleep(min(_MOST_WAIT_SECONDS, 0.1 * 2**race) * random.random())
            continue
        return str(commit.pr_url or commit.commit_url)
    raise HubError(f"others kept pushing to {target.repo_id}; try again")  # pragma: no cover  the loop ends above


def _commit(
    api: HfApi,
    target: Target,
    files: Mapping[str, bytes | Path],
    message: str,
    head: str | None,
    present: set[str],
) -> CommitInfo:
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    deletions = [CommitOperationDelete(name) for name in FILES if name in present and name not in files]
    return api.create_commit(
        target.repo_id,
        [*additions, *deletions],
        commit_message=message,
        revision=target.revision,
        create_pr=target.create_pr,
        parent_commit=head,
    )


def _prepare(api: HfApi, target: Target) -> None:
    """Make sure that the repository and the branch are there, and as private as was asked for."""
    info = _find(api, target)
    if info is None:
        if target.create_pr:
            raise HubError(f"there is no repository {target.repo_id} to open a pull request in, or none you may see")
        call_hub(lambda: api.create_repo(target.repo_id, private=target.private, exist_ok=True), repo_id=target.repo_id)
        info = call_hub(lambda: api.model_info(target.repo_id), repo_id=target.repo_id)
    _check_visibility(target, info)
    branch = target.revision
    if branch is not None and not target.create_pr:
        call_hub(lambda: api.create_branch(target.repo_id, branch=branch, exist_ok=True), repo_id=target.repo_id)


def _find(api: HfApi, target: Target) -> ModelInfo | None:
    try:
        return call_hub(lambda: api.model_info(target.repo_id), repo_id=target.repo_id)
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
            return None
        raise


def _check_visibility(target: Target, info: ModelInfo) -> None:
    if info.private == target.private:
        return
    if target.private:
        raise ValueError(
            f"{target.repo_id} is public, and private=True was asked for, which is the default; pass private=False to "
            "publish there, or choose another repo_id"
        )
    warnings.warn(f"{target.repo_id} is private and stays so; make it public in its settings on the Hub", stacklevel=5)


def _head(api: HfApi, target: Target) -> ModelInfo:
    return call_hub(
        lambda: api.model_info(target.repo_id, revision=target.revision),
        repo_id=target.repo_id,
        revision=target.revision,
    )
