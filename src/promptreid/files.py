"""Writes files so that a reader sees the old one or the new one, never half of it; and lets one process write."""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import time
import warnings
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from filelock import FileLock, Timeout
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from promptreid.values import as_json

_BLOCK_BYTES = 2**20

# Windows does not flush folders, and neither replaces nor removes a file that is open or mapped.
_IS_WINDOWS = os.name == "nt"
# For so long a virus scanner or an indexer may hold a file that was just written.
_RENAME_SECONDS = 2.0

# What some network mounts answer to fsync and flock: they cannot, ever.
_REFUSALS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_warned: set[tuple[str, str]] = set()


def _warn_once(folder: Path, words: str) -> None:
    """Warn of a folder's file system, once in a process for each thing it lacks."""
    if (str(folder), words) not in _warned:
        _warned.add((str(folder), words))
        warnings.warn(f"{folder} {words}", stacklevel=4)


_ABANDONED_SECONDS = 3600


@contextmanager
def replaced(path: Path, *, mode: int = 0o666) -> Generator[Path, None, None]:
    """Yield the path of a new, empty file beside `path`; at the end flush it to the disk and rename it over `path`.

    Args:
        path: The file to replace.
        mode: Its permissions at most; the process's umask takes some away, as from any file.

    Raises:
        FileNotFoundError: There is no such folder.
        OSError: The disk is full, or the folder cannot be written; the file that was there is untouched.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    scratch, handle = _new_scratch(path, mode)
    permitted = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    try:
        yield scratch
        flush(scratch)
        # safetensors writes its own file, which nobody else may read.
        scratch.chmod(permitted)
        rename_over(scratch, path)
    except BaseException as error:
        scratch.unlink(missing_ok=True)
        if _is_full(error):
            raise OSError(
                errno.ENOSPC,
                "no space left on the disk; free some and write again, what was there is untouched",
                str(scratch),
            ) from error
        raise
    flush(path.parent)


def _machine() -> str:
    """A digest of where process numbers mean something: one machine, and there one container."""
    container = ""
    with suppress(OSError):
        container = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {container}'.encode()):08x}"


_MACHINE = _machine()


def _new_scratch(path: Path, mode: int) -> tuple[Path, int]:
    """A new file beside `path` whose name says which process writes it, so that others know when it is abandoned."""
    while True:
        mark = f"{_MACHINE}{os.getpid() % 2**24:06x}{secrets.token_hex(1)}"
        scratch = path.with_name(f".{path.name.lstrip('.')}-{mark}")
        with suppress(FileExistsError):
            return scratch, os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)


def _has_ended(mark: str) -> bool:
    """Whether the process that is named in a scratch file's mark is known to have ended."""
    if not mark.startswith(_MACHINE) or _IS_WINDOWS:  # where asking for a process ends it
        return False
    try:
        os.kill(int(mark[8:14], 16), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to another user
        return False
    return False


def rename_over(scratch: Path, path: Path) -> None:
    """Give a file, or a folder, the name `path`; on Windows, wait for programs that hold one open for a moment.

    Raises:
        OSError: It cannot be renamed; both are as they were.
    """
    end = time.monotonic() + _RENAME_SECONDS
    while True:
        try:
            scratch.replace(path)
            return
        except PermissionError as error:
            if not _IS_WINDOWS:
                raise
            if time.monotonic() > end:
                raise PermissionError(
                    error.errno, "it is open here or in another program; close that and write again", str(path)
                ) from error
            time.sleep(0.05)


def portable(path: str) -> str:
    """A path as our files hold it: with `/`, which every system reads."""
    return path.replace("\\", "/") if _IS_WINDOWS else path


def make_private_folder(path: Path) -> None:
    """Make a folder only for its owner; nobody else may write to new parent folders, regardless of the umask."""
    for parent in reversed([path, *path.parents]):
        if not parent.is_dir():
            parent.mkdir(mode=0o700 if parent == path else 0o755, exist_ok=True)


def remove_scratch(path: Path) -> None:
    """Remove what writers of `path` that were killed left beside it; call it where nobody else can be writing."""
    name = re.compile(rf"\.{re.escape(path.name.lstrip('.'))}-[0-9a-f]{{16}}")
    for scratch in path.parent.glob(".*"):
        if name.fullmatch(scratch.name) and scratch.is_file():
            scratch.unlink(missing_ok=True)


def remove_abandoned(folder: Path, *, alone: bool = False) -> None:
    """Remove what killed writers left in a folder of ours.

    It is what a process of this machine wrote that has ended; anything with a lock, named like its target but ending in
    `.lock`, that nobody holds; and without one, what nobody has written to for an hour.

    Args:
        folder: The folder.
        alone: Whether nobody else can be writing there, so that everything is abandoned.
    """
    for scratch in folder.iterdir():
        name = re.fullmatch(r"\.(.+)-([0-9a-f]{16})", scratch.name)
        if name is None or not scratch.is_file():
            continue
        lock = (folder / name[1]).with_suffix(".lock")
        with suppress(TimeoutError, FileNotFoundError):
            if alone or _has_ended(name[2]):
                scratch.unlink(missing_ok=True)
            elif lock.is_file():
                with locked(lock, action="writing", timeout_seconds=0):
                    scratch.unlink(missing_ok=True)
            elif time.time() - scratch.stat().st_mtime > _ABANDONED_SECONDS:
                scratch.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, action: str, timeout_seconds: float = -1) -> Generator[None, None, None]:
    """Let one process at a time into the block; the lock goes with the process, however it ends.

    On a file system without locks everybody is let in, after one warning.

    Args:
        path: The lock's file; made if it does not exist, only for its owner.
        action: What is done under it, for the error: `"saving into runs/first"`.
        timeout_seconds: How long to wait for another process; -1 for ever, 0 not at all.

    Raises:
        TimeoutError: Another process held it for so long; the message has its number.
        OSError: The file cannot be made, or is a link.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # Taking a lock may truncate the file, and a link in another user's folder may lead to any file of ours.
        raise OSError(f"{path} is a link or not a regular file; remove it, and try again")
    lock, holder = FileLock(path, timeout=timeout_seconds, mode=0o600), _number_in(path)
    try:
        lock.acquire()
    except Timeout as error:
        now = _number_in(path)
        if holder and not now:  # filelock before 4 empties the file of a process that it keeps out
            with suppress(OSError):
                path.write_text(holder, encoding="utf-8")
        holder = now or holder
        since = f"has been {action} for {timeout_seconds:g} s" if timeout_seconds else f"is {action}"
        number = f" (process {holder})" if holder else ""
        raise TimeoutError(f"another process {since}; wait for it or end it{number}, and try again") from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _REFUSALS:
            raise
        _warn_once(path.parent, "is on a file system without locks; let one process at a time write there")
    try:
        with suppress(OSError):
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file that is there, or may hold it since the file is another user's."""
    try:
        with locked(path, action="holding it", timeout_seconds=0):
            return False
    except OSError:
        return True


def _number_in(lock: Path) -> str:
    """The number of the process that holds a lock, as it wrote it; empty if there is none."""
    with suppress(OSError, UnicodeDecodeError):
        number = lock.read_text(encoding="utf-8").strip()
        return number if number.isdigit() else ""
    return ""


def write_bytes_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write beside `path`, flush to disk, and rename over it.

    Args:
        path: The file.
        content: What it is to hold.
        mode: Its permissions at most; the process's umask takes some away, as from any file.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the file that was there is untouched.
    """
    with replaced(path, mode=mode) as scratch:
        scratch.write_bytes(content)


def json_line(content: Any) -> str:
    """One line of JSON, which every program can read."""
    return json.dumps(as_json(content), allow_nan=False) + "\n"


def write_json_atomically(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON, for people to read unless `indent` is None, in the same way."""
    write_bytes_atomically(path, (json.dumps(as_json(content), indent=indent, allow_nan=False) + "\n").encode())


def write_sealed_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write a JSON object in the same way, with a digest of itself under `"digest"`."""
    plain: dict[str, Any] = json.loads(json_line(content))
    write_json_atomically(path, {**plain, "digest": _json_digest(plain)}, indent=indent)


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read a file of `write_sealed_json`, without the digest, which older files do not have.

    Raises:
        OSError: It cannot be opened, or is not a plain file.
        ValueError: It is not a JSON object, or its digest is not that of its content.
    """
    try:
        with open_file(path) as stream:
            content: Any = json.loads(stream.read())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, expected an object")
    entries = cast("dict[str, Any]", content)
    if entries.pop("digest", None) not in (None, _json_digest(entries)):
        raise ValueError("its digest is not that of its content: something in it was changed")
    return entries


def _json_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_tensors_atomically(
    path: Path, tensors: Mapping[str, Tensor], *, mode: int = 0o666, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors in the same way, with `metadata` in the file's header.

    Tensors may share memory, as tied weights do, or be views of larger ones: each is written by itself.

    Raises:
        OSError: As `write_bytes_atomically`.
    """
    separate = separate_tensors(tensors)
    with replaced(path, mode=mode) as scratch:
        save_file(separate, scratch, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a plain safetensors file, mapped from the disk; on Windows read, so that it can be replaced.

    Raises:
        OSError: It cannot be opened, or is a pipe or a device, which might never end.
        SafetensorError: The file is damaged.
    """
    check_plain(os.stat(path))
    return load(path.read_bytes()) if _IS_WINDOWS else load_file(path)


def separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, none sharing memory with another; copied only where they have to be."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() > value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate


_NOT_PLAIN = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file to read; to read a pipe, a socket or a device might never end.

    Raises:
        OSError: It is something else, or cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        check_plain(os.stat(name))  # some devices must not even be opened
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        try:
            check_plain(os.fstat(descriptor))  # the name may have come to mean something else
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return open(path, "rb", opener=opener)


def check_plain(status: os.stat_result) -> None:
    """Refuse what is not a plain file.

    Raises:
        OSError: It is a folder, pipe, socket or device.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for check, kind in _NOT_PLAIN if check(status.st_mode)), "device")
        raise OSError(f"it is a {kind}, expected a plain file")


def content_digest(stream: BinaryIO) -> "hashlib.blake2b":
    """A digest of what is in an open file, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest


def file_digest(path: Path) -> str:
    """SHA-256 of a plain file in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _is_full(error: BaseException) -> bool:
    # safetensors reports the operating system's errors in its own words.
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    A folder is flushed when its new names are valid already, so that a disk which fails then, and a file system which
    cannot flush at all, lead to one warning.

    Raises:
        OSError: A file's content cannot be written.
    """
    is_folder = path.is_dir()
    if is_folder and _IS_WINDOWS:
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder and error.errno not in _REFUSALS:
            raise
        _warn_once(
            path if is_folder else path.parent,
            f"cannot be flushed to the disk ({error.strerror}); what was just written is there, but a power cut may "
            "lose it",
        )
