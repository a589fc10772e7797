"""Finds pictures that cannot be used before an epoch stumbles over them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from promptreid.data.image_files import shown
from promptreid.data.pictures import inspect_images
from promptreid.data.problems import KINDS
from promptreid.data.records import ReIDSplit
from promptreid.errors import DatasetError

OnBad = Literal["strict", "skip"]


def keep_readable(
    split: ReIDSplit, *, on_bad: OnBad = "strict", num_threads: int | None = None, progress: bool = True
) -> ReIDSplit:
    """Open every picture of a split, and refuse or leave out those that cannot be used.

    Args:
        split: The images.
        on_bad: `"strict"` raises with the list; `"skip"` leaves them out, with one warning that counts and names them.
        num_threads: Threads that open pictures; `None` for one a core.
        progress: Show a progress bar.

    Returns:
        The split, or in `"skip"` mode one without the bad pictures.

    Raises:
        DatasetError: Pictures are bad in `"strict"` mode, or all of them are.
        ValueError: `on_bad` is something else.

    Example:
        >>> train = keep_readable(dataset.train, on_bad="skip")  # doctest: +SKIP
    """
    check_on_bad(on_bad)
    paths = list(dict.fromkeys(record.path for record in split.records))
    inspections = inspect_images(paths, num_threads=num_threads, progress=progress)
    bad: dict[Path, str] = {}
    for path, inspection in zip(paths, inspections, strict=True):
        faults = [fault.what for fault in inspection.faults if KINDS[fault.kind][0] == "error"]
        if faults:
            bad[path] = faults[0]
    report_bad(bad, len(paths), on_bad=on_bad, what=f"images of the {split.name} split")
    return split.without(bad) if bad else split


def check_on_bad(on_bad: str) -> None:
    """Refuse what is no mode.

    Raises:
        ValueError: It is neither `"strict"` nor `"skip"`.
    """
    if on_bad not in ("strict", "skip"):
        raise ValueError(f"on_bad is {on_bad!r}, expected 'strict' or 'skip'")


def report_bad(bad: Mapping[Path, str], total: int, *, on_bad: OnBad, what: str) -> None:
    """Raise or warn, once, with the number of bad pictures and the first ten of them."""
    if not bad:
        return
    first = "; ".join(f"{shown(path)} {reason}" for path, reason in list(bad.items())[:10])
    if on_bad == "strict" or len(bad) == total:
        mend = "copy them again, take their records out, or leave them out with on_bad='skip'"
        raise DatasetError(f"{len(bad):,} of {total:,} {what} cannot be used; {mend}: {first}")
    warnings.warn(f"{len(bad):,} of {total:,} {what} cannot be used and are left out: {first}", stacklevel=3)
