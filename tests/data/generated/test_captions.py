"""Captions say what is true of the person and visible from that side."""

from itertools import product

import numpy as np
import pytest

from promptreid.data.generated.captions import article, describe
from promptreid.data.generated.person import GARMENT_COLOURS, HAIR_COLOURS, Person

VIEWS = ("front", "back", "side")
# Written out here, not taken from the module under test: what each word may stand for.
MEANING = {"gray": "grey", "violet": "purple", "tan": "beige", "fair": "blond"}
COLOURS = set(GARMENT_COLOURS) | set(HAIR_COLOURS) | set(MEANING)
UPPER = {
    "hooded sweatshirt": "hoodie", "hoodie": "hoodie", "tee shirt": "t-shirt", "t-shirt": "t-shirt",
    "short sleeved shirt": "t-shirt", "collared shirt": "shirt", "button up shirt": "shirt", "jacket": "jacket",
    "coat": "coat", "sweater": "sweater", "pullover": "sweater", "jumper": "sweater", "tank top": "tank top",
    "sleeveless top": "tank top", "shirt": "shirt", "top": "top",
}  # fmt: skip
LOWER = {
    "short pants": "shorts", "shorts": "shorts", "denim pants": "jeans", "jeans": "jeans", "tight pants": "leggings",
    "leggings": "leggings", "skirt": "skirt", "trousers": "trousers", "slacks": "trousers", "pants": "trousers",
}  # fmt: skip


def captions(people: list[Person]) -> list[tuple[Person, str, str]]:
    random = np.random.default_rng(3)
    return [(person, view, describe(random, person, view).lower()) for person, view in product(people, VIEWS)]


def named(caption: str, table: dict[str, str]) -> str:
    """The meaning of the longest phrase of `table` in the caption's first sentence."""
    sentence = caption.split(".")[0]
    return table[max((phrase for phrase in table if phrase in sentence), key=len)]


def colour_before(caption: str, noun: str) -> str:
    words = caption.split(noun)[0].split()
    found = [word for word in words if word in COLOURS][-1]
    return MEANING.get(found, found)


def test_garments_named_are_those_worn(people: list[Person]) -> None:
    for person, view, caption in captions(people):
        hidden = (
            view != "front" and person.hair_length == "long" and person.upper_kind in ("shirt", "hoodie", "sweater")
        )
        upper = "top" if hidden else person.upper_kind
        assert (named(caption, UPPER), named(caption, LOWER)) == (upper, person.lower_kind), caption


def test_colours_named_before_things_are_those_of_the_things(people: list[Person]) -> None:
    checked = 0
    for person, _, caption in captions(people):
        things = {
            "shoes": person.shoe_colour, "backpack": person.bag_colour, "rucksack": person.bag_colour,
            "handbag": person.bag_colour, "shoulder bag": person.bag_colour, "beanie": person.hat_colour,
            " cap": person.hat_colour, " hat": person.hat_colour, "hair": person.hair_colour,
        }  # fmt: skip
        for noun, colour in things.items():
            if noun in caption:
                assert colour_before(caption, noun) == colour, caption
                checked += 1
    assert checked > 800


def test_garment_colours_are_the_only_ones_in_the_first_sentence(people: list[Person]) -> None:
    for person, _, caption in captions(people):
        words = [word for word in caption.split(".")[0].split() if word in COLOURS]
        worn = [person.upper_colour, person.lower_colour]
        worn += [person.pattern_colour] if person.upper_pattern != "plain" else []
        assert sorted(MEANING.get(word, word) for word in words) == sorted(worn), caption


def test_things_not_carried_or_hidden_are_never_named(people: list[Person]) -> None:
    for person, view, caption in captions(people):
        if person.bag != "backpack" or view == "front":
            assert "backpack" not in caption
            assert "rucksack" not in caption
        if person.bag not in ("handbag", "shoulder bag"):
            assert "bag" not in caption
        if not person.glasses or view == "back":
            assert "glasses" not in caption
        if person.hat == "none":
            assert " hat" not in caption
        if person.hat == "none" or view == "back":
            assert "beanie" not in caption
            assert " cap" not in caption
        if person.hair_length != "bald" or person.hat != "none":
            assert "bald" not in caption


def test_view_named_is_the_view(people: list[Person]) -> None:
    phrases = {"front": "towards the camera", "back": "from behind", "side": "from the side"}
    found = {(view, said) for _, view, caption in captions(people) for said in VIEWS if phrases[said] in caption}
    assert found == {("front", "front"), ("back", "back"), ("side", "side")}


def test_captions_average_about_23_words_and_vary(people: list[Person]) -> None:
    lengths = [len(caption.split()) for *_, caption in captions(people)]
    assert 20 <= np.mean(lengths) <= 27
    assert min(lengths) < 14
    assert max(lengths) > 30
    assert max(lengths) <= 60


def test_describe_same_generator_state_gives_the_same_caption(people: list[Person]) -> None:
    texts = [describe(np.random.default_rng(5), people[0], "front") for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("orange coat", "an orange coat"), ("red coat", "a red coat"), ("blue jeans", "blue jeans")],
)
def test_article_known_phrases_match(phrase: str, expected: str) -> None:
    assert article(phrase) == expected
