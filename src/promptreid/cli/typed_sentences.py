"""Sentences that are typed, come from a pipe, or are read from a file."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from promptreid.cli.output import Output
from promptreid.errors import counted


def in_parts(sentences: Iterable[str], size: int) -> Iterator[list[str]]:
    """The sentences in lists of at most `size`."""
    part: list[str] = []
    for sentence in sentences:
        part.append(sentence)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def read_sentences(path: Path) -> list[str]:
    """The lines of a file that hold something.

    Raises:
        ValueError: It is not text, or empty, or a line is not a sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also cuts inside of a sentence
    except UnicodeDecodeError as error:
        raise ValueError(f"--queries is {path}, which is not UTF-8 text ({error}); save it as UTF-8") from error
    sentences = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not sentences:
        raise ValueError(f"--queries is {path}, which holds no sentence; write one per line")
    from promptreid.model.encoding import check_words

    for number, sentence in sentences.items():
        check_words(sentence, name=f"line {number} of {path}")
    return list(sentences.values())


def typed_sentences(console: Output, images: int) -> Iterator[str]:
    """Sentences as they are typed, or as they come from a pipe.

    Raises:
        ValueError: None came from the pipe, or what came is not UTF-8 text or not a sentence.
    """
    from promptreid.model.encoding import check_words

    is_terminal, count = at_terminal(), 0
    if is_terminal:
        console.note(f"{counted(images, 'image')}; describe someone, or press Ctrl-D to end")
        with suppress(ImportError):
            import_module("readline")  # gives input() its line editing and history
    for line in _lines(is_terminal):
        sentence = line.strip()
        if not sentence:
            continue
        count += 1
        try:
            check_words(sentence, name="the query")
        except ValueError as error:
            if not is_terminal:
                raise
            console.note(f"error: {error}")
            continue
        yield sentence
    if not count and not is_terminal:
        raise ValueError(
            "no sentence came on standard input; give one, as in promptreid search gallery "
            '"a man in a blue jacket", or --image FILE'
        )


def at_terminal() -> bool:
    """Whether sentences are typed, and do not come from a pipe."""
    return bool(sys.stdin and sys.stdin.isatty())


def _lines(is_terminal: bool) -> Iterator[str]:
    if not is_terminal:
        yield from _piped_lines()
        return
    with suppress(EOFError):
        while True:
            try:
                line = _typed_line()
            except UnicodeDecodeError as error:  # not of the terminal's encoding
                line = error.object.decode("utf-8", "surrogateescape")
            if not line:
                return
            yield line


def _piped_lines() -> Iterator[str]:
    """The lines of a pipe, in UTF-8 whatever the locale is, as those of a file are read."""
    raw = getattr(sys.stdin, "buffer", None)
    if raw is None:  # closed, or text in place of a pipe
        yield from sys.stdin or ()
        return
    for number, line in enumerate(raw, start=1):
        try:
            # A Mac's old files have \r alone; splitlines() also cuts inside of a sentence.
            yield from re.split(r"\r\n|\r|\n", line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} of standard input is not UTF-8 text ({error}); send it as UTF-8"
            ) from error


def _typed_line() -> str:
    """A line with its end, as it is typed; empty at the end of all."""
    if sys.stdout and sys.stdout.isatty():
        return input("> ") + "\n"
    sys.stderr.write("> ")  # output to a file or a program holds only answers
    sys.stderr.flush()
    return sys.stdin.readline()
