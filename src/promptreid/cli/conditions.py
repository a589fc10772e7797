"""Conditions on the metadata of images, as `--where KEY=VALUE` gives them."""

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from promptreid.values import digits_as_integer

if TYPE_CHECKING:
    from promptreid.retrieval.gallery import Gallery


def add_where_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """A filter by metadata, for `as_where`; may be given several times."""
    parser.add_argument("--where", type=key_and_value, action="append", default=[], metavar="KEY=VALUE", help=help)


def key_and_value(text: str) -> tuple[str, str]:
    """The type of an argument that is a condition."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected KEY=VALUE, such as folder=cam_a")
    return key, value


def as_where(conditions: Sequence[tuple[str, str]], gallery: "Gallery | None") -> dict[str, list[Any]]:
    """Values by key; a key given twice allows either value, and a number matches as number and as text.

    A value with `*`, `?` or `[` is a pattern for the values that images have, and stands only for itself where an image
    has it; in a store only a beginning with `*` is one, and in a gallery too where a value begins so.
    """
    wanted: dict[str, list[Any]] = {}
    for key, value in conditions:
        wanted.setdefault(key, []).extend(_values(value, key, gallery))
    return wanted


def _values(text: str, key: str, gallery: "Gallery | None") -> list[Any]:
    """Parse a value of `--where`: a value, a range if it has two dots, or a pattern."""
    from promptreid.retrieval.filters import Between, Prefix

    start, dots, end = text.partition("..")
    if dots and (start or end):
        return [text, *_ranges(start or None, end or None, Between)]
    if gallery is not None and any(sign in text.removesuffix("*") for sign in "*?["):
        names = [name for name in gallery.values_of(key) if isinstance(name, str)]
        if not (text.endswith("*") and any(name.startswith(text[:-1]) for name in names)):
            return [text] if text in names else [name for name in names if fnmatchcase(name, text)] or [text]
    if text.endswith("*"):
        return [Prefix(text[:-1])]
    return [text, *(number for number in (_number(text),) if isinstance(number, int))]


def _ranges(start: str | None, end: str | None, between: Any) -> list[Any]:
    """The range of numbers and that of texts, as far as there are such."""
    ranges: list[Any] = []
    numbers = [None if limit is None else _number(limit) for limit in (start, end)]
    are_numbers = all(number is not None or limit is None for number, limit in zip(numbers, (start, end), strict=True))
    for limits in [numbers, [start, end]] if are_numbers else [[start, end]]:
        with suppress(ValueError):  # numbers in order need not be texts in order
            ranges.append(between(*limits))
    if not ranges:
        raise ValueError(f"--where has the range {start}..{end}, whose start is after its end; swap them")
    return ranges


def _number(text: str) -> int | float | None:
    whole = digits_as_integer(text)
    if whole is not None:
        return whole
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
