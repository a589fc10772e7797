"""Draws what people in the street wear, over a skeleton."""

from dataclasses import dataclass

from promptreid.synthetic.palette import GARMENT_COLOURS, SKIN_TONES, shade
from promptreid.synthetic.pen import Pen, Point
from promptreid.synthetic.person import NONE, Person
from promptreid.synthetic.skeleton import Limb, Skeleton

BARE_ARMED = ("t-shirt", "tank top")


@dataclass(frozen=True)
class Figure:
    """A person in a pose.

    Attributes:
        person: Who it is.
        view: `"front"`, `"back"` or `"side"`.
        facing: 1 towards the right edge, -1 towards the left one.
        bones: The pose.
    """

    person: Person
    view: str
    facing: int
    bones: Skeleton


def draw_leg(pen: Pen, figure: Figure, leg: Limb, *, far: bool) -> None:
    """Draw one leg with its trouser leg and shoe."""
    person, light = figure.person, 0.8 if far else 1.0
    skin = shade(SKIN_TONES[person.skin], light)
    cloth = shade(GARMENT_COLOURS[person.lower_colour], light)
    width = {"slim": 0.062, "average": 0.074, "heavy": 0.098}[person.build]
    kind = person.lower_kind
    if kind in ("shorts", "skirt"):
        pen.limb(leg.points, width * 0.72, skin)
        if kind == "shorts":
            pen.limb((leg.root, _between(leg.root, leg.joint, 0.75)), width * 1.35, cloth)
    else:
        pen.limb(leg.points, width * {"leggings": 0.72, "jeans": 1.0}.get(kind, 1.3), cloth)
    if kind == "jeans":
        pen.limb((_between(leg.joint, leg.end, 0.86), leg.end), width * 1.08, shade(cloth, 1.7))  # turned up
        pen.line((leg.root, leg.joint), 0.006, shade(cloth, 1.45))
    _draw_shoe(pen, figure, leg, light)


def _draw_shoe(pen: Pen, figure: Figure, leg: Limb, light: float) -> None:
    person = figure.person
    colour, (x, y) = shade(GARMENT_COLOURS[person.shoe_colour], light), leg.end
    toe = 0.03 * figure.facing if figure.view == "side" else 0.0
    size = (0.052 if figure.view == "side" else 0.038, 0.024)
    if person.shoe_kind == "boots":
        pen.limb((_between(leg.joint, leg.end, 0.55), leg.end), 0.066, colour)
    if person.shoe_kind == "sneakers":
        pen.oval((x + toe, y + 0.034), (size[0] * 1.05, size[1]), (236, 236, 232))
    pen.oval((x + toe, y + 0.025), size, colour)
    if person.shoe_kind == "sandals":
        pen.box((x + toe - size[0] * 0.35, y + 0.006), (x + toe + size[0] * 0.35, y + 0.028), SKIN_TONES[person.skin])


def draw_skirt(pen: Pen, figure: Figure) -> None:
    """Draw the skirt, if that is what is worn."""
    if figure.person.lower_kind != "skirt":
        return
    (x, y), hips = figure.bones.pelvis, figure.bones.hips
    low, flare = y + 0.19, hips * (1.9 if figure.view == "side" else 1.45)
    cloth = GARMENT_COLOURS[figure.person.lower_colour]
    pen.shape([(x - hips, y - 0.04), (x + hips, y - 0.04), (x + flare, low), (x - flare, low)], cloth)
    pen.line([(x, y), (x + flare * 0.4, low)], 0.008, shade(cloth, 0.8))


def draw_arm(pen: Pen, figure: Figure, arm: Limb, *, far: bool) -> None:
    """Draw one arm with its sleeve and hand."""
    person, light = figure.person, 0.78 if far else 0.94
    skin, cloth = shade(SKIN_TONES[person.skin], light), shade(GARMENT_COLOURS[person.upper_colour], light)
    width = {"slim": 0.046, "average": 0.054, "heavy": 0.07}[person.build]
    if person.upper_kind in BARE_ARMED:
        pen.limb(arm.points, width * 0.8, skin)
        if person.upper_kind == "t-shirt":
            pen.limb((arm.root, _between(arm.root, arm.joint, 0.6)), width * 1.25, cloth)
    else:
        sleeve = (arm.root, arm.joint, _between(arm.joint, arm.end, 0.9))
        pen.limb(sleeve, width * (1.25 if person.upper_kind == "coat" else 1.1), cloth)
    pen.oval((arm.end[0], arm.end[1] + 0.012), (0.021, 0.028), skin)


def draw_upper(pen: Pen, figure: Figure) -> None:
    """Draw the trunk in its garment."""
    person, bones = figure.person, figure.bones
    cloth = GARMENT_COLOURS[person.upper_colour]
    (neck_x, top), (x, hip) = bones.neck, bones.pelvis
    low = hip + (0.17 if person.upper_kind == "coat" else 0.025)
    broad = bones.shoulders * (0.78 if person.upper_kind == "tank top" else 1.0)
    flare = bones.hips * (1.25 if person.upper_kind == "coat" else 1.04)
    outline: list[Point] = [
        (neck_x - broad * 0.55, top), (neck_x + broad * 0.55, top), (neck_x + broad, top + 0.035),
        (x + flare, hip), (x + flare, low), (x - flare, low), (x - flare, hip), (neck_x - broad, top + 0.035),
    ]  # fmt: skip
    pen.shape(outline, cloth)
    inset = min(broad, flare) * 0.96
    left_top, right_bottom = (neck_x / 2 - inset, top + 0.03), (neck_x / 2 + inset, low - 0.004)
    if person.upper_pattern in ("striped", "checked", "dotted"):
        pen.pattern(left_top, right_bottom, person.upper_pattern, GARMENT_COLOURS[person.pattern_colour])
    shadow = shade(cloth, 0.84)
    pen.line([(x + flare * 0.5, top + 0.2), (x + flare * 0.8, hip - 0.06)], 0.008, shadow)
    pen.line([(x - flare * 0.7, hip - 0.09), (x - flare * 0.35, hip - 0.03)], 0.008, shadow)
    _draw_cut(pen, figure, low)
    if figure.view == "front":
        _draw_front(pen, figure, low)


def _draw_cut(pen: Pen, figure: Figure, low: float) -> None:
    """What tells the kinds of garment apart from every side: hood, collar, bands."""
    kind, bones = figure.person.upper_kind, figure.bones
    cloth, (x, top), half = GARMENT_COLOURS[figure.person.upper_colour], bones.neck, bones.shoulders
    if kind == "hoodie":
        behind = figure.view == "back"
        size = (half * 0.72, 0.07) if behind else (half * 0.7, 0.035)
        pen.oval((x, top + (0.045 if behind else 0.012)), size, shade(cloth, 0.66))
    if kind == "shirt":
        pen.box((x - half * 0.45, top - 0.02), (x + half * 0.45, top + 0.012), shade(cloth, 1.3), radius=0.008)
    if kind == "sweater":
        for y, wide in ((top + 0.004, half * 0.5), (low - 0.012, bones.hips)):
            pen.line([(x - wide, y), (x + wide, y)], 0.022, shade(cloth, 0.72))
    if kind == "jacket":
        pen.line([(-bones.hips * 1.05, low - 0.012), (bones.hips * 1.05, low - 0.012)], 0.028, shade(cloth, 0.55))
    if kind == "coat":
        pen.line([(0, bones.pelvis[1]), (0, low)], 0.01, shade(cloth, 0.6))
        pen.line([(-bones.hips * 1.05, bones.pelvis[1] - 0.05), (bones.hips * 1.05, bones.pelvis[1] - 0.05)], 0.02,
                 shade(cloth, 0.6))  # fmt: skip


def _draw_front(pen: Pen, figure: Figure, low: float) -> None:
    person, bones = figure.person, figure.bones
    cloth, (x, top) = GARMENT_COLOURS[person.upper_colour], bones.neck
    if person.inner_colour != NONE:
        wide = bones.shoulders * 0.34
        inner = [(x - wide, top - 0.005), (x + wide, top - 0.005), (x + wide * 0.45, low), (x - wide * 0.45, low)]
        pen.shape(inner, GARMENT_COLOURS[person.inner_colour])
    elif person.upper_kind == "shirt":
        pen.line([(x, top), (x, low)], 0.008, shade(cloth, 0.6))
        pen.shape([(x - 0.03, top - 0.012), (x + 0.03, top - 0.012), (x, top + 0.05)], shade(cloth, 1.35))
    if person.upper_pattern == "printed":
        colour, y, wide = GARMENT_COLOURS[person.pattern_colour], top + 0.14, bones.shoulders
        places = [0.0] if person.inner_colour == NONE else [-wide * 0.68, wide * 0.68]
        size = wide * 0.45 if person.inner_colour == NONE else wide * 0.22
        for place in places:
            pen.box((x + place - size, y - 0.04), (x + place + size, y + 0.04), colour, radius=0.01)


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share
