"""Metadata of a store as typed columns, and filters as SQL on them."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from promptreid.retrieval.filters import AnyOf, Between, Condition, Prefix, Where, check_where, conditions
from promptreid.values import fits_int64

# "large": integers beyond 64 bits, as text in their order.
Kind = Literal["text", "integer", "large", "float", "json"]

# The engine folds the case of a bare name and reads a dot as a step into it, so other keys are written
# in hexadecimal.
_PLAIN_KEY = re.compile(r"[a-z][a-z0-9_]*")
_KINDS: tuple[Kind, ...] = ("text", "integer", "large", "float", "json")
# Where the digits of a large integer begin, and what the digits of a negative one are written as.
_DIGITS = 7
_COMPLEMENT = str.maketrans("0123456789", "9876543210")
# Before what UTF-8 lacks, written in hexadecimal, and before itself: so the order of texts stays as it is.
_ESCAPE = "\ue000"
_ODD = re.compile(f"[\ud800-\udfff{_ESCAPE}]")
_WRITTEN = re.compile(f"{_ESCAPE}({_ESCAPE}|[0-9a-f]{{4}})")
_LAST_LETTER = chr(0x10FFFF)
_NOTHING, _ANYTHING = "false", "true"


def to_stored(text: str) -> str:
    r"""Text as the store holds it: UTF-8 lacks the letters that stand for odd bytes of file names.

    Example:
        >>> from_stored(to_stored("cam\udc80")) == "cam\udc80", to_stored("cam_a")
        (True, 'cam_a')
    """
    return _ODD.sub(lambda found: _ESCAPE + (_ESCAPE if found[0] == _ESCAPE else f"{ord(found[0]):04x}"), text)


def from_stored(text: str) -> str:
    """The text that `to_stored` was given."""
    return _WRITTEN.sub(lambda found: _ESCAPE if found[1] == _ESCAPE else chr(int(found[1], 16)), text)


def kind_of(value: Any) -> Kind:
    """The kind of column that keeps a value of metadata as it is."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "json"
    if isinstance(value, int):
        return "integer" if fits_int64(value) else "large"
    return "float" if isinstance(value, float) else "json"


def column_name(key: str, kind: Kind) -> str:
    """The column of a key's values of one kind.

    Example:
        >>> column_name("camera", "text"), column_name("Camera 1", "integer")
        ('text_camera', 'integer_0x43616d6572612031')
    """
    plain = _PLAIN_KEY.fullmatch(key)
    return f"{kind}_{key if plain else '0x' + to_stored(key).encode().hex()}"


def key_of(column: str) -> tuple[str, Kind] | None:
    """The key and the kind of a column of metadata; `None` of another column."""
    for kind in _KINDS:
        if column.startswith(f"{kind}_"):
            name = column.removeprefix(f"{kind}_")
            return from_stored(bytes.fromhex(name[2:]).decode()) if name.startswith("0x") else name, kind
    return None


def cell(value: Any, kind: Kind) -> Any:
    """A value as its column holds it."""
    if kind == "json":
        return to_stored(json.dumps(value, sort_keys=True))
    if kind == "large":
        return _ordered(value)
    return to_stored(value) if kind == "text" else value


def from_cell(value: Any, kind: Kind) -> Any:
    """The value that a column holds."""
    if kind == "json":
        return json.loads(from_stored(value))
    if kind == "large":
        return int(value[_DIGITS:]) if value[0] == "1" else -int(value[_DIGITS:].translate(_COMPLEMENT))
    return from_stored(value) if kind == "text" else value


def _ordered(value: int) -> str:
    """An integer as text that sorts as it does: its sign, its number of digits, its digits.

    Those of a negative one are complements to nine.
    """
    digits = str(abs(value))
    text = f"{len(digits):0{_DIGITS - 1}d}{digits}"
    return f"1{text}" if value >= 0 else f"0{text.translate(_COMPLEMENT)}"


def quoted(text: str) -> str:
    """Text as an SQL literal. Nothing but the quote ends it: the engine's SQL has no other escape.

    Example:
        >>> quoted("O'Brien")
        "'O''Brien'"
    """
    return _literal(to_stored(text))


def sql_filter(where: Where, columns: Collection[str]) -> str:
    """A filter of a search as SQL.

    Args:
        where: Values, lists, ranges and prefixes by key (`promptreid.retrieval.filters.conditions`).
        columns: The store's.

    Raises:
        TypeError: It is no filter.
        ValueError: It is a function, or has one in it, which no engine could call.

    Example:
        >>> sql_filter({"camera": ["a", "b"], "hour": (8, 17)}, ["text_camera", "integer_hour"])
        "(text_camera IN ('a', 'b')) AND (integer_hour >= 8 AND integer_hour <= 17)"
    """
    check_where(where)
    if not isinstance(where, Mapping):
        raise ValueError(f"where is {where!r}; {_NO_FUNCTIONS}")
    parts = [_any(_key_terms(key, some, columns)) for key, some in conditions(where).items()]
    return " AND ".join(f"({part})" for part in parts) or _ANYTHING


_NO_FUNCTIONS = (
    "a store filters by values, lists, ranges and prefixes, such as {'camera': ['a', 'b'], 'time': (start, end)}, and "
    "cannot call a function"
)


def _key_terms(key: str, some: tuple[Condition, ...], columns: Collection[str]) -> Iterator[str]:
    for kind in _KINDS:
        name = column_name(key, kind)
        for condition in some:
            if not isinstance(condition, AnyOf | Between | Prefix):
                raise ValueError(f"where[{key!r}] is {condition!r}; {_NO_FUNCTIONS}")
            if name in columns:
                yield _TRANSLATED[kind](name, condition)


def _any(terms: Iterator[str]) -> str:
    possible = [term for term in terms if term != _NOTHING]
    return " OR ".join(f"({term})" if len(possible) > 1 else term for term in possible) or _NOTHING


def _all(terms: list[str]) -> str:
    return _NOTHING if _NOTHING in terms else " AND ".join(dict.fromkeys(terms))


def _one_of(name: str, literals: list[str]) -> str:
    distinct = list(dict.fromkeys(literals))
    return f"{name} IN ({', '.join(distinct)})" if distinct else _NOTHING


def _text_term(name: str, condition: Condition) -> str:
    if isinstance(condition, AnyOf):
        return _one_of(name, [quoted(value) for value in condition.values if isinstance(value, str)])
    if isinstance(condition, Between) and condition.kind is not str:
        return _NOTHING
    begins = condition.text if isinstance(condition, Prefix) else getattr(condition, "start", None)
    ends = condition.text if isinstance(condition, Prefix) else getattr(condition, "end", None)
    terms = [f"{name} IS NOT NULL" if begins is None else f"{name} >= {quoted(begins)}"]
    # What begins with the end is included, and no text comes between those and the end with its last letter raised.
    if ends is not None and (after := _raised(to_stored(ends))) is not None:
        terms.append(f"{name} < {_literal(after)}")
    return _all(terms)


def _literal(stored: str) -> str:
    return "'" + stored.replace("'", "''") + "'"


def _raised(text: str) -> str | None:
    """The first text after all that begin with `text`; `None` if there is none."""
    text = text.rstrip(_LAST_LETTER)
    if not text:
        return None
    letter = ord(text[-1]) + 1
    return text[:-1] + chr(0xE000 if letter == 0xD800 else letter)


def _integer_term(name: str, condition: Condition) -> str:
    if isinstance(condition, AnyOf):
        return _one_of(name, [_whole(value) for value in _integers(condition) if fits_int64(value)])
    if not isinstance(condition, Between) or condition.kind is not float:
        return _NOTHING
    return _all(
        [
            _limit(name, ">=", condition.start, math.ceil),
            _limit(name, "<=", condition.end, math.floor),
        ]
    )


def _integers(condition: AnyOf) -> list[int]:
    return [int(value) for value in condition.values if isinstance(value, int | float) and value == int(value)]


def _whole(value: int) -> str:
    """An integer as an SQL literal; the sign of the least one would be taken off before it is read."""
    return str(value) if fits_int64(-value) else f"CAST('{value}' AS BIGINT)"


def _limit(name: str, sign: str, limit: Any, to_integer: Any) -> str:
    if limit is None:
        return f"{name} IS NOT NULL"
    whole = to_integer(limit)
    if fits_int64(whole):
        return f"{name} {sign} {_whole(whole)}"
    return f"{name} IS NOT NULL" if (whole < 0) == (sign == ">=") else _NOTHING


def _large_term(name: str, condition: Condition) -> str:
    if isinstance(condition, AnyOf):
        return _one_of(name, [_literal(_ordered(value)) for value in _integers(condition) if not fits_int64(value)])
    if not isinstance(condition, Between) or condition.kind is not float:
        return _NOTHING
    limits = [(">=", condition.start, math.ceil), ("<=", condition.end, math.floor)]
    return _all([f"{name} {sign} {_literal(_ordered(whole(at)))}" for sign, at, whole in limits if at is not None])


def _float_term(name: str, condition: Condition) -> str:
    if isinstance(condition, AnyOf):
        numbers = [value for value in condition.values if isinstance(value, int | float) and _is_double(value)]
        return _one_of(name, [_double(value) for value in numbers])
    if not isinstance(condition, Between) or condition.kind is not float:
        return _NOTHING
    limits = {">=": condition.start, "<=": condition.end}
    terms = [_limit_of_floats(name, sign, limit) for sign, limit in limits.items() if limit is not None]
    return _all(terms)


def _limit_of_floats(name: str, sign: str, limit: float) -> str:
    """A limit of floats; an integer that is none is taken at the float on its inner side."""
    try:
        near = float(limit)
    except OverflowError:
        return f"{name} IS NOT NULL" if (limit < 0) == (sign == ">=") else _NOTHING
    strict = (near < limit) if sign == ">=" else (near > limit)
    return f"{name} {sign[0] if strict else sign} {_double(near)}"


def _is_double(value: Any) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def _double(value: float) -> str:
    return f"CAST('{float(value)!r}' AS DOUBLE)"


def _json_term(name: str, condition: Condition) -> str:
    if not isinstance(condition, AnyOf):
        return _NOTHING
    values = list(condition.values)
    values += [bool(value) for value in values if isinstance(value, int | float) and value in (0, 1)]
    return _one_of(name, [quoted(json.dumps(value, sort_keys=True)) for value in values])


_TRANSLATED = {
    "text": _text_term,
    "integer": _integer_term,
    "large": _large_term,
    "float": _float_term,
    "json": _json_term,
}
