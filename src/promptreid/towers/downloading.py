"""Downloads bases from the Hub as open_clip does, into the same cache, and says what went wrong first."""

import errno
import logging
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import open_clip
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from promptreid.errors import CheckpointError, HubError, PromptReidError
from promptreid.towers.weight_files import INDEX_ENDING, shard_names

CONFIG_NAME = "open_clip_config.json"
FOREIGN_CONFIG_NAME, FOREIGN_IMAGES_NAME = "config.json", "preprocessor_config.json"  # transformers'
# What open_clip looks for where nothing names a file, and what it takes instead if it is there.
WEIGHTS, SAFE_WEIGHTS = "open_clip_pytorch_model.bin", "open_clip_model.safetensors"
FOREIGN_WEIGHTS = tuple(
    f"{name}{ending}" for name in ("model.safetensors", "pytorch_model.bin") for ending in ("", INDEX_ENDING)
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
_FILE_ENDINGS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".npz", ".npy", ".json")
Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)  # the commands show what it says


def names_repository(pretrained: str) -> bool:
    """Whether weights are named by a Hub repository, `user/name` or `user/name@revision`, and not by a path."""
    file = pretrained.endswith(_FILE_ENDINGS) or Path(pretrained).exists()
    return not file and bool(_REPOSITORY.fullmatch(pretrained))


def is_pinned(name: str) -> bool:
    """Whether this is a Hub repository at a commit, `user/name@commit`, which gives everybody the same weights."""
    return bool(_PINNED.fullmatch(name))


def download(repo_id: str, *names: str, cache: str | None = None, again: bool = False) -> Path:
    """Download the first of these files that a repository `user/name` or `user/name@revision` has.

    open_clip itself tries one name after another and reports only what the last of them met.

    Raises:
        HubError: It cannot be downloaded; names the file and the first cause.
        ValueError: No repository can have such a name.
    """
    repo_id, _, revision = repo_id.partition("@")
    options: dict[str, Any] = {"revision": revision or None, "cache_dir": cache}
    try:
        cached = [try_to_load_from_cache(repo_id, each, **options) for each in names]
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} names no repository of the Hub ({error}); expected USER/NAME") from error
    found = next((Path(path) for path in cached if isinstance(path, str)), None)
    missing: BaseException | None = None
    if found is None:  # without a network this takes half a minute of trying
        _LOG.info("downloading %s from the Hub", repo_id)
    for each in names:
        try:
            return Path(hf_hub_download(repo_id, each, force_download=again, **options))
        except Exception as error:
            if _is_missing(error):
                missing = error
            elif found is not None and not again:
                return found
            else:
                fault = error.__cause__ or error
                raise _explain(repo_id, each, fault) from fault
    raise HubError(
        f"{repo_id} on the Hub has no {' or '.join(names)}; expected a model of open_clip or transformers"
    ) from missing


def _explain(repo_id: str, name: str, error: BaseException) -> HubError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        advice = "free some space, or pass cache_dir="
    elif isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        advice = "pass a cache_dir= that you may write to, or set HF_HOME"
    else:
        advice = "check the network and your access, and try again"
    return HubError(f"{name} of {repo_id} cannot be downloaded ({type(error).__name__}: {str(error)[:300]}); {advice}")


def download_model(repo_id: str, *, cache: str | None = None, again: bool = False) -> Path:
    """Download the weights of a repository in open_clip's or transformers' layout, and what describes them.

    Returns:
        The file of weights, or the index of its shards; what describes them is beside it, of the same commit.

    Raises:
        HubError: They cannot be downloaded, or the repository has none.
    """
    config = download_config(repo_id, cache=cache)
    own = config.name == CONFIG_NAME
    pinned = f"{repo_id.partition('@')[0]}@{commit_of(config)}"
    weights = download(pinned, *((SAFE_WEIGHTS, WEIGHTS) if own else FOREIGN_WEIGHTS), cache=cache, again=again)
    if not own:
        _download_if_there(pinned, FOREIGN_IMAGES_NAME, cache)
    for name in shard_names(weights) if weights.name.endswith(INDEX_ENDING) else ():
        download(pinned, name, cache=cache, again=again)
    return weights


def download_config(repo_id: str, *, cache: str | None = None) -> Path:
    """Download the configuration of a repository in open_clip's layout, or else in transformers'.

    Raises:
        HubError: It cannot be downloaded, or the repository has neither.
    """
    return download(repo_id, CONFIG_NAME, FOREIGN_CONFIG_NAME, cache=cache)


def commit_of(downloaded: Path) -> str:
    """The commit that a downloaded file at the top of its repository is from."""
    return downloaded.parent.name


def _download_if_there(repo_id: str, name: str, cache: str | None) -> None:
    pinned, _, revision = repo_id.partition("@")
    if try_to_load_from_cache(pinned, name, revision=revision, cache_dir=cache) is not None:
        return  # it is in the cache, or the cache says that there is none
    try:
        download(repo_id, name, cache=cache)
    except HubError as error:
        if not _is_missing(error.__cause__):
            raise


def _is_missing(error: BaseException | None) -> bool:
    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def with_tagged_weights(name: str, tag: str, cache: str | None, load: Callable[[], Result]) -> Result:
    """Call what loads the weights of a tag, which are downloaded first; damaged ones are downloaded again.

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
    """Call what loads a file of a repository, or safetensors in place of a pickle; see `with_model`."""
    safe = SAFE_WEIGHTS if file == WEIGHTS else f"{file[:-4]}.safetensors"
    names = (safe, file) if file.endswith((".bin", ".pth")) else (file,)
    return _twice(lambda again: download(repo_id, *names, cache=cache, again=again), load)


def with_model(repo_id: str, cache: str | None, load: Callable[[Path], Result]) -> Result:
    """Call what loads the weights of a repository; a damaged copy in the cache is downloaded again.

    Raises:
        HubError: They cannot be downloaded.
        CheckpointError: They are damaged even then.
    """
    return _twice(lambda again: download_model(repo_id, cache=cache, again=again), load)


def _twice(fetch: Callable[[bool], Path], load: Callable[[Path], Result]) -> Result:
    path = fetch(False)
    try:
        return load(path)
    except Exception as error:
        if not _is_damage(error):
            raise
    path = fetch(True)
    try:
        return load(path)
    except Exception as error:
        if not _is_damage(error):
            raise
        raise CheckpointError(
            f"{path} is damaged, and a second download gave the same result ({str(error)[:200]}); delete it and try "
            "again later, or ask the owner of its repository to upload it again"
        ) from error


def _is_damage(error: BaseException) -> bool:
    words = ("is damaged", "PytorchStreamReader", "Ran out of input", "invalid load key")
    return type(error).__name__ in ("SafetensorError", "EOFError") or any(word in str(error) for word in words)


@contextmanager
def making_sense_of(config: Path) -> Generator[None, None, None]:
    """Name the foreign configuration that open_clip, timm or transformers can make nothing of.

    Raises:
        HubError: A part of the model that has its own repository cannot be downloaded.
        ValueError: No model can be made.
    """
    try:
        yield
    except (PromptReidError, ValueError):
        raise
    except OSError as error:  # transformers'
        raise HubError(f"a part of the model of {config} cannot be downloaded ({error}); check the network") from error
    except (TypeError, AttributeError, LookupError, AssertionError, RuntimeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"open_clip {open_clip.__version__} cannot build the model described in {config} ({reason}); upgrade it "
            "(pip install --upgrade open_clip_torch), or use another model"
        ) from error
