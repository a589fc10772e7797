"""Draws a person of the street: a skeleton in a walking pose, clothes over it, head, hair, hat and bag."""

import math
from dataclasses import dataclass

from PIL import Image

from promptreid.synthetic.pen import GARMENT_COLOURS, HAIR_COLOURS, SKIN_TONES, Colour, Pen, Point, shade
from promptreid.synthetic.person import NONE, Person

_HALF_WIDTHS = {"slim": 0.088, "average": 0.112, "heavy": 0.152}


@dataclass(frozen=True)
class Limb:
    """Shoulder, elbow and hand, or hip, knee and ankle."""

    root: Point
    joint: Point
    end: Point

    @property
    def points(self) -> tuple[Point, Point, Point]:
        """From the body outwards."""
        return self.root, self.joint, self.end


@dataclass(frozen=True)
class Skeleton:
    """Joints in shares of the body's height; limbs in drawing order, the far or left one first.

    `head` is its centre and `head_size` its half-axes, `neck` its base, `pelvis` the middle of the hips; `shoulders`
    and `hips` are half the width there.
    """

    head: Point
    head_size: Point
    neck: Point
    pelvis: Point
    shoulders: float
    hips: float
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]


def pose(person: Person, view: str, facing: int, phase: float) -> Skeleton:
    """The skeleton of `person` at `phase` (0 to 1) of the walking cycle; `facing` counts from the side only."""
    half = _HALF_WIDTHS[person.build] * (1.1 if person.age == "child" else 1.0)
    side = view == "side"
    shoulders = half * (1.12 if person.gender == "man" else 0.92) * (0.62 if side else 1.0)
    hips = half * (0.82 if person.gender == "man" else 1.02) * (0.66 if side else 1.0)
    head_height = 0.185 if person.age == "child" else 0.128
    bent = person.age == "elderly"  # old people stoop
    lean = 0.075 * facing if bent and side else 0.0
    drop = 0.03 if bent else 0.0
    neck = (lean, head_height + 0.02 + drop)
    pelvis = (0.0, 0.54 if person.age == "child" else 0.51)
    arms = [_arm(sign, neck, shoulders, phase, facing if side else 0) for sign in (-1, 1)]
    legs = [_leg(sign, pelvis, hips, phase, facing if side else 0) for sign in (-1, 1)]
    return Skeleton(
        head=(lean * 1.35, head_height / 2 + drop),
        head_size=(head_height * 0.40, head_height * 0.5),
        neck=neck,
        pelvis=pelvis,
        shoulders=shoulders,
        hips=hips,
        arms=(arms[0], arms[1]),
        legs=(legs[0], legs[1]),
    )


def _turn(start: Point, length: float, angle: float, facing: int) -> Point:
    """The point `length` below `start`, swung forwards by `angle`."""
    return start[0] + facing * length * math.sin(angle), start[1] + length * math.cos(angle)


def _arm(sign: int, neck: Point, shoulders: float, phase: float, facing: int) -> Limb:
    swing = -sign * math.sin(2 * math.pi * phase)
    if facing:
        root = (neck[0], neck[1] + 0.03)
        elbow = _turn(root, 0.165, 0.5 * swing, facing)
        return Limb(root, elbow, _turn(elbow, 0.15, 0.5 * swing + 0.3, facing))
    root = (neck[0] + sign * shoulders * 0.9, neck[1] + 0.03)
    elbow = (root[0] + sign * 0.03, root[1] + 0.16)
    return Limb(root, elbow, (elbow[0] + sign * 0.012, elbow[1] + 0.15 * (1 - 0.25 * max(0.0, swing))))


def _leg(sign: int, pelvis: Point, hips: float, phase: float, facing: int) -> Limb:
    angle = 2 * math.pi * phase
    swing, length = sign * math.sin(angle), (0.95 - pelvis[1]) / 2
    if facing:
        knee = _turn(pelvis, length, 0.42 * swing, facing)
        bend = 0.08 + 0.55 * max(0.0, sign * math.cos(angle))  # the leg that comes forward is bent
        return Limb(pelvis, knee, _turn(knee, length, 0.42 * swing - bend, facing))
    root = (pelvis[0] + sign * hips * 0.52, pelvis[1])
    shorter = 1 - 0.1 * max(0.0, swing)  # the foot that is farther away
    knee = (root[0] + sign * 0.006, root[1] + length)
    return Limb(root, knee, (knee[0], knee[1] + length * shorter))


BARE_ARMED = ("t-shirt", "tank top")


@dataclass(frozen=True)
class Figure:
    """A person in a pose; `facing` is 1 towards the right edge and -1 towards the left one."""

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
    """Draw what distinguishes the kinds of garment from every side: hood, collar, bands."""
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


_INK: Colour = (24, 22, 26)


def draw_head(pen: Pen, figure: Figure) -> None:
    """Draw neck, hair, face, glasses and hat."""
    person, bones = figure.person, figure.bones
    (x, y), (half, tall) = bones.head, bones.head_size
    skin = SKIN_TONES[person.skin]
    turn = half * 0.25 * figure.facing if figure.view == "side" else 0.0
    if figure.view != "back":
        _draw_falling_hair(pen, figure, x - turn * 2.2)
    pen.limb((bones.neck, bones.head), half * 0.85, shade(skin, 0.85))
    pen.oval((x, y), (half, tall), skin)
    if person.hair_length != "bald":
        hair = HAIR_COLOURS[person.hair_colour]
        if figure.view == "back":
            pen.oval((x, y - tall * 0.08), (half * 1.08, tall * 0.95), hair)
            _draw_falling_hair(pen, figure, x)
        else:
            pen.dome((x - turn, y - tall * 0.1), (half * 1.12, tall * 0.98), hair)
    if figure.view == "side":
        pen.oval((x + half * 0.98 * figure.facing, y + tall * 0.15), (half * 0.2, tall * 0.16), skin)  # nose
    if figure.view != "back":
        _draw_face(pen, figure, turn * 2)
    _draw_hat(pen, figure)


def _draw_falling_hair(pen: Pen, figure: Figure, x: float) -> None:
    reach = {"shoulder length": 1.35, "long": 2.3}.get(figure.person.hair_length)
    if reach is not None:
        (_, y), (half, tall) = figure.bones.head, figure.bones.head_size
        wide = half * (0.85 if figure.view == "side" else 1.25)
        hair = HAIR_COLOURS[figure.person.hair_colour]
        pen.box((x - wide, y - tall * 0.5), (x + wide, y + tall * reach), shade(hair, 0.9), radius=half * 0.5)


def _draw_face(pen: Pen, figure: Figure, turn: float) -> None:
    (x, y), (half, tall) = figure.bones.head, figure.bones.head_size
    kind, eyes = figure.person.glasses, y + tall * 0.02
    for side in (-1, 1):
        place = (x + turn + side * half * 0.42, eyes)
        if kind == NONE:
            pen.oval(place, (half * 0.1, tall * 0.07), (40, 30, 30))
        elif kind == "sunglasses":
            pen.oval(place, (half * 0.4, tall * 0.2), _INK)
        else:
            pen.oval(place, (half * 0.38, tall * 0.2), (225, 232, 240), outline=_INK)
    if kind != NONE:
        pen.line(
            [(x + turn - half * 0.9, eyes - tall * 0.05), (x + turn + half * 0.9, eyes - tall * 0.05)], 0.005, _INK
        )
    pen.line(
        [(x + turn - half * 0.25, y + tall * 0.55), (x + turn + half * 0.25, y + tall * 0.55)], 0.006, (120, 50, 50)
    )


def _draw_hat(pen: Pen, figure: Figure) -> None:
    person, (x, y), (half, tall) = figure.person, figure.bones.head, figure.bones.head_size
    if person.hat == NONE:
        return
    colour, brim = GARMENT_COLOURS[person.hat_colour], y - tall * 0.3
    pen.dome((x, brim), (half * 1.2, tall * 0.85), colour)
    if person.hat == "cap":
        reach = {"front": 0.0, "side": half * 1.25 * figure.facing}.get(figure.view)
        if reach is not None:
            pen.oval((x + reach, brim + tall * 0.06), (half * 1.05, tall * 0.13), shade(colour, 0.75))
    if person.hat == "hat":
        pen.oval((x, brim), (half * 2.1, tall * 0.16), shade(colour, 0.85))
    if person.hat == "beanie":
        pen.box((x - half * 1.2, brim - tall * 0.12), (x + half * 1.2, brim + tall * 0.16), shade(colour, 0.7))


def draw_backpack(pen: Pen, figure: Figure) -> None:
    """Draw a backpack as it shows from this side; from the front only its straps."""
    if figure.person.bag != "backpack":
        return
    bones, colour = figure.bones, GARMENT_COLOURS[figure.person.bag_colour]
    (x, top), half = bones.neck, bones.shoulders
    if figure.view == "front":
        for side in (-1, 1):
            pen.line([(x + side * half * 0.6, top + 0.01), (x + side * half * 0.62, top + 0.2)], 0.025, colour)
        return
    wide, shift = half * 0.78, 0.0
    if figure.view == "side":
        wide, shift = 0.05, -(half + 0.035) * figure.facing
    pen.box((x + shift - wide, top + 0.035), (x + shift + wide, top + 0.29), colour, radius=0.03)
    pen.box(
        (x + shift - wide * 0.8, top + 0.17), (x + shift + wide * 0.8, top + 0.27), shade(colour, 0.75), radius=0.02
    )


def draw_carried_bag(pen: Pen, figure: Figure) -> None:
    """Draw a handbag in the hand or a shoulder bag at the hip."""
    person, bones = figure.person, figure.bones
    if person.bag not in ("handbag", "shoulder bag"):
        return
    colour = GARMENT_COLOURS[person.bag_colour]
    if person.bag == "handbag":
        x, y = bones.arms[1].end
        pen.line([(x - 0.035, y + 0.06), (x, y), (x + 0.035, y + 0.06)], 0.01, shade(colour, 0.6))
        pen.box((x - 0.058, y + 0.055), (x + 0.058, y + 0.145), colour, radius=0.012)
        pen.line([(x - 0.05, y + 0.08), (x + 0.05, y + 0.08)], 0.006, shade(colour, 0.6))
        return
    x, y = -bones.hips * 1.05, bones.pelvis[1] - 0.03
    pen.line([(bones.neck[0] + bones.shoulders * 0.6, bones.neck[1] + 0.01), (x, y)], 0.02, colour)
    pen.box((x - 0.055, y - 0.01), (x + 0.06, y + 0.095), colour, radius=0.012)
    pen.line([(x - 0.05, y + 0.03), (x + 0.055, y + 0.03)], 0.008, shade(colour, 0.6))


_SHADOW = (60, 58, 56)
HEIGHTS = {"child": 0.74, "adult": 1.0, "elderly": 0.95}


def draw_figure(
    image: Image.Image, person: Person, *, view: str, facing: int, phase: float, foot: tuple[float, float], tall: float
) -> None:
    """Draw `person` onto `image`, standing at `foot` (in pixels), `tall` pixels high if grown up, as in a `Scene`."""
    height = tall * HEIGHTS[person.age]
    pen = Pen(image, centre=foot[0], top=foot[1] - height, height=height)
    figure = Figure(person, view, facing, pose(person, view, facing, phase))
    side = view == "side"
    pen.oval((0.0, 1.0), (0.15, 0.016), _SHADOW)
    if side:
        draw_arm(pen, figure, figure.bones.arms[0], far=True)
    if view == "front":
        draw_backpack(pen, figure)
    for limb, far in zip(figure.bones.legs, (side, False), strict=True):
        draw_leg(pen, figure, limb, far=far)
    draw_skirt(pen, figure)
    if not side:
        draw_arm(pen, figure, figure.bones.arms[0], far=False)
        draw_arm(pen, figure, figure.bones.arms[1], far=False)
    draw_upper(pen, figure)
    draw_backpack(pen, figure)
    draw_head(pen, figure)
    if side:
        draw_arm(pen, figure, figure.bones.arms[1], far=False)
    draw_carried_bag(pen, figure)
