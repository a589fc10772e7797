"""A repository on the Hub and how it is reached; retries what may work a little later, and explains what failed."""

import errno
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from promptreid.errors import HubError

Result = TypeVar("Result")

# huggingface_hub has changed its HTTP library twice; its own error has the library's base class among its bases.
TRANSPORT_ERRORS: tuple[type[BaseException], ...] = (OSError, EntryNotFoundError, *HfHubHTTPError.__bases__)
_ATTEMPTS = 4
_FIRST_WAIT_SECONDS = 0.5
# A server that never answers costs this and one try of the client's own; so does a Retry-After of later.
_BUDGET_SECONDS = 30.0
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})

_STATUS_WORDS = {
    401: "the token is missing, wrong or expired; run `hf auth login`, or pass a valid token=",
    403: "you have no permission to do that there; use a token with write access, and your own name or your team's",
    404: "there is nothing at that address; check the name, the revision, and HF_ENDPOINT if it is set",
    409: "something of that name is there already, or it is being changed just now; try again",
    412: "another user keeps changing it; try again",
    413: "a file is too large for it",
    429: "it asks for fewer requests; try again in a few minutes",
}
# What its library for large files says, in a `ConnectionError`, of an answer that is a refusal.
_STATUS_IN_WORDS = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
_ADDRESS = re.compile(r"https?://[^\s?)'\"]+")


class Access(TypedDict, total=False):
    """How a repository is reached: the attributes of `Repository` beside its name."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


@dataclass(frozen=True)
class Repository:
    """A repository of prompts on the Hub and how it is reached, for downloads and uploads alike.

    Attributes:
        name: Its id, `"user/name"`; for reading, a folder of this machine as well, which needs none of the rest.
        revision: Branch, tag or commit; `None` for main.
        token: Access token; `None` for the one that is logged in.
        cache_dir: huggingface_hub's cache; `None` for its default.
        local_files_only: Use only the cache.
        for_upload: Whether something is to be published there, for which the cache is no help.
    """

    name: str | Path
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    for_upload: bool = False

    @property
    def repo_id(self) -> str:
        """The id of the repository.

        Raises:
            ValueError: `name` is not `"user/name"`.
        """
        name = str(self.name)
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"{name!r} is not the id of a Hub repository, such as 'user/name': {error}") from error
        if self.for_upload and "/" not in name:
            raise ValueError(f"{name!r} is not the id of a Hub repository: the owner is missing; write 'user/{name}'")
        return name

    def call(self, request: Callable[[], Result], *, revision: str | None = None, file: str | None = None) -> Result:
        """Ask the Hub, again after 0.5, 1 and 2 s (or its Retry-After) if the fault may pass, and explain what remains.

        huggingface_hub's own `http_backoff` retries one HTTP request; its downloads and its API make many that it
        sends only once.

        Args:
            request: What to do.
            revision: Branch, tag or commit, for the error.
            file: File, for the error.

        Raises:
            HubError: The request failed, even when it was repeated.
        """
        end = time.monotonic() + _BUDGET_SECONDS
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except (RuntimeError, *TRANSPORT_ERRORS) as caught:
                error = _fault_in(caught)
                # A little at random, so that many who were turned away together do not come back together.
                wait = max(_FIRST_WAIT_SECONDS * 2**attempt * (1 + 0.2 * random.random()), _retry_after(error))
                if attempt + 1 == _ATTEMPTS or not _is_transient(error) or time.monotonic() + wait > end:
                    raise HubError(self._explain(error, revision, file)) from error
                time.sleep(wait)
        raise HubError(f"{self.name} was not asked for")  # pragma: no cover  the loop ends by return or raise

    def _explain(self, error: BaseException, revision: str | None, file: str | None) -> str:
        name, where = self.name, f"{self.name} at revision {revision!r}" if revision else self.name
        explanations: dict[type[BaseException], str] = {
            GatedRepoError: f"{name} is gated; log in, accept its terms on its page, and pass token=",
            RepositoryNotFoundError: f"there is no repository {name}, or none that you may see; check the name, and "
            "pass token= (or run `hf auth login`) if it is private",
            RevisionNotFoundError: f"{name} has no branch, tag or commit {revision!r}; leave revision out for main",
            LocalEntryNotFoundError: f"{file or 'a file'} of {where} is not in the cache, and the Hub was not asked or "
            "not reached; connect and load it once without local_files_only and HF_HUB_OFFLINE",
            EntryNotFoundError: f"{where} has no file {file}; it is not a repository that push_prompts wrote",
            OfflineModeIsEnabled: f"{where} needs the Hub, but HF_HUB_OFFLINE is set; unset it"
            + ("" if self.for_upload else ", or use what was loaded before"),
        }
        for kind, words in explanations.items():
            if isinstance(error, kind):
                return words
        if _is_full(error):
            return f"no space left on the disk for {file or 'the files'} of {where}; free some or pass cache_dir="
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            return (
                f"{file or 'a file'} of {where} cannot be written to the cache ({str(error)[:200]}); pass a cache_dir= "
                "that you may write to, or set HF_HOME"
            )
        status = status_of(error)
        if status is not None:
            return f"the Hub refuses {where} with HTTP status {status}: {_status_words(status, error)}"
        advice = "and push again" if self.for_upload else "or pass local_files_only=True to use what was loaded before"
        return (
            f"the Hub cannot be reached for {where} ({type(error).__name__}: {str(error)[:200]}); check the network, "
            f"{advice}"
        )


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries, or states."""
    stated = _STATUS_IN_WORDS.search(str(error))
    return getattr(getattr(error, "response", None), "status_code", int(stated[1]) if stated else None)


def _status_words(status: int, error: BaseException) -> str:
    """What a refusal means; the address too where nothing is there, without its query, which may hold a signature."""
    default = "try again later" if status >= 500 else "check the name and the arguments"
    address = _ADDRESS.search(str(error)) if status == 404 else None
    return _STATUS_WORDS.get(status, default) + (f" ({address[0]})" if address else "")


def _retry_after(error: BaseException) -> float:
    """Seconds that the Hub asks to wait; 0 if it does not say, or says a date."""
    stated = str(getattr(getattr(error, "response", None), "headers", {}).get("Retry-After") or "")
    return float(stated) if stated.isascii() and stated.isdigit() else 0.0


def is_unreachable(error: BaseException) -> bool:
    """Whether the Hub was not reached at all."""
    return isinstance(error, OfflineModeIsEnabled) or _is_transient(error)


def is_not_found(error: BaseException | None) -> bool:
    """Whether nothing is known of a repository of that name, as where a folder was meant."""
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError, of one that is there
        return False
    unknown = RepositoryNotFoundError | LocalEntryNotFoundError
    return isinstance(error, unknown) or (error is not None and is_unreachable(error))


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may work a little later."""
    if isinstance(error, OfflineModeIsEnabled) or _is_full(error):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    return not isinstance(error, EntryNotFoundError | FileExistsError | PermissionError | NotADirectoryError)


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def _fault_in(caught: BaseException) -> BaseException:
    """The fault itself: huggingface_hub wraps those of uploads in a `RuntimeError`, and before 1.0 those of downloads.

    There a download that the network interrupted is reported as a file that is not in the cache, as it is when only the
    cache was used.
    """
    cause = caught.__cause__
    wrapped = not isinstance(caught, TRANSPORT_ERRORS) or isinstance(caught, LocalEntryNotFoundError)
    if wrapped and isinstance(cause, TRANSPORT_ERRORS) and not isinstance(cause, OfflineModeIsEnabled):
        return cause
    if isinstance(caught, TRANSPORT_ERRORS):
        return caught
    raise caught
