"""Which of the image files that an annotation names are there, and whether they stay below their folder."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from promptreid.errors import DatasetError

Place = Literal["present", "missing", "outside"]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# No root, drive or step upwards can be in these, and nearly all paths are such: pathlib is asked of the others alone.
_PLAINLY_BELOW = re.compile(r"(?!/)(?!.*\.\.)[^\\:\0]*", re.DOTALL)


def leaves_folder(path: str) -> bool:
    """Whether a path is absolute, climbs with `..` or cannot name a file, on POSIX or on Windows."""
    if _PLAINLY_BELOW.fullmatch(path):
        return False
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    anchored = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    return anchored or ".." in posix.parts or ".." in windows.parts or "\0" in path


def shown(text: object) -> str:
    """Text as it can be printed anywhere: control characters and lone surrogates escaped."""
    return repr(str(text))[1:-1]


class ImageFolder:
    """Answers where many files below one folder are, reading each sub-folder once.

    Args:
        root: The image folder; it may be a link itself, but nothing in it may link out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool] | None] = {}

    def place(self, path: PurePosixPath) -> Place:
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


def list_images(folder: str | Path) -> list[Path]:
    """Every picture in a plain folder and its sub-folders, in the order of their paths: a gallery to search.

    Hidden files and folders (`.name`) are left out.

    Args:
        folder: The folder.

    Returns:
        Files with the ending of an image format, whether or not they can be read.

    Raises:
        DatasetError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give a folder of pictures")
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if _is_image_name(name)]
    return sorted(path for path in found if path.is_file())


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
