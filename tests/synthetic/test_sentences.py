"""Captions say what is true of the picture: read back by tables of the tests' own and held against the scene."""

from dataclasses import asdict, replace

import numpy as np
import open_clip
import pytest

from promptreid.synthetic.scenes import Scene
from promptreid.synthetic.sentences import MISTAKE_RATE, Caption, describe

from .caption_reader import LEFT_OVER, read_caption


@pytest.fixture(scope="module")
def pairs(scenes: list[Scene]) -> list[tuple[Scene, Caption]]:
    return [(scene, describe(np.random.default_rng([3, index]), scene)) for index, scene in enumerate(scenes * 4)]


def test_describe_every_attribute_word_is_true_unless_marked_as_a_mistake(
    pairs: list[tuple[Scene, Caption]],
) -> None:
    checked = 0
    for scene, caption in pairs:
        seen, (said, _) = asdict(scene.seen), read_caption(caption.text)
        for name, value in said.items():
            assert (seen[name] == value) != (name in caption.mistakes), (name, caption, seen)
            checked += 1
    assert checked > 20_000  # about 9 words a caption


def test_describe_said_is_all_that_the_words_say(pairs: list[tuple[Scene, Caption]]) -> None:
    for _, caption in pairs:
        said, rest = read_caption(caption.text)
        assert said == caption.said, caption
        assert LEFT_OVER.search(rest) is None, (rest, caption)


def test_describe_mistakes_are_few_and_one_a_caption(pairs: list[tuple[Scene, Caption]]) -> None:
    share = np.mean([bool(caption.mistakes) for _, caption in pairs])
    assert 0.4 * MISTAKE_RATE < share <= 1.2 * MISTAKE_RATE  # a mistake in something left out does not show
    assert max(len(caption.mistakes) for _, caption in pairs) == 1


def test_describe_hidden_things_are_never_named(pairs: list[tuple[Scene, Caption]]) -> None:
    hidden = {"feet": 0, "glasses": 0, "logo": 0, "inner": 0, "backpack": 0}
    for scene, caption in pairs:
        said, person = caption.said, scene.person
        if scene.occluder in ("bench", "bush"):
            hidden["feet"] += 1
            assert "shoe_colour" not in said
        if person.glasses != "none" and (scene.view == "back" or not scene.sharp):
            hidden["glasses"] += 1
            assert "glasses" not in said
        if scene.view != "front":
            hidden["logo"] += person.upper_pattern == "printed"
            hidden["inner"] += person.inner_colour != "none"
            assert said.get("upper_pattern") != "printed"
            assert "inner_colour" not in said
        if scene.view == "front" and person.bag == "backpack":
            hidden["backpack"] += 1
            assert "bag" not in said
        if scene.view == "back" and "hat" in said:
            assert said["hat"] == "hat"
    assert min(hidden.values()) >= 20


def test_describe_view_named_is_the_view(pairs: list[tuple[Scene, Caption]]) -> None:
    phrases = {
        "front": ("towards the camera", "facing the camera", "from the front"),
        "back": ("from behind", "away"),
        "side": ("from the side", "past", "in profile"),
    }
    named = 0
    for scene, caption in pairs:
        for view, words in phrases.items():
            if any(word in caption.text.lower() for word in words):
                assert view == scene.view, caption
                named += 1
    assert named > 400


def test_describe_lengths_average_about_23_words_and_reach_60_tokens(pairs: list[tuple[Scene, Caption]]) -> None:
    texts = [caption.text for _, caption in pairs]
    words = np.array([len(text.split()) for text in texts])
    tokens = (open_clip.SimpleTokenizer()(texts).argmax(-1) - 1).numpy()
    assert 21 <= words.mean() <= 25
    assert words.min() <= 12
    assert 55 <= tokens.max() <= 60


def test_describe_leaves_out_and_varies_order(scenes: list[Scene]) -> None:
    texts = [describe(np.random.default_rng([4, index]), scenes[0]) for index in range(60)]
    assert len({caption.text for caption in texts}) > 55
    assert len({frozenset(caption.said) for caption in texts}) > 10
    first = [text.text.lower().find("trousers") for text in texts]
    assert len(set(first)) > 5 or scenes[0].person.lower_kind != "trousers"


def test_describe_same_generator_state_gives_the_same_caption(scenes: list[Scene]) -> None:
    assert describe(np.random.default_rng(5), scenes[0]) == describe(np.random.default_rng(5), scenes[0])


def test_reader_finds_a_lie(scenes: list[Scene]) -> None:
    """The check of truth can fail: a caption of another person's coat does not pass."""
    scene = scenes[0]
    other = "green" if scene.person.upper_colour != "green" else "red"
    lie = describe(np.random.default_rng(5), replace(scene, person=replace(scene.person, upper_colour=other)))
    said, _ = read_caption(lie.text)
    assert said["upper_colour"] == other != scene.seen.upper_colour
