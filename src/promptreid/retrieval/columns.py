"""Texts and metadata of many images in columns, so that a filter looks at each distinct value once."""

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray

from promptreid.retrieval.filters import AnyOf, Between, Condition, Metadata, Prefix, Where, conditions
from promptreid.values import fits_int64

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]

_MISSING: Any = object()


class Texts(Sequence[str]):
    """Texts end to end in one array, decoded when they are asked for; file names that are not UTF-8 too."""

    def __init__(self, content: NDArray[np.uint8], ends: Ints) -> None:
        self.content: NDArray[np.uint8] = content
        self.ends: Ints = ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Put texts end to end."""
        if isinstance(texts, Texts):
            return texts
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        begin = 0 if row == 0 else int(self.ends[row - 1])
        return self.content[begin : int(self.ends[row])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        content = self.content.tobytes()
        for begin, end in pairwise([0, *self.ends.tolist()]):
            yield content[begin:end].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)  # pyright: ignore[reportUnknownArgumentType]

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        return f"Texts({list(self)!r})"

    def select(self, rows: Ints) -> "Texts":
        """The texts of some rows."""
        begins = np.concatenate([np.zeros(1, np.int64), self.ends])[rows]
        lengths = self.ends[rows] - begins
        ends = np.cumsum(lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(begins - (ends - lengths), lengths)
        return Texts(self.content[places], ends)

    @classmethod
    def joined(cls, parts: Sequence["Texts"]) -> "Texts":
        """The texts of all parts."""
        shifts = np.cumsum([0, *(len(part.content) for part in parts)])
        return cls(
            np.concatenate([part.content for part in parts]),
            np.concatenate([part.ends + shift for part, shift in zip(parts, shifts[:-1], strict=True)]),
        )

    def arrays(self) -> Arrays:
        """The arrays for `from_arrays`."""
        return {"bytes": self.content, "ends": self.ends}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Texts":
        """Texts of arrays that were stored.

        Raises:
            ValueError: They do not fit each other.
        """
        content, ends = arrays["bytes"], arrays["ends"]
        last = int(ends[-1]) if len(ends) else 0
        in_order = not len(ends) or (ends[0] >= 0 and bool((np.diff(ends) >= 0).all()))
        if content.dtype != np.uint8 or ends.dtype != np.int64 or not in_order or last != len(content):
            raise ValueError("texts do not end where they should")
        return cls(content, ends)


@dataclass(frozen=True, eq=False)
class CodedColumn:
    """A value of each image as its position among the distinct values, which are sorted; -1 where there is none.

    Attributes:
        codes: (G,) int32.
        values: The distinct values: texts, or with `is_json` anything as JSON.
        is_json: Whether they are JSON.
    """

    codes: NDArray[np.int32]
    values: Texts
    is_json: bool

    @classmethod
    def of(cls, values: Sequence[Any], *, is_json: bool) -> "CodedColumn":
        """A column of values, some of which may be missing."""
        texts = [value if value is _MISSING or not is_json else json.dumps(value, sort_keys=True) for value in values]
        distinct = sorted({text for text in texts if text is not _MISSING})
        codes = {text: code for code, text in enumerate(distinct)}
        found = np.fromiter((codes.get(text, -1) for text in texts), np.int32, len(texts))
        return cls(found, Texts.of(distinct), is_json)

    @property
    def kind(self) -> str:
        """The name that is stored."""
        return "json" if self.is_json else "text"

    @cached_property
    def _decoded(self) -> Sequence[Any]:
        return [json.loads(text) for text in self.values] if self.is_json else self.values

    def distinct(self) -> list[Any]:
        """The distinct values, in the order in which they come first."""
        codes, first = np.unique(self.codes, return_index=True)
        return [self._decoded[code] for code in codes[np.argsort(first)].tolist() if code >= 0]

    def is_empty(self) -> bool:
        """Whether no image has a value."""
        return len(self.values) == 0

    def __getitem__(self, row: int) -> Any:
        code = int(self.codes[row])
        return self._decoded[code] if code >= 0 else _MISSING

    def __len__(self) -> int:
        return len(self.codes)

    def select(self, rows: Ints) -> "CodedColumn":
        """The column of some rows, without the values that only others had."""
        codes = self.codes[rows]
        used = np.unique(codes[codes >= 0]).astype(np.int64)
        fewer = np.where(codes >= 0, np.searchsorted(used, codes), -1).astype(np.int32)
        return CodedColumn(fewer, self.values.select(used), self.is_json)

    def mask(self, condition: Condition) -> Mask:
        """Which rows have a value that passes."""
        passes = np.zeros(len(self.values) + 1, dtype=np.bool_)  # the last is that of no value
        if self.is_json or not isinstance(condition, AnyOf | Between | Prefix):
            passes[:-1] = [bool(condition(value)) for value in self._decoded]
        elif isinstance(condition, AnyOf):
            for text in condition.values:
                if isinstance(text, str):
                    passes[bisect_left(self.values, text) : bisect_right(self.values, text)] = True
        elif isinstance(condition, Prefix) or condition.kind is str:
            first = condition.text if isinstance(condition, Prefix) else condition.start
            last = condition.text if isinstance(condition, Prefix) else condition.end
            begin = 0 if first is None else bisect_left(self.values, first)
            passes[begin : len(self.values) if last is None else _after(self.values, last)] = True
            passes[-1] = False
        return passes[self.codes]

    def arrays(self) -> Arrays:
        """The arguments for `_column`."""
        return {"codes": self.codes, **self.values.arrays()}


def _after(texts: Texts, last: str) -> int:
    """The first position whose text comes after `last` and does not begin with it."""
    return bisect_right(texts, last, key=lambda text: text[: len(last)])


@dataclass(frozen=True, eq=False)
class NumberColumn:
    """A number of each image.

    Attributes:
        values: (G,) int64 or float64.
        present: (G,) whether there is one; `None` if all have it.
    """

    values: NDArray[Any]
    present: Mask | None

    @classmethod
    def of(cls, values: Sequence[Any], kind: type[np.number[Any]]) -> "NumberColumn":
        """A column of numbers of one kind, some of which may be missing."""
        present = np.array([value is not _MISSING for value in values])
        numbers = np.array([0 if value is _MISSING else value for value in values], dtype=kind)
        return cls(numbers, None if present.all() else present)

    @property
    def kind(self) -> str:
        """The name that is stored."""
        return "integer" if self.values.dtype == np.int64 else "float"

    def distinct(self) -> list[Any]:
        """The distinct values, in the order in which they come first."""
        values, first = np.unique(self.values if self.present is None else self.values[self.present], return_index=True)
        return values[np.argsort(first)].tolist()

    def is_empty(self) -> bool:
        """Whether no image has a value."""
        return self.present is not None and not self.present.any()

    def __getitem__(self, row: int) -> Any:
        return self.values[row].item() if self.present is None or self.present[row] else _MISSING

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: Ints) -> "NumberColumn":
        """The column of some rows."""
        return NumberColumn(self.values[rows], None if self.present is None else self.present[rows])

    def mask(self, condition: Condition) -> Mask:
        """Which rows have a value that passes."""
        found = self._passes(condition)
        return found if self.present is None else found & self.present

    def _passes(self, condition: Condition) -> Mask:
        if isinstance(condition, Between) and condition.kind is float:
            low, high = self._limit(condition.start, math.inf), self._limit(condition.end, -math.inf)
            above = np.ones(len(self), np.bool_) if low is None else self.values >= low
            return above if high is None else above & (self.values <= high)
        if isinstance(condition, AnyOf):
            wanted = [value for value in condition.values if self._holds(value)]
        else:
            wanted = [value for value in self.distinct() if condition(value)]
        return np.isin(self.values, np.array(wanted, dtype=self.values.dtype))

    def _holds(self, value: Any) -> bool:
        """Whether this column can hold exactly this number."""
        if not isinstance(value, int | float):
            return False
        return (value == int(value) and fits_int64(int(value))) if self.kind == "integer" else _float(value) == value

    def _limit(self, limit: Any, inwards: float) -> Any:
        """A limit as a number of this column's kind, or infinity, that lets the same numbers pass.

        Where the column cannot hold it, that is the next number `inwards`: up from a start, down from an end.
        """
        if limit is None:
            return None
        if self.kind == "integer":
            whole = math.ceil(limit) if inwards > 0 else math.floor(limit)
            return whole if fits_int64(whole) else math.copysign(math.inf, _float(whole))
        near = _float(limit)
        is_outside = near < limit if inwards > 0 else near > limit
        return np.nextafter(near, inwards) if is_outside else near

    def arrays(self) -> Arrays:
        """The arguments for `_column`."""
        return {"values": self.values} | ({} if self.present is None else {"present": self.present})


def _float(number: float) -> float:
    """The float nearest to a number; infinity for an integer beyond all floats."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


Column = CodedColumn | NumberColumn


def _column_of(values: Sequence[Any]) -> Column:
    """The column that keeps these values, some of which may be missing, as they are."""
    kinds = {type(value) for value in values if value is not _MISSING}
    if kinds == {str}:
        return CodedColumn.of(values, is_json=False)
    if kinds == {int} and all(value is _MISSING or fits_int64(value) for value in values):
        return NumberColumn.of(values, np.int64)
    if kinds == {float}:
        return NumberColumn.of(values, np.float64)
    return CodedColumn.of(values, is_json=True)


def _joined(columns: Sequence[Column | None], lengths: Sequence[int]) -> Column:
    """Columns of several tables one below the other; `None` where a table has no such column."""
    kinds = {None if column is None else column.kind for column in columns}
    if len(kinds) == 1 and isinstance(columns[0], NumberColumn):
        present: list[Mask] = [
            np.ones(len(column), np.bool_) if column.present is None else column.present
            for column in columns
            if isinstance(column, NumberColumn)
        ]
        whole = np.concatenate(present)
        values = np.concatenate([column.values for column in columns if isinstance(column, NumberColumn)])
        return NumberColumn(values, None if whole.all() else whole)
    if len(kinds) == 1 and isinstance(columns[0], CodedColumn):
        coded = [column for column in columns if isinstance(column, CodedColumn)]
        distinct = sorted({text for column in coded for text in column.values})
        number = {text: code for code, text in enumerate(distinct)}
        tables = [np.array([*(number[text] for text in column.values), -1], dtype=np.int32) for column in coded]
        codes = np.concatenate([table[column.codes] for table, column in zip(tables, coded, strict=True)])
        return CodedColumn(codes, Texts.of(distinct), coded[0].is_json)
    mixed: list[Any] = []
    for column, length in zip(columns, lengths, strict=True):
        mixed += [_MISSING] * length if column is None else [column[row] for row in range(length)]
    return _column_of(mixed)


class Columns(Sequence[Metadata]):
    """The metadata of each image, kept by key; a row is a dictionary that is made on request.

    Attributes:
        by_key: The columns.
    """

    def __init__(self, length: int, by_key: Mapping[str, Column]) -> None:
        self._length = length
        self.by_key: Mapping[str, Column] = by_key

    @classmethod
    def of(cls, metadata: Sequence[Metadata]) -> "Columns":
        """Put dictionaries into columns."""
        if isinstance(metadata, Columns):
            return metadata
        keys = dict.fromkeys(key for entry in metadata for key in entry)
        return cls(len(metadata), {key: _column_of([entry.get(key, _MISSING) for entry in metadata]) for key in keys})

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, row: int) -> Metadata: ...
    @overload
    def __getitem__(self, row: slice) -> list[Metadata]: ...
    def __getitem__(self, row: int | slice) -> Metadata | list[Metadata]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(self._length)[row]
        known = {key: column[row] for key, column in self.by_key.items()}
        return {key: value for key, value in known.items() if value is not _MISSING}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)  # pyright: ignore[reportUnknownArgumentType]

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        return f"Columns({list(self)!r})"

    def select(self, rows: Ints) -> "Columns":
        """The metadata of some rows."""
        some = {key: column.select(rows) for key, column in self.by_key.items()}
        return Columns(len(rows), {key: column for key, column in some.items() if not column.is_empty()})

    @classmethod
    def joined(cls, parts: Sequence["Columns"]) -> "Columns":
        """The metadata of all parts."""
        lengths = [len(part) for part in parts]
        keys = dict.fromkeys(key for part in parts for key in part.by_key)
        return cls(sum(lengths), {key: _joined([part.by_key.get(key) for part in parts], lengths) for key in keys})

    def mask(self, where: Where) -> Mask:
        """Which rows pass a filter."""
        if not isinstance(where, Mapping):
            return np.fromiter((bool(where(known)) for known in self), np.bool_, len(self))
        found = np.ones(len(self), dtype=np.bool_)
        for key, some in conditions(where).items():
            column = self.by_key.get(key)
            if column is None:
                return np.zeros(len(self), dtype=np.bool_)
            found &= np.logical_or.reduce([column.mask(condition) for condition in some])
        return found

    def arrays(self) -> Arrays:
        """The arrays for `from_arrays`."""
        described = [{"key": key, "kind": column.kind} for key, column in self.by_key.items()]
        stored: Arrays = {"columns": np.frombuffer(json.dumps(described).encode(), dtype=np.uint8)}
        for number, column in enumerate(self.by_key.values()):
            stored |= {f"column{number}.{name}": array for name, array in column.arrays().items()}
        return stored

    @classmethod
    def from_arrays(cls, length: int, arrays: Mapping[str, NDArray[Any]]) -> "Columns":
        """Metadata of arrays that were stored.

        Raises:
            ValueError: They do not fit each other.
            KeyError: An array is missing.
        """
        columns: dict[str, Column] = {}
        for number, entry in enumerate(json.loads(arrays["columns"].tobytes())):
            start = f"column{number}."
            own = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
            columns[entry["key"]] = _column(entry["kind"], own)
        if any(len(column) != length for column in columns.values()):
            raise ValueError("metadata are not one per image")
        return cls(length, columns)


def _column(kind: str, arrays: Mapping[str, NDArray[Any]]) -> Column:
    if kind in {"integer", "float"}:
        values, present = arrays["values"], arrays.get("present")
        fits = values.dtype == (np.int64 if kind == "integer" else np.float64)
        if not fits or (present is not None and (present.dtype != np.bool_ or len(present) != len(values))):
            raise ValueError("numbers among the metadata are damaged")
        return NumberColumn(values, present)
    if kind not in {"text", "json"}:
        raise ValueError(f"metadata of the kind {kind!r}")
    codes, values = arrays["codes"], Texts.from_arrays(arrays)
    if codes.dtype != np.int32 or (len(codes) and not -1 <= codes.min() <= codes.max() < len(values)):
        raise ValueError("codes among the metadata are damaged")
    return CodedColumn(codes, values, kind == "json")
