"""Facets to filter images by: the camera and the day, from the gallery's metadata or from file names."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from promptreid.retrieval.columns import Columns
from promptreid.retrieval.filters import Between, Metadata, Prefix

NO_CAMERA, NO_DAY = "no camera", "no date"
_CAMERA_KEYS, _DAY_KEYS = ("camera",), ("time", "date", "day")
_CAMERA_IN_NAME = re.compile(r"(?:^|_)c(?:am)?(\d+)(?=s\d|_|\.|$)", re.IGNORECASE)
_DAY_IN_PATH = re.compile(r"(?<!\d)(20\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_LOOKED_AT = 1000  # images whose names show whether names tell anything
_DAY_SECONDS = 24 * 3600

Label = Callable[[Path, Metadata], str]


@dataclass(frozen=True)
class Facet:
    """One thing that images can be chosen by.

    Attributes:
        label: What it is of an image: `camera 3`, `2026-11-27`.
        values: Every label in the gallery, sorted; empty if there are not several.
        key: The metadata that it is read from; `None` for names of files.
        conditions: By label, what that metadata are searched for; only for a `key`.
    """

    label: Label
    values: tuple[str, ...] = ()
    key: str | None = None
    conditions: Mapping[str, Sequence[Any]] | None = None

    def where(self, chosen: Iterable[str]) -> dict[str, list[Any]] | None:
        """The filter of a search for these labels; `None` if only the hits can be looked at."""
        if self.key is None or self.conditions is None:
            return None
        return {self.key: [value for label in chosen for value in self.conditions.get(label, (label,))]}


def find_cameras(paths: Sequence[Path], metadata: Sequence[Metadata], root: Path | None) -> Facet:
    """The cameras of a gallery.

    They are its images' metadata `"camera"`; else read from file names that are written as in Market-1501
    (`0002_c1s1_000451_03.jpg`) or RSTPReid (`0000_c14_0031.jpg`); else the sub-folders.
    """
    known = Columns.of(metadata).by_key
    for key in _CAMERA_KEYS:
        if key in known:
            return _from_metadata(known[key].distinct(), key, _camera_name, lambda value: value, NO_CAMERA)
    if any(_CAMERA_IN_NAME.search(path.name) for path in islice(paths, _LOOKED_AT)):
        return _from_paths(paths, lambda path, own: _camera_in_name(path) or _folder(path, own, root))
    if "folder" in known:
        return _from_metadata(known["folder"].distinct(), "folder", _folder_name, lambda value: value, NO_CAMERA)
    return _from_paths(paths, lambda path, own: _folder(path, own, root))


def find_days(paths: Sequence[Path], metadata: Sequence[Metadata]) -> Facet:
    """The days of a gallery.

    They are those of its images' metadata `"time"`, `"date"` or `"day"` (ISO text, or Unix seconds in local time); else
    read from paths (`2026-11-27/0001.jpg`, `cam3_20261127_083000.jpg`). The time of a file is not looked at: copying
    changes it.
    """
    known = Columns.of(metadata).by_key
    for key in _DAY_KEYS:
        values = known[key].distinct() if key in known else []
        if any(_day_of(value) for value in values):
            return _from_metadata(values, key, _day_of, _day_condition, NO_DAY)
    if any(_DAY_IN_PATH.search(str(path)) for path in islice(paths, _LOOKED_AT)):
        return _from_paths(paths, lambda path, own: _day_in_path(path))
    return Facet(lambda path, metadata: "")


def _from_metadata(
    values: Iterable[Any], key: str, name: Callable[[Any], str], condition: Callable[[Any], Any], missing: str
) -> Facet:
    conditions: dict[str, list[Any]] = {}
    for value in values:
        if label := name(value):
            wanted = conditions.setdefault(label, [])
            if (one := condition(value)) not in wanted:
                wanted.append(one)
    return Facet(lambda path, metadata: name(metadata.get(key)) or missing, _several(conditions), key, conditions)


def _from_paths(paths: Sequence[Path], label: Label) -> Facet:
    return Facet(label, _several({label(path, {}) for path in paths}))


def _several(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels in a person's order, `camera 2` before `camera 10`; a single one is no choice."""
    ordered = sorted(labels, key=lambda label: re.sub(r"\d+", lambda number: number[0].zfill(9), label))
    return tuple(ordered) if len(ordered) > 1 else ()


def _camera_name(value: Any) -> str:
    return f"camera {value}" if str(value).isdigit() else _folder_name(value)


def _folder_name(value: Any) -> str:
    return NO_CAMERA if value in (None, "", ".") else str(value)


def _camera_in_name(path: Path) -> str:
    named = _CAMERA_IN_NAME.search(path.name)
    return f"camera {int(named[1])}" if named else ""


def _folder(path: Path, metadata: Metadata, root: Path | None) -> str:
    if "folder" in metadata:
        return _folder_name(metadata["folder"])
    if root is None or not path.is_relative_to(root):
        return _folder_name(path.parent.name)
    return _folder_name(path.parent.relative_to(root).as_posix())


def _day_of(value: Any) -> str:
    """The day of a time, as text; empty if it is none."""
    if isinstance(value, str):
        found = _DAY.match(value)
        return found[0] if found else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value).date().isoformat()
        except (OverflowError, OSError, ValueError):
            return ""
    return ""


def _day_condition(value: Any) -> Any:
    """The condition on times in a search for the day of a time."""
    if isinstance(value, str):
        return Prefix(_day_of(value))
    midnight = datetime.fromisoformat(_day_of(value))
    return Between(midnight.timestamp(), midnight.timestamp() + _DAY_SECONDS - 1e-3)


def _day_in_path(path: Path) -> str:
    found = _DAY_IN_PATH.search(str(path))
    return f"{found[1]}-{found[3]}-{found[4]}" if found else NO_DAY
