"""Settings as they are given: numbers become plain, and what is no number or no choice is refused by name."""

from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from promptreid.values import (
    check_choice,
    digits_as_integer,
    fits_int64,
    optional_whole_number,
    real_number,
    whole_number,
)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_whole_number_is_a_plain_int(value: Any) -> None:
    found = whole_number("batch_size", value, minimum=3)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [2, 0.5, np.float32(0.5), np.int64(2), torch.tensor(0.5), Fraction(1, 2)])
def test_real_number_is_a_plain_float(value: Any) -> None:
    found = real_number("rate", value)
    assert (found, type(found)) == (float(value), float)


@pytest.mark.parametrize(
    "value",
    [
        *(2.0, np.float64(2.0), torch.tensor(2.0), True, np.True_, "2", None, [2], np.array([2]), torch.ones(1)),
        *(np.timedelta64(2, "ns"), np.ma.masked),
    ],
)
def test_whole_number_refuses_anything_else_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"steps is .*, expected a whole number of at least 1"):
        whole_number("steps", value, minimum=1)


@pytest.mark.parametrize(
    "value", ["2", None, [2.0], True, 1j, torch.ones(1), torch.tensor(True), np.ma.masked, np.timedelta64(2, "D")]
)
def test_real_number_refuses_anything_else_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"rate is .*, expected a number"):
        real_number("rate", value)


def test_whole_number_outside_its_limits_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        whole_number("steps", np.int64(0), minimum=1)
    with pytest.raises(ValueError, match="layers is 1025, expected at most 1024"):
        whole_number("layers", 1025, maximum=1024)
    assert whole_number("seed", -5) == -5


def test_optional_whole_number_leaves_none() -> None:
    assert optional_whole_number("depth", None, minimum=1) is None
    assert type(optional_whole_number("depth", np.int64(2), minimum=1)) is int
    with pytest.raises(ValueError, match="depth is 0, expected at least 1"):
        optional_whole_number("depth", 0, minimum=1)


def test_real_number_infinity_is_one() -> None:
    assert real_number("max_norm", np.longdouble("inf")) == float("inf")
    assert real_number("max_norm", np.ma.array(2.0)) == 2.0


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**5000), Fraction(10**400), np.longdouble("1e4000")],
    ids=["number", "negative", "fraction", "long double"],
)
def test_real_number_beyond_floats_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^rate is .{,80}, expected a number that a float can hold"):
        real_number("rate", value)


class Scalar:
    """What has no axes, as a number in an array, and no number in it."""

    ndim = 0


@pytest.mark.parametrize("value", [torch.tensor(3, device="meta"), Scalar()], ids=["meta", "empty"])
def test_number_that_is_not_known_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^steps is .*, expected a whole number"):
        whole_number("steps", value)
    with pytest.raises(TypeError, match=r"^rate is .*, expected a number"):
        real_number("rate", value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-0012", -12), ("٣", 3), pytest.param("9" * 400, int("9" * 400), id="400 digits")],
)
def test_digits_are_an_integer_of_any_size(text: str, number: int) -> None:
    assert digits_as_integer(text) == number


@pytest.mark.parametrize(
    "text", ["", "-", "--1", "+1", "1.0", "1e3", "1_0", " 1", "²", "a", pytest.param("9" * 5000, id="5000 digits")]
)
def test_other_texts_are_no_integer(text: str) -> None:
    assert digits_as_integer(text) is None


class Size(IntEnum):
    SMALL = 3
    HUGE = 2**70


@pytest.mark.parametrize("number", [0, True, -(2**63), 2**63 - 1, Size.SMALL, np.int64(-3), np.uint8(3)])
def test_integer_of_64_bits_of_any_kind_fits(number: Any) -> None:
    assert fits_int64(number)


@pytest.mark.parametrize(
    "number", [2**63, -(2**63) - 1, Size.HUGE, np.uint64(2**64 - 1), pytest.param(10**400, id="huge")]
)
def test_larger_integer_of_any_kind_does_not_fit(number: Any) -> None:
    assert not fits_int64(number)


@pytest.mark.parametrize("value", ["9" * 10_000, 10**10_000], ids=["text", "number"])
def test_long_value_is_not_shown_whole(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^length is .{,80}, expected"):
        whole_number("length", value, maximum=10)


@pytest.mark.parametrize("value", ["FAST", "", None, 1, ["fast"], pytest.param(10**5000, id="long")])
@pytest.mark.parametrize("choices", [("fast", "slow"), {"fast": 1, "slow": 2}])
def test_check_choice_refuses_anything_else_by_name(value: Any, choices: Any) -> None:
    check_choice("mode", "fast", choices)
    with pytest.raises(ValueError, match=r"^mode is .{,80}, expected one of fast, slow$"):
        check_choice("mode", value, choices)
