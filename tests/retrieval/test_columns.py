"""Texts and metadata in columns: what goes in comes out, and a filter finds what plain Python finds."""

import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptreid.retrieval.columns import Columns, Texts
from promptreid.retrieval.filters import Between, Prefix, matcher
from promptreid.retrieval.table import ImageTable, check_passes

NOT_UTF8 = b"bad\xffname\n'\"\\;--.jpg".decode("utf-8", "surrogateescape")

texts = st.text(st.characters(codec=None), max_size=4) | st.sampled_from(["", "cam_a", "cam_b/1", NOT_UTF8])
numbers = st.integers(-3, 3) | st.integers() | st.floats(-3, 3) | st.booleans()
values = texts | numbers | st.none() | st.lists(st.integers(0, 2), max_size=2) | st.just({"x": 1})
entries = st.dictionaries(st.sampled_from(["a", "b"]), values, max_size=2)


@settings(max_examples=150)
@given(st.lists(entries, max_size=8), st.data())
def test_columns_hold_and_select_what_they_were_given(metadata, data):
    columns = Columns.of(metadata)
    assert [repr(entry) for entry in columns] == [
        repr({key: one[key] for key in columns.by_key if key in one}) for one in metadata
    ]
    again = Columns.from_arrays(len(metadata), columns.arrays())
    assert list(again) == metadata
    rows = data.draw(st.lists(st.integers(0, len(metadata) - 1)) if metadata else st.just([]))
    chosen = columns.select(np.array(rows, dtype=np.int64))
    assert list(chosen) == [metadata[row] for row in rows]
    cut = data.draw(st.integers(0, len(metadata)))
    assert list(Columns.joined([Columns.of(metadata[:cut]), Columns.of(metadata[cut:])])) == metadata


conditions = (
    values
    | st.lists(values, max_size=3)
    | st.builds(Prefix, texts)
    | st.lists(st.builds(Prefix, texts), min_size=1, max_size=2)
    | st.just(lambda value: value == "cam_a" or value == 2)
)


@settings(max_examples=300)
@given(st.lists(entries, max_size=8), st.dictionaries(st.sampled_from(["a", "b", "c"]), conditions, min_size=1))
def test_mask_of_columns_is_what_the_filter_says_of_each_row(metadata, where):
    assert Columns.of(metadata).mask(where).tolist() == [matcher(where)(entry) for entry in metadata]


limits = st.integers(-4, 4) | st.integers() | st.floats(-4, 4) | st.none()


@settings(max_examples=300)
@given(st.lists(entries, max_size=8), st.tuples(limits, limits) | st.tuples(texts, texts))
def test_mask_of_a_range_is_what_it_says_of_each_row(metadata, limits):
    try:
        where = {"a": Between(*limits)}
    except ValueError:
        return
    assert Columns.of(metadata).mask(where).tolist() == [matcher(where)(entry) for entry in metadata]
    assert Columns.of(metadata).mask({"a": limits}).tolist() == Columns.of(metadata).mask(where).tolist()


@pytest.mark.parametrize("values", [[2**63 - 1, 0, -(2**63)], [1.5, -(2.0**53), 2.0**53, 1e308]])
@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 10**20, pytest.param(10**400, id="no float")])
def test_number_that_no_column_holds_is_a_limit_like_any_other(values, number):
    metadata = [{"a": value} for value in values]
    for one in (number, -number):
        for condition in (one, Between(one, None), Between(None, one)):
            passing = [matcher({"a": condition})(entry) for entry in metadata]
            assert Columns.of(metadata).mask({"a": condition}).tolist() == passing


def test_selected_columns_keep_no_text_of_other_rows():
    columns = Columns.of([{"name": "Ada"}, {"name": "Bob"}, {"other": "Eve"}])
    kept = columns.select(np.array([1]))
    assert list(kept.by_key) == ["name"]
    assert all(b"Ada" not in array.tobytes() and b"Eve" not in array.tobytes() for array in kept.arrays().values())


def test_numbers_and_texts_are_kept_as_what_they_are():
    columns = Columns.of([{"n": 1, "x": 1.5, "t": "a", "m": 1, "j": None}, {"n": 2**63 - 1, "x": 2.0, "m": "1"}])
    assert [columns.by_key[key].kind for key in "nxtmj"] == ["integer", "float", "text", "json", "json"]
    assert columns[1] == {"n": 2**63 - 1, "x": 2.0, "m": "1"}


def test_texts_of_any_name_come_back():
    names = [NOT_UTF8, "", "é", "\ud800"]
    made = Texts.of(names)
    assert list(made) == names == made[:]
    assert list(Texts.joined([made, made.select(np.array([2, 0]))])) == [*names, "é", NOT_UTF8]


@pytest.mark.parametrize(
    ("start", "end", "inside", "outside"),
    [
        (8, 17, [8, 17.0, 12], [7, 18, "9", True]),
        (None, 3, [-1, 3], [4]),
        ("2026-11-26", "2026-11-27", ["2026-11-26", "2026-11-27T23:59:59"], ["2026-11-25T23:00", "2026-11-28", 5]),
        (datetime.date(2026, 11, 26), None, ["2026-11-26T00:00"], ["2026-11-25"]),
    ],
)
def test_range_includes_both_ends_and_the_whole_of_its_last_day(start, end, inside, outside):
    condition = Between(start, end)
    assert all(condition(value) for value in inside)
    assert not any(condition(value) for value in outside)


@pytest.mark.parametrize(
    ("limits", "error", "words"),
    [
        ((None, None), ValueError, "both are None"),
        ((3, 1), ValueError, "3 to 1: the start is after the end"),
        ((1, "b"), TypeError, "expected two numbers, or two texts"),
        (([1], [2]), TypeError, "expected two numbers, or two texts"),
    ],
)
def test_range_that_makes_no_sense_is_refused(limits, error, words):
    with pytest.raises(error, match=words):
        Columns.of([{"a": 1}]).mask({"a": limits})
    with pytest.raises(TypeError, match="prefix is 3, expected text"):
        Prefix(3)


def test_filter_that_nothing_passes_is_named_in_words():
    table = ImageTable.of(["a.jpg"], metadata=[{"folder": "cam_a", "hour": 8}])
    for where, words in (
        ({"folder": Prefix("roof/")}, r"has folder roof/\*; known are: cam_a"),
        ({"hour": (9, 12)}, r"has hour 9\.\.12; known"),
    ):
        with pytest.raises(ValueError, match=words):
            check_passes([table], where)


def test_paths_are_found_by_every_way_to_write_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["crops/a.jpg", str(tmp_path / "b.jpg"), "crops/../c.jpg", NOT_UTF8]
    table = ImageTable.of(names)
    asked = [str(tmp_path / "crops" / "a.jpg"), "b.jpg", "./c.jpg", NOT_UTF8, "crops/b.jpg", "a.jpg"]
    assert table.rows_of_paths(asked) == [0, 1, 2, 3, -1, -1]
    assert ImageTable.from_arrays(table.arrays()).rows_of_paths(asked) == [0, 1, 2, 3, -1, -1]
    assert ImageTable.joined([table, ImageTable.of(["z.jpg"])]).select([4, 1]).rows_of_paths(["z.jpg", "b.jpg"]) == [
        0,
        1,
    ]
