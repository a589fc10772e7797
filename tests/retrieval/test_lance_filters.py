"""Filters as SQL: what passes is what the gallery's own filters let pass, whatever the letters."""

from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptreid.retrieval.filters import AnyOf, Between, Prefix
from promptreid.retrieval.lance_filters import (
    cell,
    column_name,
    from_cell,
    from_stored,
    key_of,
    kind_of,
    quoted,
    sql_filter,
    to_stored,
)

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=12)
COLUMNS = ["text_camera", "integer_hour", "large_id", "float_score", "json_tags"]


@given(TEXTS, TEXTS)
def test_stored_text_comes_back_and_keeps_its_beginnings(text, other):
    assert from_stored(to_stored(text)) == text
    to_stored(text).encode()
    assert to_stored(text).startswith(to_stored(other)) == text.startswith(other)


@given(st.integers(), st.integers() | st.integers(-(10**40), 10**40))
def test_large_integers_are_stored_in_their_order(one, other):
    assert (cell(one, "large") < cell(other, "large")) == (one < other)
    assert from_cell(cell(other, "large"), "large") == other


@given(TEXTS, st.sampled_from(["text", "integer", "large", "float", "json"]))
def test_column_of_any_key_is_a_plain_name_of_its_own(key, kind):
    name = column_name(key, kind)
    assert key_of(name) == (key, kind)
    assert name.isascii()
    assert name.replace("_", "a").isalnum()
    assert name == name.lower()


@pytest.mark.parametrize(
    "value", ["a", "", "é\udc80'\\", 3, -(2**63), 2**63, -(2**63) - 1, -(10**30), 1.5, True, None, [1, "a"], {"b": [2]}]
)
def test_value_comes_back_from_its_column(value):
    kind = kind_of(value)
    back = from_cell(cell(value, kind), kind)
    assert (back, type(back)) == (value, type(value))


def test_filter_of_several_keys_is_translated_by_hand():
    where = {"camera": ["a", Prefix("b")], "hour": (8, 17.5), "score": [1, 0.25]}
    assert sql_filter(where, COLUMNS) == (
        "((text_camera IN ('a')) OR (text_camera >= 'b' AND text_camera < 'c')) AND "
        "(integer_hour >= 8 AND integer_hour <= 17) AND "
        "(float_score IN (CAST('1.0' AS DOUBLE), CAST('0.25' AS DOUBLE)))"
    )


@pytest.mark.parametrize(
    ("where", "sql"),
    [
        ({}, "true"),
        ({"nothing": 3}, "(false)"),
        ({"camera": 3}, "(false)"),
        ({"camera": []}, "(false)"),
        ({"camera": Prefix("")}, "(text_camera >= '')"),
        ({"camera": Between("2026-11-26", None)}, "(text_camera >= '2026-11-26')"),
        ({"camera": Between(None, "\ud7ff")}, "(text_camera IS NOT NULL AND text_camera < '\ue000')"),
        ({"camera": Between(None, "\U0010ffff")}, "(text_camera IS NOT NULL)"),
        ({"hour": Between(2**63, None)}, "(false)"),
        ({"hour": Between(None, 2**63)}, "(integer_hour IS NOT NULL)"),
        ({"hour": 2**63}, "(false)"),
        ({"id": Between(None, 2**63)}, "(large_id <= '10000199223372036854775808')"),
        ({"id": [3, float(2**63)]}, "(large_id IN ('10000199223372036854775808'))"),
        ({"score": Between(None, 10**400)}, "(float_score IS NOT NULL)"),
        ({"tags": [["a", 1]]}, "(json_tags IN ('[\"a\", 1]'))"),
    ],
)
def test_limits_of_what_a_column_holds(where, sql):
    found = sql_filter(where, COLUMNS)
    assert found in (sql, f"({sql})")


class Hour(IntEnum):
    NOON = 12
    NEVER = 2**70


def test_integers_of_any_kind_are_what_they_count():
    assert [kind_of(value) for value in (Hour.NOON, Hour.NEVER)] == ["integer", "large"]
    for given_as in (Hour.NOON, np.int64(12), np.uint8(12)):
        assert sql_filter({"hour": given_as}, COLUMNS) == "(integer_hour IN (12))"
        assert sql_filter({"hour": (given_as, Hour.NEVER)}, COLUMNS) == (
            "(integer_hour >= 12 AND integer_hour IS NOT NULL)"
        )
    assert sql_filter({"id": AnyOf((Hour.NEVER,))}, COLUMNS) == sql_filter({"id": 2**70}, COLUMNS)


@pytest.mark.parametrize("where", [lambda known: True, {"camera": lambda value: True}, {"camera": str.isupper}])
def test_function_is_refused_and_says_what_can_be_given(where):
    with pytest.raises(ValueError, match=r"values, lists, ranges and prefixes.*cannot call a function"):
        sql_filter(where, COLUMNS)


def test_quote_cannot_end_the_literal():
    assert quoted("x' OR true --") == "'x'' OR true --'"
    assert sql_filter({"camera' OR true --": "a"}, ["text_camera"]) == "(false)"
