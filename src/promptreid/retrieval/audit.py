"""A log of who searched a gallery for what, and who removed how much: JSON lines, readable only by the owner."""

import getpass
import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

AUDIT_FILE = "audit.jsonl"


def audit_line(action: str, **details: Any) -> str:
    """A line of the log: the time (UTC), the user and what was done; images and features are never in it."""
    entry = {"time": datetime.now(timezone.utc).isoformat(), "user": _user(), "action": action, **details}
    return json.dumps(entry, default=str)


def search_details(query: Any, where: Any, found: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The log entry of a search: the sentences, the filter and how many images were found for each."""
    asked = None if where is None else str(where)
    return {"queries": queries_in_words(query), "where": asked, "found": [len(hits) for hits in found]}


def log_action(folder: Path, action: str, **details: Any) -> None:
    """Append a line to the log of a folder.

    Raises:
        OSError: The log cannot be written; what was to be logged must not be done.
    """
    path = folder / AUDIT_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            os.write(descriptor, (audit_line(action, **details) + "\n").encode())  # one call: lines do not mix
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(not_logged(path, error.strerror)) from error


def not_logged(log: object, reason: object) -> str:
    """Why something was not done: it could not be logged."""
    return (
        f"cannot write the audit log {log} ({reason}); searches and removals of this gallery are logged, so this one "
        "was not done"
    )


def queries_in_words(query: Any) -> list[str]:
    """The sentences of a query; of anything else only what it is."""
    entries: Sequence[Any] = query if isinstance(query, list | tuple) else [query]
    return [entry if isinstance(entry, str) else f"({_kind(entry)})" for entry in entries]


def _kind(query: Any) -> str:
    if isinstance(query, os.PathLike):
        return f"image {os.fspath(query)}"
    shape = getattr(query, "shape", None)
    return "image" if shape is None else f"{1 if len(shape) == 1 else shape[0]} features"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a process whose user has no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"
