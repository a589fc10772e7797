"""The output of a command: lines for people on standard output, or one JSON object for scripts."""

import json
import os
import sys
from contextlib import suppress
from typing import Any

from promptreid.errors import printable
from promptreid.values import as_json


class Output:
    """Collects what a command has to say.

    Args:
        as_json: Print one JSON object at the end instead of lines.

    Attributes:
        is_silent: Whether this is a process beside another one that prints; then only its own failures are reported.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_silent: bool = False
        self._entries: dict[str, Any] = {}

    @property
    def progress(self) -> bool:
        """Whether to show progress bars, on standard error: only to people."""
        return not self.as_json and not self.is_silent and sys.stderr.isatty()

    def say(self, *lines: str) -> None:
        """Print lines, for people only."""
        if not self.as_json and not self.is_silent:
            for line in lines:
                print_line(printable(line))

    def note(self, text: str) -> None:
        """Print text on standard error, for people and scripts alike."""
        if self.is_silent:
            return
        with suppress(OSError, ValueError, AttributeError):  # full or closed: nobody is there to be told
            for line in text.split("\n"):
                sys.stderr.write(f"{printable(line)}\n")

    def record(self, **entries: Any) -> None:
        """Keep entries of the JSON object."""
        self._entries.update(entries)

    def fail(self, message: str, code: int) -> int:
        """Print an error as one line and return its exit code; what was recorded before stays in the JSON object."""
        line = " ".join(part.strip() for part in message.split("\n") if part.strip())
        silent = self.is_silent
        self.is_silent = silent and "the others stop with it" in line  # which the other process says itself
        self.note(f"error: {line}")
        self.is_silent = silent
        self.record(error=line)
        return code

    def finish(self, code: int) -> int:
        """Print the JSON object, if that is wanted, and return the exit code."""
        # In ASCII: what a name holds beyond it is escaped, nothing is lost, any terminal takes it.
        if self.as_json and not self.is_silent:
            entries = as_json({**self._entries, "exit_code": code})
            print_line(json.dumps(entries, default=str, allow_nan=False))
        return code


def print_line(line: str) -> None:
    """Print a line on standard output, in letters that it has.

    Raises:
        OSError: It is full or closed; anything printed afterwards is lost.
    """
    out = sys.stdout
    try:
        if out is None:  # pyright: ignore[reportUnnecessaryComparison]  Python's answer to >&-
            raise OSError("it is closed")
        encoding = out.encoding or "utf-8"
        out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        out.flush()
    except (OSError, ValueError) as error:
        # Nothing may be left over that Python would write, and complain of, at the end.
        if out is None or out.closed:  # pyright: ignore[reportUnnecessaryComparison]
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        else:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            raise OSError(f"standard output cannot be written ({error}); free space, or send it elsewhere") from error
