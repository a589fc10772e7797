"""Draws heads, hair, hats, glasses and bags of people in the street."""

from promptreid.synthetic.clothing import Figure
from promptreid.synthetic.palette import GARMENT_COLOURS, HAIR_COLOURS, SKIN_TONES, Colour, shade
from promptreid.synthetic.pen import Pen
from promptreid.synthetic.person import NONE

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
