"""The base's own domain: square pictures, captions of three words to the full context."""

import re

import numpy as np
import open_clip
import pytest

from promptreid.data.generated.captions import lower_phrase, upper_phrase, visible_details
from promptreid.data.generated.person import Person
from promptreid.data.generated.web import WEB_SIZE, draw_web_pair


@pytest.fixture(scope="module")
def pairs() -> list:
    return [draw_web_pair(np.random.default_rng([0, index])) for index in range(2000)]


def test_draw_web_pair_gives_square_pictures_that_are_not_blank(pairs: list) -> None:
    for image, _ in pairs[:300]:
        assert image.size == (WEB_SIZE, WEB_SIZE)
        assert np.asarray(image).std() > 3


def test_draw_web_pair_same_seed_is_identical() -> None:
    (first, said), (second, again) = (draw_web_pair(np.random.default_rng([4, 2])) for _ in range(2))
    assert (first.tobytes(), said) == (second.tobytes(), again)


def test_web_captions_reach_every_text_position_and_are_mostly_short(pairs: list) -> None:
    lengths = (open_clip.SimpleTokenizer()([caption for _, caption in pairs]).argmax(-1) + 1).numpy()
    assert lengths.min() <= 6
    assert lengths.max() == 77
    assert np.median(lengths) < 20


def test_web_captions_hold_every_word_for_garments_bags_and_hair(pairs: list, people: list[Person]) -> None:
    random = np.random.default_rng(1)
    known = {word for _, caption in pairs for word in re.findall(r"[a-z-]+", caption)}
    phrases = [
        phrase
        for person in people
        for view in ("front", "back", "side")
        for phrase in (
            upper_phrase(random, person),
            lower_phrase(random, person),
            *visible_details(random, person, view),
        )
    ]
    assert {word for phrase in phrases for word in re.findall(r"[a-z-]+", phrase)} <= known
