import pytest

from promptreid.demo.phrases import phrases_of


def test_phrases_of_two_sentences_gives_subject_garments_and_details() -> None:
    sentence = "The slim man is wearing a blue and white striped shirt and jeans. The person has a red cap, grey shoes."
    # cut at "is", "wearing", "and", ".", "the person", "has" and ","; articles go
    assert phrases_of(sentence) == ["slim man", "blue", "white striped shirt", "jeans", "red cap", "grey shoes"]


def test_phrases_of_a_repeated_phrase_names_it_once() -> None:
    assert phrases_of("red cap, red cap and a red cap") == ["red cap"]


def test_phrases_of_words_that_hold_a_cutting_word_stay_whole() -> None:
    assert phrases_of("a sandwich band hat") == ["sandwich band hat"]


@pytest.mark.parametrize("sentence", ["", "   ", "and, with. on"])
def test_phrases_of_nothing_is_empty(sentence: str) -> None:
    assert phrases_of(sentence) == []


def test_phrases_of_a_long_list_stops_at_the_limit() -> None:
    assert phrases_of(", ".join(f"thing {number}" for number in range(20)), most=3) == ["thing 0", "thing 1", "thing 2"]
