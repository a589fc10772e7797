"""Downloads bases from the Hub as open_clip does, into the same cache, and says what went wrong first."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import open_clip
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from promptreid.errors import CheckpointError, HubError

# What open_clip looks for where nothing names a file, and what it takes instead if it is there.
WEIGHTS, SAFE_WEIGHTS = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
Result = TypeVar("Result")


def download(repo_id: str, name: str = WEIGHTS, *, cache: str | None = None, again: bool = False) -> Path:
    """Download a file of a repository `user/name` or `user/name@revision`, or safetensors in place of a pickle.

    open_clip itself tries one name after another and reports only what the last of them met.

    Raises:
        HubError: It cannot be downloaded; names the file and the first cause.
    """
    repo_id, _, revision = repo_id.partition("@")
    options: dict[str, Any] = {"revision": revision or None, "cache_dir": cache}
    safe = SAFE_WEIGHTS if name == WEIGHTS else f"{name[:-4]}.safetensors"
    names = (safe, name) if name.endswith((".bin", ".pth")) else (name,)
    cached = [try_to_load_from_cache(repo_id, each, **options) for each in names]
    found = next((Path(path) for path in cached if isinstance(path, str)), None)
    missing: BaseException | None = None
    for each in names:
        try:
            return Path(hf_hub_download(repo_id, each, force_download=again, **options))
        except Exception as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                missing = error
            elif found is not None and not again:
                return found
            else:
                raise _explain(repo_id, each, error.__cause__ or error) from error
    raise HubError(f"{repo_id} on the Hub has no {' or '.join(names)}; is it in open_clip's format?") from missing


def _explain(repo_id: str, name: str, error: BaseException) -> HubError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        advice = "free some space, or pass cache_dir="
    elif isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        advice = "pass a cache_dir= that you may write to, or set HF_HOME"
    else:
        advice = "check the network and your access, and try again"
    return HubError(f"{name} of {repo_id} cannot be downloaded ({type(error).__name__}: {str(error)[:300]}); {advice}")


def with_tagged_weights(name: str, tag: str, cache: str | None, load: Callable[[], Result]) -> Result:
    """Call what loads the weights of a tag, which are downloaded first; damaged ones are downloaded once more.

    Raises:
        HubError: They cannot be downloaded.
        CheckpointError: They are damaged even then.
    """
    stated: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag) or {}
    repo_id, _, file = str(stated.get("hf_hub") or "").rpartition("/")
    if not repo_id:
        return load()
    return with_weights(repo_id, file or WEIGHTS, cache, lambda _: load())


def with_weights(repo_id: str, file: str, cache: str | None, load: Callable[[Path], Result]) -> Result:
    """Call what loads a file of a repository; a damaged copy in the cache is downloaded once more."""
    path = download(repo_id, file, cache=cache)
    try:
        return load(path)
    except Exception as error:
        if not _is_damage(error):
            raise
    path = download(repo_id, file, cache=cache, again=True)
    try:
        return load(path)
    except Exception as error:
        if not _is_damage(error):
            raise
        raise CheckpointError(
            f"{path} is damaged, and so it was when it was downloaded once more ({str(error)[:200]})"
        ) from error


def _is_damage(error: BaseException) -> bool:
    words = ("is damaged", "PytorchStreamReader", "Ran out of input", "invalid load key")
    return type(error).__name__ in ("SafetensorError", "EOFError") or any(word in str(error) for word in words)
