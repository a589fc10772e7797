"""What a caption can name must be in the picture: changing it changes pixels."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from promptreid.synthetic.figure import draw_figure
from promptreid.synthetic.pen import GARMENT_COLOURS, HAIR_COLOURS, SKIN_TONES
from promptreid.synthetic.person import (
    BAGS,
    BUILDS,
    GENDERS,
    GLASSES,
    HATS,
    LOWER_KINDS,
    PATTERNS,
    SHOE_COLOURS,
    SHOE_KINDS,
    UPPER_KINDS,
    Person,
    as_seen,
)

VIEWS = ("front", "back", "side")
BASE = Person(
    gender="woman", age="adult", build="average", skin="light", hair_colour="brown", hair_length="long",
    upper_kind="jacket", upper_colour="red", upper_pattern="striped", pattern_colour="white", inner_colour="green",
    lower_kind="trousers", lower_colour="blue", shoe_kind="shoes", shoe_colour="black", bag="handbag",
    bag_colour="green", hat="cap", hat_colour="yellow", glasses="glasses",
)  # fmt: skip
TALL, WIDE = 260, 150


def drawn(person: Person, view: str, *, phase: float = 0.1, facing: int = 1) -> np.ndarray:
    image = Image.new("RGB", (WIDE, TALL), (200, 0, 200))
    draw_figure(image, person, view=view, facing=facing, phase=phase, foot=(WIDE / 2, 250), tall=240)
    return np.asarray(image)


@pytest.mark.parametrize("hair_length", ["long", "short"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("gender", GENDERS),
        ("age", ("child", "adult", "elderly")),
        ("build", BUILDS),
        ("skin", tuple(SKIN_TONES)),
        ("hair_colour", tuple(HAIR_COLOURS)),
        ("hair_length", ("bald", "short", "shoulder length", "long")),
        ("upper_kind", UPPER_KINDS),
        ("upper_colour", tuple(GARMENT_COLOURS)),
        ("upper_pattern", PATTERNS),
        ("pattern_colour", tuple(GARMENT_COLOURS)),
        ("inner_colour", tuple(GARMENT_COLOURS)),
        ("lower_kind", LOWER_KINDS),
        ("lower_colour", tuple(GARMENT_COLOURS)),
        ("shoe_kind", SHOE_KINDS),
        ("shoe_colour", SHOE_COLOURS),
        ("bag", BAGS),
        ("bag_colour", tuple(GARMENT_COLOURS)),
        ("hat", HATS),
        ("hat_colour", tuple(GARMENT_COLOURS)),
        ("glasses", GLASSES),
    ],
)
def test_attribute_changed_gives_another_picture_where_captions_tell_it_apart(
    view: str, hair_length: str, attribute: str, values: tuple
) -> None:
    base = replace(BASE, hair_length=hair_length)
    plain = {"pattern_colour": "none"}
    persons = [replace(base, **{attribute: value} | (plain if value == "plain" else {})) for value in values]
    for one, other in combinations(persons, 2):
        if as_seen(one, view) != as_seen(other, view):
            changed = (drawn(one, view) != drawn(other, view)).any(axis=-1).sum()
            assert changed >= 8, (one, other)


@pytest.mark.parametrize(("view", "visible"), [("front", True), ("side", True), ("back", False)])
def test_glasses_show_except_from_behind(view: str, visible: bool) -> None:
    with_glasses, without = drawn(BASE, view), drawn(replace(BASE, glasses="none"), view)
    assert bool((with_glasses != without).any()) is visible


@pytest.mark.parametrize("view", VIEWS)
def test_torso_and_thighs_have_the_garments_colours(view: str) -> None:
    picture = drawn(replace(BASE, upper_kind="t-shirt", upper_pattern="plain", inner_colour="none", bag="none",
                            hair_length="short"), view, phase=0.0)  # fmt: skip
    # The figure spans rows 10 to 250: chest at 24 % and thigh at 57 % of it, beside the arm and beside the middle.
    assert np.abs(picture[10 + int(240 * 0.24), WIDE // 2 - 11].astype(int) - GARMENT_COLOURS["red"]).max() <= 2
    assert np.abs(picture[10 + int(240 * 0.57), WIDE // 2 + 9].astype(int) - GARMENT_COLOURS["blue"]).max() <= 2


def test_draw_figure_walking_moves_legs_and_facing_mirrors_them() -> None:
    still, stepping = drawn(BASE, "side", phase=0.0), drawn(BASE, "side", phase=0.25)
    legs = slice(180, 245)
    assert (still[legs] != stepping[legs]).any(axis=-1).mean() > 0.05
    person = replace(BASE, bag="none")
    right, left = drawn(person, "side", facing=1), drawn(person, "side", facing=-1)
    assert (right != left[:, ::-1]).any(axis=-1).mean() < 0.02  # but for rounding
    assert (right != left).any(axis=-1).mean() > 0.02


def test_draw_figure_child_is_smaller_and_heavy_is_broader() -> None:
    def extent(person: Person) -> tuple[int, int]:
        rows, columns = np.nonzero((drawn(replace(person, bag="none"), "front") != (200, 0, 200)).any(axis=-1))
        return int(np.ptp(rows)), int(np.ptp(columns[rows < 200]))

    adult, child, heavy = (extent(replace(BASE, **change)) for change in ({}, {"age": "child"}, {"build": "heavy"}))
    assert child[0] < 0.85 * adult[0]
    assert heavy[1] > 1.15 * adult[1]
