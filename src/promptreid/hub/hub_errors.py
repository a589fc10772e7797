"""Says in plain words what went wrong between here and the Hub, and tries again where that can help."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from promptreid.errors import HubError

Result = TypeVar("Result")

# huggingface_hub has changed its HTTP library twice; its own error has the library's base class among its bases.
TRANSPORT_ERRORS: tuple[type[BaseException], ...] = (OSError, EntryNotFoundError, *HfHubHTTPError.__bases__)
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.5
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


def call_hub(
    call: Callable[[], Result], *, repo_id: str, revision: str | None = None, file: str | None = None
) -> Result:
    """Call the Hub, again after 0.5, 1 and 2 s if the fault may be passing, and explain what remains.

    Args:
        call: What to do.
        repo_id: Repository, for the error.
        revision: Branch, tag or commit, for the error.
        file: File, for the error.

    Raises:
        HubError: It did not work.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except (RuntimeError, *TRANSPORT_ERRORS) as caught:
            error = _fault_in(caught)
            if attempt + 1 == _ATTEMPTS or not is_transient(error):
                raise explain(error, repo_id=repo_id, revision=revision, file=file) from error
            # A little at random, so that many who were turned away together do not come back together.
            time.sleep(_FIRST_WAIT_SECONDS * 2**attempt * (1 + 0.2 * random.random()))
    raise HubError(f"{repo_id} was not asked for")  # pragma: no cover  the loop ends by return or raise


def _fault_in(caught: BaseException) -> BaseException:
    """The fault itself: huggingface_hub wraps those of uploads in a `RuntimeError`, and before 1.0 those of downloads.

    There a download that the network broke is a file that is not in the cache, as it is when the cache alone was asked.
    """
    cause = caught.__cause__
    wrapped = not isinstance(caught, TRANSPORT_ERRORS) or isinstance(caught, LocalEntryNotFoundError)
    if wrapped and isinstance(cause, TRANSPORT_ERRORS) and not isinstance(cause, OfflineModeIsEnabled):
        return cause
    if isinstance(caught, TRANSPORT_ERRORS):
        return caught
    raise caught


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may work a little later."""
    if isinstance(error, OfflineModeIsEnabled) or is_full(error):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    return not isinstance(error, EntryNotFoundError | FileExistsError | PermissionError | NotADirectoryError)


def is_unreachable(error: BaseException) -> bool:
    """Whether the Hub was not reached at all."""
    return isinstance(error, OfflineModeIsEnabled) or is_transient(error)


def is_full(error: BaseException) -> bool:
    """Whether the disk is full."""
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def explain(error: BaseException, *, repo_id: str, revision: str | None, file: str | None) -> HubError:
    """The error in plain words: what was wrong, and what to do."""
    place = f"{repo_id} at revision {revision!r}" if revision else repo_id
    for kind, words in (
        (GatedRepoError, f"{repo_id} is gated; log in, accept its terms on its page, and pass token="),
        (
            RepositoryNotFoundError,
            f"there is no repository {repo_id}, or none that you may see; check the name, and pass token= (or run "
            "`hf auth login`) if it is private",
        ),
        (RevisionNotFoundError, f"{repo_id} has no branch, tag or commit {revision!r}; leave revision out for main"),
        (
            LocalEntryNotFoundError,
            f"{file or 'a file'} of {place} is not in the cache, and the Hub was not asked or not reached; connect "
            "and load it once without local_files_only and HF_HUB_OFFLINE",
        ),
        (EntryNotFoundError, f"{place} has no file {file}; it is not a repository that push_prompts wrote"),
        (
            OfflineModeIsEnabled,
            f"{place} needs the Hub, but HF_HUB_OFFLINE is set; unset it, or use what was loaded before",
        ),
    ):
        if isinstance(error, kind):
            return HubError(words)
    if is_full(error):
        return HubError(f"no space left on the disk for {file or 'the files'} of {place}; free some or pass cache_dir=")
    return HubError(_status_words(status_of(error), place) or _unreached(error, place))


def _status_words(status: int | None, place: str) -> str | None:
    if status is None:
        return None
    known = {
        401: "the token is missing, wrong or expired; pass another as token=, or run `hf auth login`",
        403: "you have no right to do that there; use a token that may write, and a name of your own or of your team",
        409: "something of that name is there already, or it changes at this moment; try again",
        412: "somebody else keeps changing it; try again",
        413: "a file is too large for it",
        429: "it asks for fewer requests; try again in some minutes",
    }
    return f"the Hub refuses {place} with HTTP status {status}: {known.get(status, 'try again later')}"


def _unreached(error: BaseException, place: str) -> str:
    return (
        f"the Hub cannot be reached for {place} ({type(error).__name__}: {str(error)[:200]}); check the network, or "
        "pass local_files_only=True to use what was loaded before"
    )
