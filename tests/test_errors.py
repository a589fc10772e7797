"""How errors name files."""

import os
import shlex
from pathlib import Path

import pytest

from promptreid.errors import printable, shell_word


def test_printable_text_is_left_alone():
    assert printable("Überwachung 人 C:\\crops") == "Überwachung 人 C:\\crops"


def test_what_a_terminal_cannot_print_is_escaped():
    assert printable("a\n\x1b[31m\ud800.jpg") == r"a\n\x1b[31m\ud800.jpg"


@pytest.mark.parametrize("word", ["gallery", "my crops", "it's", "$HOME", "a;b", "s3://bucket/crops"])
def test_shell_gets_back_the_word_that_was_quoted(word):
    assert shlex.split(f"promptreid index {shell_word(word)}") == ["promptreid", "index", word]


def test_path_that_begins_with_a_dash_is_no_option_where_it_is_pasted():
    assert (shell_word(Path("-gal")), shell_word(Path("-my gal"))) == ("./-gal", "'./-my gal'")
    assert (shell_word("-a woman"), shell_word(Path("gal/-x"))) == ("'-a woman'", "gal/-x")


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        (r"C:\crops\new", r"C:\crops\new"),
        (r"C:\Users\Ada Lovelace\crops", r'"C:\Users\Ada Lovelace\crops"'),
        ("R&D", '"R&D"'),
        ('a "red" coat', r'"a \"red\" coat"'),
    ],
)
def test_word_for_a_shell_of_windows_has_double_quotes(monkeypatch, word, quoted):
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        found = shell_word(word)
    assert found == quoted
