"""The base's pretraining world: square images, captions of 2 to 60 tokens, every word of the annotators among them."""

import re
from collections import Counter

import numpy as np
import open_clip
import pytest
from web_world import PLAIN_WORLD, VARIED_WORLD, WEB_SIZE, draw_web_pair, web_caption

from promptreid.synthetic.person import Person, as_seen
from promptreid.synthetic.scenes import Scene
from promptreid.synthetic.sentences import article, count_tokens, describe, join, web_description

from .caption_reader import read_caption


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def pairs() -> list:
    worlds = (PLAIN_WORLD, VARIED_WORLD)
    return [draw_web_pair(np.random.default_rng([0, index]), worlds[index % 2]) for index in range(3000)]


def test_draw_web_pair_gives_square_pictures_that_are_not_blank(pairs: list) -> None:
    for image, _ in pairs[:300]:
        assert image.size == (WEB_SIZE, WEB_SIZE)
        assert np.asarray(image).std() > 2


@pytest.mark.parametrize("world", [PLAIN_WORLD, VARIED_WORLD])
def test_draw_web_pair_same_seed_is_identical(world: object) -> None:
    (first, said), (second, again) = (draw_web_pair(np.random.default_rng([4, 2]), world) for _ in range(2))
    assert (first.tobytes(), said) == (second.tobytes(), again)


def test_web_captions_have_2_to_60_tokens_and_long_ones_are_rarer(pairs: list) -> None:
    lengths = (open_clip.SimpleTokenizer()([caption for _, caption in pairs]).argmax(-1) - 1).numpy()
    assert lengths.min() >= 2
    assert np.mean(lengths <= 3) > 0.02
    assert 58 <= lengths.max() <= 60
    counts = [np.mean((lengths > low) & (lengths <= low + 20)) for low in (0, 20, 40)]
    assert counts[0] > counts[1] > counts[2] > 0.02


def test_web_captions_hold_every_word_of_the_annotators(pairs: list, scenes: list[Scene]) -> None:
    known = Counter(word for _, caption in pairs for word in words_of(caption))
    asked = {word for index, scene in enumerate(scenes * 2) for word in
             words_of(describe(np.random.default_rng([2, index]), scene).text)}  # fmt: skip
    assert len(asked) > 120
    assert {word for word in asked if known[word] < 5} == set()


def test_web_captions_of_persons_are_true(people: list[Person]) -> None:
    for index, person in enumerate(people):
        seen = as_seen(person, "front")
        for brevity in (0.6, 1.5):
            caption = web_caption(np.random.default_rng(index), seen, "front", brevity)
            # Only captions of one list can be read back; longer ones say things again in other words.
            if "." not in caption and count_tokens(caption) < 25:
                said, _ = read_caption(caption)
                assert {name: getattr(seen, name) for name in said} == said, caption


def test_web_description_names_at_least_three_things_truly(people: list[Person]) -> None:
    for index, person in enumerate(people):
        seen = as_seen(person, "back")
        said, _ = read_caption(web_description(np.random.default_rng(index), seen, "back"))
        assert len(said) >= 3
        assert {name: getattr(seen, name) for name in said} == said


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("orange coat", "an orange coat"),
        ("red coat", "a red coat"),
        ("blue jeans", "blue jeans"),
        ("red coat with white stripes", "a red coat with white stripes"),
        ("long black hair", "long black hair"),
        ("overcoat over a red shirt", "an overcoat over a red shirt"),
    ],
)
def test_article_known_phrases_match(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_join_known_lists_match() -> None:
    assert join(["a"]) == "a"
    assert join(["a", "b"]) == "a and b"
    assert join(["a", "b", "c"]) == "a, b and c"


def test_count_tokens_is_what_clips_tokenizer_makes(pairs: list, scenes: list[Scene]) -> None:
    texts = [caption for _, caption in pairs[:500]]
    texts += [describe(np.random.default_rng([2, index]), scene).text for index, scene in enumerate(scenes[:300])]
    ours = [count_tokens(text) for text in texts]
    assert ours == (open_clip.SimpleTokenizer()(texts).argmax(-1) - 1).tolist()
