"""The examples are as short as the page says, and use public modules alone."""

import re


def test_there_are_ten_examples_and_each_is_under_40_lines(examples):
    assert len(examples) == 10
    assert {section: count for section, text in examples.items() if (count := len(text.splitlines())) >= 40} == {}


def test_examples_use_no_private_names_of_the_package(examples):
    assert not [text for text in examples.values() if re.search(r"promptreid\S*\._|import _", text)]
