"""Finds image files: in a folder, and what a file is by its first bytes."""

import os
import re
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Literal

from PIL import Image, features

from promptreid.errors import DatasetError, found_in, listed, printable
from promptreid.files import check_plain, open_file

Presence = Literal["present", "missing", "outside"]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# These have no root, drive or step upwards, and nearly all paths match: pathlib is used only for the others.
_PLAINLY_BELOW = re.compile(r"(?!/)(?!.*\.\.)[^\\:\0]*", re.DOTALL)


def leaves_folder(path: str) -> bool:
    """Whether a path is absolute, climbs with `..` or cannot name a file, on POSIX or on Windows."""
    if _PLAINLY_BELOW.fullmatch(path):
        return False
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    anchored = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    return anchored or ".." in posix.parts or ".." in windows.parts or "\0" in path


def below(folder: Path, path: str) -> str | None:
    """A path that is absolute or climbs with `..`, as one below the folder if it leads there, else `None`."""
    for base in _bases(folder, "" if folder.is_absolute() else os.getcwd()):
        full = os.path.normpath(os.path.join(base, path))
        if os.path.normcase(full).startswith(os.path.normcase(base)):
            inside = full[len(base) :].replace(os.sep, "/")
            if inside and not leaves_folder(inside):
                return inside
    return None


@lru_cache(maxsize=16)  # a table may have a hundred thousand such paths
def _bases(folder: Path, working_folder: str) -> list[str]:
    """How the absolute paths in a folder begin, as it is written and, where that differs, without links."""
    full = os.path.join(working_folder, folder)
    return list(dict.fromkeys(os.path.join(find(full), "") for find in (os.path.abspath, os.path.realpath)))


class ImageLookup:
    """Answers where many files below one folder are, reading each sub-folder once.

    Args:
        root: The image folder; it may be a link itself, but nothing in it may link out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool] | None] = {}

    def locate(self, path: PurePosixPath) -> Presence:
        """Whether a relative path is a file, is missing, or leads out of the folder over a link."""
        parent = str(path.parent)
        if parent not in self._listed:
            self._listed[parent] = self._list(parent)
        names = self._listed[parent]
        if names is None:
            return "outside"
        plain = names.get(path.name)
        if plain:
            return "present"
        # Links, what is not a file, and names that the file system spells otherwise (case, Unicode form).
        full = os.path.join(self.root, *path.parts)
        if not os.path.isfile(full):
            return "missing"
        return "present" if self._inside(os.path.realpath(full)) else "outside"

    def _list(self, parent: str) -> dict[str, bool] | None:
        """Names in a sub-folder, with whether they are plain files; `None` if it lies outside."""
        folder = os.path.join(self.root, parent)
        if not self._inside(os.path.realpath(folder)):
            return None
        try:
            with os.scandir(folder) as entries:
                return {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        except OSError:
            return {}

    def _inside(self, real: str) -> bool:
        return real == self._real or real.startswith(os.path.join(self._real, ""))


_HEAD_BYTES = 16
_HEIC = "HEIC, which Pillow cannot read; convert it to JPEG"
_OTHER = ", which is not read here; convert it to JPEG"
_RAW = "TIFF or a camera's raw file under another ending; convert it to JPEG, or name it .tif"

# How files of each format begin, for those whose ending says something else.
_HEADS: tuple[tuple[bytes, str], ...] = (
    (rb"\xff\xd8\xff", "JPEG"), (rb"\x89PNG\r\n\x1a\n", "PNG"), (rb"GIF8[79]a", "GIF"), (rb"RIFF.{4}WEBP", "WEBP"),
    (rb"BM.{4}\0{4}", "BMP"), (rb".{4}ftyp(avif|avis)", "AVIF"), (rb".{4}ftyp(hei|hev|mif1|msf1)", _HEIC),
    (rb"II\*\0|MM\0\*", _RAW), (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", f"JPEG 2000{_OTHER}"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", f"JPEG XL{_OTHER}"), (rb"P[1-6]\s+(#|\d)", f"Netpbm{_OTHER}"),
    (rb"8BPS\0\x01", f"Photoshop's format{_OTHER}"), (rb"v/1\x01", f"OpenEXR{_OTHER}"),
)  # fmt: skip


def content_kind(stream: BinaryIO) -> tuple[str, bool]:
    """The format of an open file by its first bytes (empty if no image), and whether it can be read."""
    head = stream.read(_HEAD_BYTES)
    kind = next((kind for pattern, kind in _HEADS if re.match(pattern, head, re.DOTALL)), "")
    if kind == "AVIF" and not features.check("avif"):
        return "AVIF, which this Pillow cannot read; update Pillow, or convert it to JPEG", False
    if kind == _HEIC and "HEIF" in Image.OPEN:  # pillow-heif has been registered
        return "HEIC", True
    return kind, kind not in ("", _HEIC, _RAW) and not kind.endswith(_OTHER)


def list_images(folder: str | Path, *, unreadable: list[str] | None = None) -> list[Path]:
    """Every image in a plain folder and its sub-folders, in the order of their paths: a gallery to search.

    A file is taken for an image by its ending (`IMAGE_ENDINGS`) or, with another one, by its first bytes. Hidden files
    and folders (`.name`) are not looked at; links to files are followed. One warning counts and names what looks like
    an image and cannot be used (HEIC, pipes, dead links) and linked folders, another what cannot be read.

    Args:
        folder: The folder.
        unreadable: A list that gets what cannot be looked into: images may be missing from the result.

    Returns:
        The image files, whether or not their content can be read.

    Raises:
        DatasetError: There is no such folder, or it cannot be read.
    """
    return sorted(walk_images(folder, unreadable=unreadable))


@contextmanager
def explained_if_closed(folder: Path) -> Generator[None, None, None]:
    """Name the folder where what is done with its files in the block fails because it, or one in it, cannot be read.

    Of a file that lies elsewhere, the folder that it is in is named.

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        if folder.is_dir():
            os.stat(os.path.join(folder, os.curdir))  # for Python 3.14, whose pathlib takes files in it for missing
        yield
    except PermissionError as error:
        path = error.filename if isinstance(error.filename, str) else folder
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
        closed = folder if inside else Path(path).parent
        raise _closed(closed, f" ({error.strerror}: {printable(error.filename or folder)})") from error


def _closed(folder: Path, why: str = "") -> DatasetError:
    return DatasetError(f"the folder {printable(folder)} cannot be read{why}; is it mounted, and may you read it?")


def found_beside_images(folder: Path) -> str:
    """The first names in a folder for an error about its annotation: files that are no images come first."""
    try:
        names = sorted(
            (path.name.lower().endswith(IMAGE_ENDINGS) or path.is_dir(), path.name) for path in folder.iterdir()
        )
    except OSError:
        return found_in(folder)
    return printable(listed([name for _, name in names], most=8)) or "nothing"


def no_images_in(folder: Path) -> DatasetError:
    """The error for a folder in which `list_images` finds nothing, to be raised by the caller."""
    return DatasetError(
        f"{folder} has no images ({', '.join(IMAGE_ENDINGS)}) in it or below; give the folder that holds the crops "
        f"(found there: {found_in(folder)})"
    )


def walk_images(folder: str | Path, *, unreadable: list[str] | None = None) -> Iterator[Path]:
    """The images that `list_images` finds, one by one as they are found; warns at the end."""
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give a folder of images")
    left_out: dict[Path, str] = {}
    closed: list[str] = [] if unreadable is None else unreadable
    for parent, folders, names in os.walk(root, onerror=lambda error: closed.append(str(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [path for path in (Path(parent, name) for name in folders) if path.is_symlink()]
        left_out.update(dict.fromkeys(linked, "is a link to a folder; give that folder itself, or copy it there"))
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            reason = _why_no_image(path, closed)
            if reason is None:
                yield path
            elif reason:
                left_out[path] = reason
    if str(root) in closed:
        raise _closed(root)
    if closed:
        first = ", ".join(printable(path) for path in closed[:10])
        warnings.warn(f"{len(closed)} folders or files cannot be looked into and are left out: {first}", stacklevel=3)
    if left_out:
        count = f"{len(left_out):,} files and folders are left out of {printable(folder)}"
        warnings.warn(f"{count}: {first_reasons(left_out)}", stacklevel=3)


def _why_no_image(path: Path, closed: list[str]) -> str | None:
    """`None` for an image, the reason for what looks like one and cannot be used, empty for everything else."""
    named = path.name.lower().endswith(IMAGE_ENDINGS)
    try:
        if named:
            check_plain(path.stat())
            return None
        with open_file(path) as stream:
            kind, readable = content_kind(stream)
            return None if readable else kind and f"is {kind}"
    except FileNotFoundError:  # or a file that was deleted just now
        return "is a link that leads nowhere" if named else ""
    except OSError as error:
        if named and error.errno is not None:
            closed.append(str(path))
        return f"cannot be read ({error})" if named and error.errno is None else ""


def first_reasons(reasons: Mapping[Path, str]) -> str:
    """The first ten files that cannot be used, each with its reason."""
    more = f"; and {len(reasons) - 10:,} more" if len(reasons) > 10 else ""
    return "; ".join(f"{printable(path)} {reason}" for path, reason in list(reasons.items())[:10]) + more
