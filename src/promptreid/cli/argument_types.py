"""The types of arguments, which argparse applies: numbers, files and folders to read or to write."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal


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


def saved_model(text: str) -> str:
    """The type of an argument that may name a folder of a saved model."""
    some_path(text)
    inner = Path(text, "model")
    if inner.is_dir():
        from promptreid.hub.prompt_files import MANIFEST

        if (inner / MANIFEST).exists() and not Path(text, MANIFEST).exists():
            raise argparse.ArgumentTypeError(f"is {text}, a whole run; the model in it is {inner}: give that")
    return text
