"""What an argument may be, checked before any work: numbers, files and folders to read or to write."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from promptreid.errors import shell_word


def whole(lowest: int, highest: int | None = None, *, why: str = "") -> Callable[[str], int]:
    """The type of an argument that is a whole number from `lowest` to `highest`; `why` is said of smaller ones."""

    def read(text: str) -> int:
        value = int(text)
        if value < lowest or (highest is not None and value > highest):
            expected = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"is {value}, expected {expected}{why and f': {why}'}")
        return value

    read.__name__ = "int"  # argparse puts it into what it says of text that is not a number
    return read


def positive(text: str) -> float:
    """The type of an argument that is a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text}, expected a number above 0")
    return value


def positive_or_none(text: str) -> float | Literal["none"]:
    """The type of an argument that is a finite number above 0, or `none`."""
    return "none" if text == "none" else positive(text)


positive.__name__ = positive_or_none.__name__ = "number"  # argparse puts it into what it says of other text


def some_path(text: str) -> Path:
    """The type of an argument that is a path; an empty one would be the folder that the shell is in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path")
    return Path(text)


def folder_to_read(text: str) -> Path:
    """The type of an argument that is a folder."""
    path = some_path(text)
    if not path.is_dir():
        found = "that is a file; give its folder" if path.exists() else "there is no folder of that name"
        hint = "; between folders write /" if "\\" in text and os.sep == "/" else ""
        raise argparse.ArgumentTypeError(f"is {text}, but {found}{hint}")
    return path


def gallery_place(text: str) -> Path | str:
    """The type of an argument that is a gallery's folder or a store's; an address stays as it is."""
    return text if "://" in text else some_path(text)


def folder_to_write(text: str) -> Path:
    """The type of an argument that is a folder, which need not exist."""
    path = some_path(text)
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path())
    if not existing.is_dir():
        raise argparse.ArgumentTypeError(f"is {text}, but {existing} is a file; give a folder, or a new name")
    _check_writable(text, existing)
    return path


def file_to_write(*endings: str) -> Callable[[str], Path]:
    """The type of an argument that is a file with one of these endings, which need not exist, in a folder that does."""

    def read(text: str) -> Path:
        path = some_path(text)
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"is {text}, which is a folder; give a file in it")
        if path.suffix not in endings:
            found = path.suffix or "nothing"
            raise argparse.ArgumentTypeError(f"is {text}, which ends in {found}, expected {' or '.join(endings)}")
        if path.exists() and not path.is_file():
            raise argparse.ArgumentTypeError(f"is {text}, which is not a regular file; give another name")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"is {text}, but there is no folder {path.parent}; make it first")
        _check_writable(text, path.parent)
        return path

    return read


def _check_writable(text: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"is {text}, but you may not write into {folder.absolute()}; give another")


def check_file(option: str, path: Path | None) -> None:
    """Refuse an argument that is not a file, before any work.

    Raises:
        ValueError: The argument is not a file.
    """
    if path is not None and not path.is_file():
        reason = "that is a folder or a device" if path.exists() else "there is no such file"
        raise ValueError(f"{option} is {path}, but {reason}; check the path")


def check_own_folder(option: str, place: Path, images: Path) -> None:
    """Refuse a new gallery or store among images or in a dataset, whose folder would then be taken for one.

    Args:
        option: `--output` or `--store`.
        place: The folder that it names.
        images: The folder of images that is to be indexed.

    Raises:
        ValueError: `place` holds `images`, other images or a dataset.
    """
    from promptreid.data.image_files import IMAGE_ENDINGS
    from promptreid.data.reader import holds_dataset

    found = ""
    if images.resolve().is_relative_to(place.resolve()):
        found = "the folder of the images" if images.samefile(place) else f"above the folder of the images, {images}"
    elif place.is_dir() and any(path.suffix.lower() in IMAGE_ENDINGS for path in place.glob("[!.]*")):
        found = "a folder of images"
    elif place.is_dir() and holds_dataset(place):
        found = "a dataset's folder"
    if found:
        noun = "gallery" if option == "--output" else "store"
        raise ValueError(
            f"{option} is {place}, which is {found}; a {noun} needs a folder of its own: promptreid index "
            f"{shell_word(images)} {option} {noun}"
        )


def saved_model(text: str) -> str:
    """The type of an argument that may name a folder of a saved model."""
    some_path(text)
    inner = Path(text, "model")
    if inner.is_dir():
        from promptreid.hub.prompt_files import MANIFEST

        if (inner / MANIFEST).exists() and not Path(text, MANIFEST).exists():
            raise argparse.ArgumentTypeError(f"is {text}, a whole run; the model in it is {inner}: give that")
    return text
