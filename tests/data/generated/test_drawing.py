"""What a caption can name must be in the picture: changing it changes pixels."""

from dataclasses import replace
from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from promptreid.data.generated.camera import CAMERAS, IMAGE_SIZE, photograph
from promptreid.data.generated.captions import as_seen
from promptreid.data.generated.drawing import Figure, draw_figure
from promptreid.data.generated.person import (
    GARMENT_COLOURS,
    HAIR_COLOURS,
    HATS,
    LOWER_KINDS,
    PATTERNS,
    UPPER_KINDS,
    Person,
)

VIEWS = ("front", "back", "side")
BASE = Person(
    gender="woman", build="average", skin="light", hair_colour="brown", hair_length="long", upper_kind="t-shirt",
    upper_colour="red", upper_pattern="striped", pattern_colour="white", lower_kind="trousers", lower_colour="blue",
    shoe_colour="black", bag="handbag", bag_colour="green", hat="cap", hat_colour="yellow", glasses=True,
)  # fmt: skip


def drawn(person: Person, view: str, stride: float = 0.4) -> np.ndarray:
    height, width = IMAGE_SIZE
    image = Image.new("RGB", (width, height), (200, 0, 200))
    draw_figure(image, person, Figure(width / 2, 8, height * 0.9, view, stride))
    return np.asarray(image)


@pytest.mark.parametrize("hair_length", ["long", "short"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("build", ("slim", "average", "heavy")),
        ("hair_colour", tuple(HAIR_COLOURS)),
        ("hair_length", ("long", "short", "bald")),
        ("upper_kind", UPPER_KINDS),
        ("upper_colour", tuple(GARMENT_COLOURS)),
        ("upper_pattern", PATTERNS[:4]),
        ("pattern_colour", tuple(GARMENT_COLOURS)),
        ("lower_kind", LOWER_KINDS),
        ("lower_colour", tuple(GARMENT_COLOURS)),
        ("shoe_colour", ("black", "white", "brown", "red", "grey")),
        ("bag", ("none", "backpack", "handbag", "shoulder bag")),
        ("bag_colour", tuple(GARMENT_COLOURS)),
        ("hat", tuple(dict.fromkeys(HATS))),
        ("hat_colour", tuple(GARMENT_COLOURS)),
    ],
)
def test_attribute_changed_gives_another_picture_unless_captions_call_it_the_same(
    view: str, hair_length: str, attribute: str, values: tuple
) -> None:
    base = replace(BASE, hair_length=hair_length)
    for one, other in combinations([replace(base, **{attribute: value}) for value in values], 2):
        if as_seen(one, view) != as_seen(other, view):
            changed = (drawn(one, view) != drawn(other, view)).any(axis=-1).sum()
            assert changed >= 4, (one, other)


@pytest.mark.parametrize(("view", "visible"), [("front", True), ("side", True), ("back", False)])
def test_glasses_show_except_from_behind(view: str, visible: bool) -> None:
    with_glasses, without = drawn(BASE, view), drawn(replace(BASE, glasses=False), view)
    assert bool((with_glasses != without).any()) is visible


@pytest.mark.parametrize("view", VIEWS)
def test_torso_and_thighs_have_the_garments_colours(view: str) -> None:
    picture = drawn(replace(BASE, upper_pattern="plain", bag="none"), view, stride=0.0)
    height, width = IMAGE_SIZE
    # The figure spans rows 8 to 8 + 0.9 * 144; chest at 35 % and a thigh at 60 % of it, a little off the middle.
    chest = picture[8 + int(height * 0.9 * 0.35), width // 2 + 3]
    thigh = picture[8 + int(height * 0.9 * 0.60), width // 2 + 6]
    assert np.abs(chest.astype(int) - GARMENT_COLOURS["red"]).max() <= 2
    assert np.abs(thigh.astype(int) - GARMENT_COLOURS["blue"]).max() <= 2


def test_photograph_same_generator_state_gives_the_same_bytes() -> None:
    shots = [photograph(np.random.default_rng(2), BASE, CAMERAS[0], "front") for _ in range(2)]
    assert shots[0] == shots[1]


def test_photograph_two_cameras_differ_in_colour_cast() -> None:
    shades = []
    for camera in (CAMERAS[0], CAMERAS[1]):  # bluish, yellowish
        pixels = [_pixels(photograph(np.random.default_rng(seed), BASE, camera, "side")) for seed in range(8)]
        mean = np.mean(pixels, axis=(0, 1, 2))
        shades.append(mean[2] - mean[0])
    assert shades[0] > shades[1] + 20


def _pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(jpeg)), dtype=float)
