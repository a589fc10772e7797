"""What a command says: lines for people on standard output, or one JSON object for scripts."""

import json
import os
import sys
from typing import Any


class Output:
    """Collects what a command has to say.

    Args:
        as_json: Print one JSON object at the end instead of lines.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._entries: dict[str, Any] = {}

    @property
    def progress(self) -> bool:
        """Whether to show progress bars, on standard error: only to people."""
        return not self.as_json and sys.stderr.isatty()

    def say(self, line: str) -> None:
        """Print a line, for people only."""
        if not self.as_json:
            _print(line)

    def note(self, line: str) -> None:
        """Print a line on standard error, whoever reads."""
        sys.stderr.write(f"{line}\n")

    def record(self, **entries: Any) -> None:
        """Keep entries of the JSON object."""
        self._entries.update(entries)

    def fail(self, message: str, code: int) -> int:
        """Print an error and return its exit code."""
        sys.stderr.write(f"error: {message}\n")
        self._entries = {"error": message}
        return code

    def finish(self, code: int) -> int:
        """Print the JSON object, if that is wanted, and return the exit code."""
        if self.as_json:
            _print(json.dumps({**self._entries, "exit_code": code}, ensure_ascii=False, default=str))
        _print("", end="")
        return code


def _print(text: str, *, end: str = "\n") -> None:
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read, such as `head`, has seen enough: no error, and nothing for Python to complain of at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
