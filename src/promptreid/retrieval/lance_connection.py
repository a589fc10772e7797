"""Reaches LanceDB: connections, error messages, repeated commits, files readable only by their owner."""

import errno
import os
import random
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

from promptreid.errors import PromptReidError, StoreError, StoreUnreachableError, missing_extra
from promptreid.files import make_private_folder

Result = TypeVar("Result")

SCHEMES = ("s3", "gs")

# Without them an address where nobody answers is tried for three minutes.
_PATIENCE = {"connect_timeout": "5s", "timeout": "60s", "client_max_retries": "4", "client_retry_timeout": "30"}

# Otherwise Lance warns about statistics that nobody uses, and thousands of times about one queue of a large index.
_SETTINGS = {"LANCE_INCLUDE_VECTOR_CENTROIDS": "false", "LANCE_LOG": "warn,lance_index::vector::hnsw=error"}

# Commits that met another one: tried so often, with waits that double from the first, in seconds.
_TRIES, _FIRST_WAIT = 8, 0.05
_CONFLICT = re.compile(r"conflict|concurrent|preempted|schema (mismatch|changed)|Append with different schema", re.I)
_GONE = re.compile(r"not found|NoSuchKey|No such file", re.I)
_CAUSE = re.compile(r'code: \d+, kind: \w+, message: "([^"]+)"')  # of the system
_SOURCE = re.compile(r",? ?/\S*\.cargo/\S*|, \S+\.rs:\d+:\d+")

_NO_CREDENTIALS = (
    "{url} asks for credentials and there are none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for gs:// "
    "GOOGLE_APPLICATION_CREDENTIALS"
)
_NO_KEY_FILE = (
    "{url}: the file that GOOGLE_APPLICATION_CREDENTIALS names is not a service account key ({words}); make one in "
    "Google Cloud's console, or check the path"
)
_REFUSED = (
    "{url} refuses these credentials, or they may not do this ({words}); check the key, its secret and its rights"
)
_NO_BUCKET = "{url}: there is no bucket of that name ({words}); make it first, or check the name"
_NO_REGION = "{url}: its region is unknown; set AWS_REGION, and for another service than Amazon's AWS_ENDPOINT_URL"
_UNREACHABLE = (
    "{url} cannot be reached ({words}); what was acknowledged is kept: try again when the network is back, the same "
    "command resumes"
)
_FAILING = (
    "{url}: the object store is failing ({words}), for example because its disks are full or it is overloaded; what "
    "was acknowledged is kept: once it works again, the same command resumes"
)
_LACKING = (
    "{url}: the object store does not offer what LanceDB asks for ({words}); a store needs conditional writes, as S3, "
    "Google Cloud Storage and SeaweedFS have them"
)
# How the engine's words begin to tell what happened; the first that matches counts.
_MEANINGS: tuple[tuple[str, type[StoreError], str], ...] = (
    (r"NoSuchBucket|bucket does not exist|specified bucket", StoreError, _NO_BUCKET),
    (r"Failed to get AWS credentials|CredentialsNotLoaded|no providers? in chain|169\.254\.169\.254|metadata\.google",
     StoreError, _NO_CREDENTIALS),
    (r"(decode|open|read) service account|decode application credentials", StoreError, _NO_KEY_FILE),
    (r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|Access Denied|necessary privileges|Forbidden|"
     r"Unauthori|invalid_(grant|client)", StoreError, _REFUSED),
    (r"resolve region", StoreError, _NO_REGION),
    (r"\b501 |NotImplemented", StoreError, _LACKING),
    (r"\b50[0234] (Internal|Bad Gateway|Service|Gateway)|server error|ServiceUnavailable|InternalError|\b429 |SlowDown|"
     r"TooManyRequests", StoreUnreachableError, _FAILING),
    (r"error sending request|[Cc]onnection (refused|reset|closed)|kind: Connect|ConnectError|"
     r"(?<!_)[Tt]imed? ?[Oo]ut|\b408 |IncompleteMessage|dns error|tcp connect|HTTP error",
     StoreUnreachableError, _UNREACHABLE),
)  # fmt: skip


def require_lance() -> tuple[Any, Any]:
    """The modules `lancedb`, which reads and writes tables, and `lance`, which keeps them in order.

    Raises:
        MissingExtraError: They are not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("lancedb"), import_module("lance")
    except ImportError as error:
        raise missing_extra("a store", "lancedb", "store") from error


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether this is an address such as `s3://bucket/crops`, and not a folder."""
    return "://" in os.fspath(place)


@dataclass(frozen=True)
class Place:
    """Where a store is, and how to get there.

    Attributes:
        url: A folder, or an address such as `s3://bucket/crops`.
        options: What the engine is told about the object store, over what the environment says.
    """

    url: str
    options: dict[str, str] = field(default_factory=dict[str, str], repr=False)

    @classmethod
    def of(cls, url: str | os.PathLike[str], options: Mapping[str, str] | None = None) -> "Place":
        """A place as users name it.

        Raises:
            ValueError: The address is of a kind that is not known, or names no bucket.
        """
        text = os.fspath(url)
        if not is_url(text):
            return cls(os.path.abspath(text), dict(options or {}))
        scheme, _, rest = text.partition("://")
        if scheme not in SCHEMES or not rest.strip("/"):
            known = " or ".join(f"{name}://bucket/name" for name in SCHEMES)
            raise ValueError(f"the store is {text}, expected a folder, or {known}")
        return cls(text.rstrip("/"), {**_PATIENCE, **_own_endpoint(scheme), **(options or {})})

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one."""
        return None if is_url(self.url) else Path(self.url)

    def table(self, name: str) -> str:
        """The address of a table."""
        return f"{self.url}/{name}.lance"

    def connect(self) -> Any:
        """LanceDB's connection. A table of it is opened again for every search."""
        lancedb, _ = require_lance()
        with in_our_words(self.url):
            now = timedelta(0)
            return lancedb.connect(self.url, storage_options=self.options or None, read_consistency_interval=now)

    def dataset(self, name: str) -> Any:
        """The table as Lance keeps it, in its newest version."""
        _, lance = require_lance()
        with in_our_words(self.url):
            return lance.dataset(self.table(name), storage_options=self.options or None)

    def make_private(self, *tables: str) -> None:
        """Take everyone else's permissions on the files of tables in a folder, regardless of the umask.

        What else is in the folder is not ours.
        """
        if self.folder is None or os.name == "nt":
            return
        for table in tables:
            for parent, folders, names in os.walk(self.table(table)):
                for mode, entries in ((0o700, folders), (0o600, names)):
                    for entry in entries:
                        _take_rights(os.path.join(parent, entry), mode)


def _own_endpoint(scheme: str) -> dict[str, str]:
    """Default storage options for an S3 service other than Amazon's."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT")
    if scheme != "s3" or not endpoint:
        return {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {"aws_endpoint": endpoint, "aws_region": region, "allow_http": str(endpoint.startswith("http://")).lower()}


def make_store_folder(place: Place, tables: tuple[str, ...]) -> None:
    """Make the folders of tables before the engine does, so that nobody else ever sees into them."""
    if place.folder is not None:
        for name in tables:
            make_private_folder(Path(place.table(name)))


def _take_rights(path: str, mode: int) -> None:
    try:
        if os.lstat(path).st_mode & 0o077 and not os.path.islink(path):
            os.chmod(path, mode)
    except FileNotFoundError:  # of another writer
        pass


@contextmanager
def in_our_words(url: str) -> Generator[None, None, None]:
    """Turn the engine's failures into errors that say what to do."""
    try:
        yield
    except PromptReidError:
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise explained(url, error) from error


def explained(url: str, error: Exception) -> Exception:
    """The error that says what the engine's means."""
    words = _SOURCE.sub("", " ".join(str(error).split()))
    if "No space left" in words or getattr(error, "errno", None) == errno.ENOSPC:
        return OSError(
            errno.ENOSPC, "no space left on the disk; what was acknowledged is kept: free some and try again", url
        )
    for pattern, kind, meaning in _MEANINGS:
        if found := re.search(pattern, words):
            cause = [*_CAUSE.findall(words), words[found.start() :]][0]
            return kind(meaning.format(url=url, words=shorten(cause, 80, placeholder=" …")))
    return StoreError(f"{url}: the engine of the store failed: {words[:400]}")


def is_conflict(error: Exception) -> bool:
    """Whether another writer was faster, so that the same commit may be tried again."""
    return _CONFLICT.search(str(error)) is not None


def is_gone(error: Exception) -> bool:
    """Whether a file was missing, such as one that was cleaned up while it was looked for."""
    return _GONE.search(str(error)) is not None


def committed(url: str, work: Callable[[], Result]) -> Result:
    """Do what commits to a table; again where other writers were faster.

    Args:
        url: The store, for errors.
        work: Begins with the table's newest version.

    Raises:
        StoreError: Others are faster every time, or it failed for another reason.
    """
    last: Exception | None = None
    for attempt in range(_TRIES):
        try:
            return work()
        except (RuntimeError, OSError, ValueError) as error:
            if isinstance(error, PromptReidError) or not is_conflict(error):
                raise explained(url, error) from error
            last = error
        time.sleep(_FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5))
    busy = TimeoutError(str(last))
    raise StoreError(f"{url} is being changed by others all the time ({_TRIES} tries); try again later") from busy
