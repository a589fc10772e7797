"""Values as they are given in settings, commands and files: checked, and made plain for JSON and checkpoints."""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast


def whole_number(name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """A whole number as a plain `int`; it may be one of numpy's, or a tensor without axes.

    Args:
        name: Names the setting in errors.
        value: The number; `2.0` and `True` are none.
        minimum: The smallest that is allowed.
        maximum: The largest that is allowed.

    Raises:
        TypeError: It is no whole number, or not known, as of a tensor on the meta device.
        ValueError: It is below the minimum or above the maximum.

    Example:
        >>> import numpy as np
        >>> whole_number("epochs", np.int64(3), minimum=1)
        3
    """
    plain, wanted = _plain(value), "" if minimum is None else f" of at least {minimum}"
    if isinstance(plain, bool) or not isinstance(plain, Integral):
        raise TypeError(f"{name} is {shown(value)}, expected a whole number{wanted}")
    number = int(plain)
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} is {shown(number)}, expected at least {minimum}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} is {shown(number)}, expected at most {maximum}")
    return number


def optional_whole_number(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> int | None:
    """`whole_number`, where `None` is allowed and stays."""
    return None if value is None else whole_number(name, value, minimum=minimum, maximum=maximum)


def real_number(name: str, value: Any) -> float:
    """A number as a plain `float`; it may be one of numpy's, or a tensor without axes.

    Args:
        name: Names the setting in errors.
        value: The number; `True` is none.

    Raises:
        TypeError: It is no number, or not known, as of a tensor on the meta device.
        ValueError: It is beyond what a `float` holds.

    Example:
        >>> import torch
        >>> real_number("learning_rate", torch.tensor(0.5))
        0.5
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name} is {shown(value)}, expected a number")
    with suppress(OverflowError):
        number = float(plain)
        if not math.isinf(number) or plain in (math.inf, -math.inf):  # one of numpy's longer kinds comes to infinity
            return number
    raise ValueError(f"{name} is {shown(value)}, expected a number that a float can hold")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Refuse a setting that is none of the names that it may have.

    Args:
        name: Names the setting in errors.
        value: What was given.
        choices: The names.

    Raises:
        ValueError: It is something else.

    Example:
        >>> check_choice("mode", "fast", ("exact", "approximate"))
        Traceback (most recent call last):
        ValueError: mode is 'fast', expected one of exact, approximate
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shown(value)}, expected one of {', '.join(choices)}")


def given_path(argument: str, path: str | Path) -> Path:
    """A path as an argument gives it; an empty text would mean the working folder.

    Args:
        argument: Its name, for the error.
        path: The path.

    Raises:
        ValueError: It is empty.
    """
    if isinstance(path, str) and not path.strip():
        raise ValueError(f'{argument} is empty; give a path ("." is the working folder)')
    return Path(path)


def digits_as_integer(text: str) -> int | None:
    """The integer that a text writes in decimal digits; `None` for any other text, and for more than Python reads.

    Example:
        >>> digits_as_integer("-7"), digits_as_integer("7.0"), digits_as_integer("9" * 5000)
        (-7, None, None)
    """
    try:
        return int(text) if text.removeprefix("-").isdecimal() else None
    except ValueError:  # more than 4,300
        return None


def fits_int64(number: int) -> bool:
    """Whether 64 bits hold an integer.

    A `range` is no substitute: `in` walks through it for what is not exactly an `int`, such as an `IntEnum`'s integer.

    Example:
        >>> fits_int64(2**63 - 1), fits_int64(2**63)
        (True, False)
    """
    return -(2**63) <= number < 2**63


def as_json(content: Any) -> Any:
    """The same with null for NaN and infinity, which JSON has no numbers for, and lists for tuples.

    Example:
        >>> as_json({"mAP": 0.5, "spread": float("nan"), "interval": (0.25, float("inf"))})
        {'mAP': 0.5, 'spread': None, 'interval': [0.25, None]}
    """
    if isinstance(content, Mapping):
        return {key: as_json(value) for key, value in cast("Mapping[Any, Any]", content).items()}
    if isinstance(content, list | tuple):
        return [as_json(value) for value in cast("Sequence[Any]", content)]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def shown(value: object, *, longest: int = 60) -> str:
    """A value as an error shows it; cut if it has more letters, as what comes from a stranger's file may have."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= longest else f"{text[:longest]}…"


def _plain(value: Any) -> Any:
    """The content of a numpy scalar, or of an array or tensor without axes; itself where it has none.

    A time of numpy's, which counts as a whole number elsewhere, and what is masked are no values: `None`.
    """
    if getattr(value, "ndim", None) != 0:
        return value
    if getattr(value, "mask", False) or getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        return None
    try:
        return value.item()
    except (RuntimeError, AttributeError):  # a tensor on the meta device, and what only looks like an array
        return value
