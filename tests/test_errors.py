"""How errors name files."""

from promptreid.errors import printable


def test_printable_text_is_left_alone():
    assert printable("Überwachung 人 C:\\crops") == "Überwachung 人 C:\\crops"


def test_what_a_terminal_cannot_print_is_escaped():
    assert printable("a\n\x1b[31m\ud800.jpg") == r"a\n\x1b[31m\ud800.jpg"
