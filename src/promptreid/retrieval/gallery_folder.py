"""The folder of a gallery: what it holds, who may write it, and who is building one there."""

import errno
import json
import re
import secrets
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from promptreid.defaults import GALLERY_FILE, STORE_TABLE, is_gallery, is_store
from promptreid.files import is_locked, locked

_LOCK = "gallery.lock"
MARK_NAME = r"building-[0-9a-f]{16}\.lock"  # the marks of those who build


def check_one_kind(place: Path | str) -> None:
    """Refuse a folder that holds a gallery and a store.

    Raises:
        ValueError: It does.
    """
    if is_store(place) and is_gallery(place):
        raise ValueError(
            f"{place} holds a gallery and a store, as earlier versions allowed, and it is unclear which is meant; "
            f"move the store, {STORE_TABLE} and every other folder whose name ends in .lance, to a folder of its own"
        )


def is_free(folder: Path) -> bool:
    """Whether the folder holds no gallery, or one that nobody is building, without images and anything to remember."""
    if not is_gallery(folder):
        return True
    header = entry_on_disk(folder, "header")
    kept = entry_on_disk(folder, "removed_file"), isinstance(header, dict) and header.get("audit")
    return entry_on_disk(folder, "segments") == [] and not any(kept) and not is_being_built(folder)


@contextmanager
def writing(folder: Path, *, timeout_seconds: float = -1) -> Generator[None, None, None]:
    """Let nobody else write a gallery in the block; waits for another process so long, for ever if negative.

    Raises:
        TimeoutError: Another process has been writing for so long.
        OSError: The folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            action = f"writing the gallery {folder}"
            stack.enter_context(locked(folder / _LOCK, action=action, timeout_seconds=timeout_seconds))
        except TimeoutError:
            raise
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise PermissionError(
                f"the gallery {folder} cannot be written ({error.strerror}); it is another user's, or on a disk that "
                "is read-only: copy it to a folder of yours"
            ) from error
        yield


@contextmanager
def building(folder: Path) -> Generator[None, None, None]:
    """Mark the gallery in a folder as being built in the block, however long it has no image.

    The mark is the lock of a file of its own, so that several may build at a time, and it goes with the process. The
    block begins while the folder's lock is held, or what looks for marks could take this one for that of a killed one.
    """
    mark = folder / f"building-{secrets.token_hex(8)}.lock"
    try:
        with locked(mark, action=f"building the gallery {folder}"):
            yield
    finally:
        with suppress(OSError):
            mark.unlink()


def is_being_built(folder: Path) -> bool:
    """Whether somebody is building a gallery there, which may have no image yet."""
    return any(re.fullmatch(MARK_NAME, path.name) and is_locked(path) for path in folder.glob("*.lock"))


def entry_on_disk(folder: Path, name: str) -> Any:
    """One entry of the description as it is on the disk now; `None` if that cannot be read."""
    try:
        return json.loads((folder / GALLERY_FILE).read_bytes())[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
