"""Filters of a search as data: which values of an image's metadata pass."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any

import numpy as np
from torch import Tensor

Metadata = Mapping[str, Any]
Where = Mapping[str, Any] | Callable[[Metadata], bool]


@dataclass(frozen=True)
class AnyOf:
    """One of some values."""

    values: tuple[Any, ...]

    def __call__(self, value: Any) -> bool:
        """Whether a value passes."""
        return value in self.values


@dataclass(frozen=True)
class Between:
    """Numbers or texts from `start` to `end`, both included; `None` is no limit.

    A text that begins with `end` is included too, so that the end `"2026-11-27"` includes the whole day. Dates and
    times are texts in ISO form, as metadata keep them.

    Raises:
        TypeError: The limits are neither two numbers nor two texts or dates.
        ValueError: Both are `None`, or the start is after the end.
    """

    start: Any
    end: Any

    def __post_init__(self) -> None:
        start, end = plain(self.start, "start of a range"), plain(self.end, "end of a range")
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "end", end)
        kinds = {_kind(limit) for limit in (start, end) if limit is not None}
        if not kinds:
            raise ValueError("a range needs a start or an end; both are None")
        if len(kinds) > 1 or kinds == {None}:
            raise TypeError(f"range is {start!r} to {end!r}, expected two numbers, or two texts or dates")
        if start is not None and end is not None and start > end and not _begins(start, end):
            raise ValueError(f"range is {start!r} to {end!r}: the start is after the end; swap them")

    def __str__(self) -> str:
        start, end = ("" if limit is None else str(limit) for limit in (self.start, self.end))
        return f"{start}..{end}"

    @property
    def kind(self) -> type | None:
        """`str` or `float`: what it is a range of."""
        return _kind(self.end if self.start is None else self.start)

    def __call__(self, value: Any) -> bool:
        """Whether a value passes."""
        if _kind(value) is not self.kind:
            return False
        above = self.start is None or value >= self.start
        return above and (self.end is None or value <= self.end or _begins(value, self.end))


@dataclass(frozen=True)
class Prefix:
    """Texts that begin with `text`, such as `Prefix("building_2/")` for a folder's sub-folders."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"prefix is {self.text!r}, expected text")

    def __str__(self) -> str:
        return f"{self.text}*"

    def __call__(self, value: Any) -> bool:
        """Whether a value passes."""
        return _begins(value, self.text)


Condition = AnyOf | Between | Prefix | Callable[[Any], bool]


def conditions(where: Mapping[str, Any]) -> dict[str, tuple[Condition, ...]]:
    """A filter by key as conditions on the key's value, of which one must hold.

    Args:
        where: By key a value, a list or set of values, of which any may match; a tuple of two for the range `Between`
            them; `Between` or `Prefix`, also in a list; or a function of the value. A tuple of another length is a
            list.

    Example:
        >>> conditions({"folder": ["cam_a", Prefix("roof/")], "hour": (8, 17)})
        {'folder': (AnyOf(values=('cam_a',)), Prefix(text='roof/')), 'hour': (Between(start=8, end=17),)}
    """
    return {key: _conditions(value) for key, value in where.items()}


def _conditions(value: Any) -> tuple[Condition, ...]:
    if isinstance(value, tuple) and len(value) == 2:  # pyright: ignore[reportUnknownArgumentType]
        return (Between(*value),)  # pyright: ignore[reportUnknownArgumentType]
    if callable(value):  # Between, Prefix and AnyOf too
        return (value,)  # pyright: ignore[reportReturnType]
    if not isinstance(value, list | tuple | set | frozenset):
        value = plain(value, "where")
    entries: list[Any] = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]  # pyright: ignore[reportUnknownArgumentType]
    special = [entry for entry in entries if isinstance(entry, Between | Prefix)]
    values = tuple(plain(entry, "where") for entry in entries if not isinstance(entry, Between | Prefix))
    return ((AnyOf(values),) if values or not special else ()) + tuple(special)


def check_where(where: Any) -> None:
    """Refuse what is no filter.

    Raises:
        TypeError: It is neither conditions by key nor a function.
    """
    if not isinstance(where, Mapping) and not callable(where):
        raise TypeError(
            f"where is {where!r}, expected conditions by key, such as {{'folder': 'cam_a'}}, or a function of an "
            "image's metadata"
        )


def matcher(where: Where) -> Callable[[Metadata], bool]:
    """A filter as a function of an image's metadata.

    Args:
        where: Conditions by key (`conditions`), or a function of all metadata.

    Example:
        >>> matcher({"folder": ["cam_a", "cam_b"]})({"folder": "cam_b"})
        True
    """
    if not isinstance(where, Mapping):
        return where
    asked = conditions(where)
    return lambda known: all(
        key in known and any(condition(known[key]) for condition in some) for key, some in asked.items()
    )


def _kind(value: Any) -> type | None:
    if isinstance(value, str):
        return str
    return float if isinstance(value, int | float) and not isinstance(value, bool) else None


def _begins(value: Any, text: Any) -> bool:
    return isinstance(value, str) and isinstance(text, str) and value.startswith(text)


def plain_metadata(metadata: Any, what: str) -> Metadata:
    """Metadata of one image as JSON holds them.

    Raises:
        TypeError: They are not a dictionary, or hold values that JSON cannot represent.
        ValueError: A number is NaN or infinite.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"{what} is {metadata!r}, expected a dictionary, such as {{'camera': 3}}")
    return plain(metadata, what)


def plain(value: Any, what: str) -> Any:
    """A value as JSON holds it: numpy's and torch's values, dates, times, paths, tuples and sets become plain ones.

    Args:
        value: Metadata, or one value.
        what: Its name, for errors.

    Raises:
        TypeError: It is of a kind that JSON does not take, such as bytes, or a key is not text.
        ValueError: It is NaN or infinite.
    """
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{what} has the key {odd[0]!r}, expected text")
        return {key: plain(entry, f"{what}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry, what) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{what} is {value}, which JSON does not have; leave it out, or give None")
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # of an enumeration, too
    if value is None or isinstance(value, str | bool | float):
        return value
    raise TypeError(
        f"{what} is {type(value).__name__}, expected text, numbers, lists or dictionaries, as JSON has them"
    )
