"""Left and right in captions of mirrored pictures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptreid.data.captions import has_sides, mirror_caption


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a bag in his left hand", "a bag in his right hand"),
        ("Right arm bent. LEFT leg up.", "Left arm bent. RIGHT leg up."),
        ("from left to right", "from right to left"),
        ("a left-handed man, on the righthand side", "a right-handed man, on the lefthand side"),
        ("looks leftwards, leftmost of two", "looks rightwards, rightmost of two"),
        ("the left, then", "the right, then"),
    ],
)
def test_mirror_caption_exchanges_sides_and_back(caption: str, mirrored: str) -> None:
    assert mirror_caption(caption) == mirrored
    assert mirror_caption(mirrored) == caption
    assert has_sides(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a bright upright coat",
        "leftover cloth",
        "he is right behind a car",
        "right now",
        "she left the shop",
        "left open",
        "",
        "copyright",
    ],
)
def test_mirror_caption_leaves_what_names_no_side(caption: str) -> None:
    assert mirror_caption(caption) == caption
    assert not has_sides(caption)


@given(st.lists(st.sampled_from(["left", "right", "Left", "RIGHT", "bag", "the", "bright", ",", "hand", "-"])))
def test_mirror_caption_twice_is_the_caption(words: list[str]) -> None:
    caption = " ".join(words)
    if not any(phrase in caption.lower() for phrase in ("left the", "right the")):
        assert mirror_caption(mirror_caption(caption)) == caption
