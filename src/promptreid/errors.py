"""The few exceptions of our own, everything else raises Python's built-in ones; and how errors name things."""

import os
import re
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


class PromptReidError(Exception):
    """Base of every error that promptreid itself defines."""


class UnsupportedTowerError(PromptReidError, TypeError):
    """An open_clip tower of a kind that prompts cannot be put into."""


class AttachmentError(PromptReidError, RuntimeError):
    """Prompts cannot be attached to, or taken off, this model in its present state."""


class DatasetError(PromptReidError, ValueError):
    """A dataset's files are missing, malformed or contradict each other."""


class NotFiniteError(PromptReidError, ValueError):
    """Features hold NaN or infinity, as those of a model whose training diverged."""


class CheckpointError(PromptReidError, ValueError):
    """A file of prompts, weights or training state is corrupt, foreign or does not fit."""


class WeightsError(CheckpointError, RuntimeError):
    """A file of an open_clip model's weights is damaged, of an unknown kind, or does not fit the architecture."""


class CorruptFileError(CheckpointError):
    """A file does not match its checksum; downloading or copying it again may help."""


class ModelMismatchError(CheckpointError):
    """A gallery or a store was encoded by another model.

    Args:
        found: Which gallery and model, and how they differ.
    """

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}; load that model, or build the gallery again")
        self.found = found


class HubError(PromptReidError, OSError):
    """The Hub cannot be reached, refuses, or does not have what was requested."""


class StoreError(PromptReidError, OSError):
    """A store of features cannot be opened, refuses, or does not fit what is asked of it."""


class StoreUnreachableError(StoreError, ConnectionError):
    """The network or the server of a store failed; what was acknowledged is kept, and the same call may be repeated."""


class ServingError(PromptReidError, OSError, RuntimeError):
    """The demo cannot be served: its address is taken or unknown, or this process serves one already."""


class MissingExtraError(PromptReidError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


def missing_extra(what: str, package: str, extra: str, *, instead: str | None = None) -> MissingExtraError:
    """The error for something that needs a package which is not installed, to be raised by the caller.

    Args:
        what: What needs it, as the start of a sentence.
        package: The missing package.
        extra: The extra of promptreid that installs it.
        instead: What to do without it.

    Example:
        >>> str(missing_extra("drawing", "matplotlib", "viz"))
        'drawing needs matplotlib: pip install "promptreid[viz]"'
    """
    advice = "" if instead is None else f"; or {instead}"
    return MissingExtraError(f'{what} needs {package}: pip install "promptreid[{extra}]"{advice}')


def found_in(folder: Path) -> str:
    """The first names in a folder, for an error message."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return "a folder that cannot be read"
    return printable(", ".join(names[:8])) or "nothing"


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """Names for a message, which says how many more there are; nothing if there are none.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "image"), counted(1200, "image")
        ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def spoken(name: str) -> str:
    """A key as people read it.

    Example:
        >>> spoken("stage_one")
        'stage one'
    """
    return name.replace("_", " ")


def printable(text: object) -> str:
    r"""Text that is safe to print: what is not printable, such as a line break, is written as Python's escapes.

    Names of files may hold anything: bytes that are not letters, escape sequences, letters that turn the line around.

    Example:
        >>> print(printable("a\x1b[31m red\n.jpg"))
        a\x1b[31m red\n.jpg
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))


def shell_word(text: object) -> str:
    """Text as one word of a command that can be pasted into a shell: in quotes where it needs some.

    Example:
        >>> print("promptreid index", shell_word("new crops"), "--output", shell_word("gallery"))
        promptreid index 'new crops' --output gallery
        >>> print(shell_word(Path("-crops")))  # or it would be taken for an option
        ./-crops
    """
    word = str(text)
    if isinstance(text, Path) and word.startswith("-"):
        word = f".{os.sep}{word}"
    if os.name != "nt":
        return shlex.quote(word)
    # cmd.exe takes single quotes for letters, and PowerShell takes double quotes too.
    return word if re.fullmatch(r"[\w.:/\\~+-]+", word) else '"' + word.replace('"', '\\"') + '"'


@contextmanager
def explain_missing_transformers(what: str) -> Generator[None, None, None]:
    """Turn the error of an import of transformers into one that names the extra.

    Raises:
        MissingExtraError: transformers was imported and is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] != "transformers":
            raise
        raise missing_extra(what, "transformers", "hf") from error
