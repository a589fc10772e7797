"""Draws a person, part by part, with Pillow."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from promptreid.data.generated.person import GARMENT_COLOURS, HAIR_COLOURS, SKIN_TONES, Colour, Person

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Figure:
    """Where a body stands and how it is proportioned, in pixels.

    Attributes:
        centre: Horizontal middle of the body.
        top: Top of the head.
        height: From head to sole.
        view: `"front"`, `"back"` or `"side"`.
        stride: Phase of the walking cycle, in [-1, 1].
        head_share: Height of the head as a share of the body's.
    """

    centre: float
    top: float
    height: float
    view: str
    stride: float
    head_share: float = 0.135


_WIDTHS = {"slim": 0.20, "average": 0.245, "heavy": 0.305}
_BARE_ARMS = ("t-shirt", "tank top")


def draw_figure(image: Image.Image, person: Person, figure: Figure) -> None:
    """Draw `person` onto `image` as `figure` stands."""
    canvas = ImageDraw.Draw(image)
    width = figure.height * _WIDTHS[person.build] * (0.72 if figure.view == "side" else 1.0)
    if figure.view == "front":
        _draw_backpack(canvas, person, figure, width, straps=False)
    _draw_legs(canvas, person, figure, width)
    _draw_arms(canvas, person, figure, width)
    _draw_upper(image, canvas, person, figure, width)
    if person.bag == "backpack" and figure.view == "front":
        _draw_straps(canvas, person, figure, width)
    if figure.view != "front":
        _draw_backpack(canvas, person, figure, width, straps=True)
    _draw_carried_bag(canvas, person, figure, width)
    _draw_head(canvas, person, figure)


def _down(figure: Figure, share: float) -> float:
    return figure.top + figure.height * share


def _shade(colour: Colour, factor: float) -> Colour:
    return (
        min(255, round(colour[0] * factor)),
        min(255, round(colour[1] * factor)),
        min(255, round(colour[2] * factor)),
    )


def _draw_legs(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, width: float) -> None:
    skin, cloth = SKIN_TONES[person.skin], GARMENT_COLOURS[person.lower_colour]
    hip, sole = _down(figure, 0.5), _down(figure, 0.97)
    leg = width * {"leggings": 0.27, "jeans": 0.36}.get(person.lower_kind, 0.4)
    spread = width * (0.25 + 0.55 * abs(figure.stride) * (figure.view == "side"))
    for side in (-1, 1):
        foot = figure.centre + side * spread
        start = figure.centre + side * width * 0.22
        covered = person.lower_kind in ("trousers", "jeans", "leggings")
        shape = [(start - leg / 2, hip), (start + leg / 2, hip), (foot + leg * 0.4, sole), (foot - leg * 0.4, sole)]
        canvas.polygon(shape, fill=_shade(cloth, 0.93 + 0.07 * side) if covered else skin)
        canvas.ellipse(
            (foot - leg * 0.6, sole - leg * 0.3, foot + leg * 0.7, sole + leg * 0.45),
            fill=GARMENT_COLOURS[person.shoe_colour],
        )
    if person.lower_kind == "shorts":
        canvas.rectangle(
            (figure.centre - width * 0.46, hip, figure.centre + width * 0.46, _down(figure, 0.68)), fill=cloth
        )
    elif person.lower_kind == "skirt":
        flare = width * 0.68
        low = _down(figure, 0.72)
        canvas.polygon(
            [
                (figure.centre - width * 0.4, hip),
                (figure.centre + width * 0.4, hip),
                (figure.centre + flare, low),
                (figure.centre - flare, low),
            ],
            fill=cloth,
        )


def _draw_arms(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, width: float) -> None:
    cloth, skin = GARMENT_COLOURS[person.upper_colour], SKIN_TONES[person.skin]
    shoulder, hand = _down(figure, 0.18), _down(figure, 0.52)
    thick = width * 0.2
    for side in (-1, 1):
        start = figure.centre + side * width * 0.48
        swing = figure.centre + side * width * 0.62 + figure.stride * side * width * 0.25
        canvas.line(
            (start, shoulder, swing, hand),
            fill=skin if person.upper_kind in _BARE_ARMS else _shade(cloth, 0.85),
            width=max(1, round(thick)),
        )
        if person.upper_kind == "t-shirt":
            canvas.line(
                (start, shoulder, (start + swing) / 2, (shoulder * 2 + hand) / 3),
                fill=cloth,
                width=max(1, round(thick * 1.2)),
            )
        canvas.ellipse((swing - thick * 0.55, hand - thick * 0.4, swing + thick * 0.55, hand + thick * 0.7), fill=skin)


def _draw_upper(image: Image.Image, canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, width: float) -> None:
    cloth = GARMENT_COLOURS[person.upper_colour]
    bottom = _down(figure, 0.66 if person.upper_kind == "coat" else 0.53)
    box = (figure.centre - width * 0.5, _down(figure, 0.155), figure.centre + width * 0.5, bottom)
    canvas.rounded_rectangle(box, radius=width * 0.16, fill=cloth)
    if person.upper_pattern != "plain":
        fill_pattern(canvas, box, person.upper_pattern, GARMENT_COLOURS[person.pattern_colour], pitch=width * 0.26)
    if person.upper_kind == "hoodie":
        canvas.ellipse(
            (figure.centre - width * 0.34, box[1] - width * 0.14, figure.centre + width * 0.34, box[1] + width * 0.22),
            fill=_shade(cloth, 0.75),
        )
    if person.upper_kind in ("jacket", "coat", "shirt") and figure.view == "front":
        canvas.line(
            (figure.centre, box[1], figure.centre, bottom), fill=_shade(cloth, 0.55), width=max(1, round(width * 0.05))
        )
    if person.upper_kind == "jacket":
        canvas.rectangle((box[0], bottom - width * 0.1, box[2], bottom), fill=_shade(cloth, 0.6))
    if person.upper_kind == "shirt":
        canvas.polygon(
            [
                (figure.centre - width * 0.2, box[1]),
                (figure.centre + width * 0.2, box[1]),
                (figure.centre, box[1] + width * 0.22),
            ],
            fill=_shade(cloth, 1.3),
        )


def fill_pattern(canvas: ImageDraw.ImageDraw, box: Box, pattern: str, colour: Colour, *, pitch: float) -> None:
    """Draw stripes, checks or dots into `box`."""
    left, top, right, bottom = box
    line = max(1, round(pitch * 0.4))
    if pattern in ("striped", "checked"):
        for y in np.arange(top + pitch * 0.5, bottom, pitch):
            canvas.line((left, float(y), right, float(y)), fill=colour, width=line)
    if pattern == "checked":
        for x in np.arange(left + pitch * 0.4, right, pitch):
            canvas.line((float(x), top, float(x), bottom), fill=colour, width=max(1, line // 2))
    if pattern == "dotted":
        for y in np.arange(top + pitch * 0.4, bottom, pitch):
            for x in np.arange(left + pitch * 0.4, right, pitch):
                radius = pitch * 0.27
                canvas.ellipse(
                    (float(x) - radius, float(y) - radius, float(x) + radius, float(y) + radius), fill=colour
                )


def _draw_backpack(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, width: float, *, straps: bool) -> None:
    if person.bag != "backpack":
        return
    shift = width * (-0.45 if figure.view == "side" else 0.0)
    half = width * (0.36 if straps else 0.55)
    box = (figure.centre + shift - half, _down(figure, 0.19), figure.centre + shift + half, _down(figure, 0.44))
    colour = GARMENT_COLOURS[person.bag_colour]
    canvas.rounded_rectangle(box, radius=width * 0.12, fill=colour, outline=_shade(colour, 0.6))
    if straps:
        middle = (box[1] + box[3]) / 2
        canvas.line((box[0], middle, box[2], middle), fill=_shade(colour, 0.6), width=max(1, round(width * 0.05)))


def _draw_straps(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, width: float) -> None:
    for side in (-1, 1):
        x = figure.centre + side * width * 0.3
        canvas.line(
            (x, _down(figure, 0.16), x, _down(figure, 0.4)),
            fill=GARMENT_COLOURS[person.bag_colour],
            width=max(1, round(width * 0.11)),
        )


def _draw_carried_bag(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, width: float) -> None:
    colour = GARMENT_COLOURS[person.bag_colour]
    if person.bag == "handbag":
        x, y = figure.centre + width * 0.72, _down(figure, 0.53)
        canvas.rectangle(
            (x - width * 0.26, y, x + width * 0.26, y + width * 0.46), fill=colour, outline=_shade(colour, 0.5)
        )
        canvas.arc(
            (x - width * 0.16, y - width * 0.22, x + width * 0.16, y + width * 0.2), 180, 360, fill=_shade(colour, 0.5)
        )
    elif person.bag == "shoulder bag":
        x, y = figure.centre - width * 0.5, _down(figure, 0.46)
        canvas.line(
            (figure.centre + width * 0.4, _down(figure, 0.165), x, y), fill=colour, width=max(1, round(width * 0.09))
        )
        canvas.rectangle(
            (x - width * 0.26, y, x + width * 0.24, y + width * 0.4), fill=colour, outline=_shade(colour, 0.5)
        )


def _draw_head(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure) -> None:
    size = figure.height * figure.head_share
    half, top = size * 0.42, figure.top
    skin, hair = SKIN_TONES[person.skin], HAIR_COLOURS[person.hair_colour]
    x = figure.centre
    if person.hair_length == "long":
        canvas.rounded_rectangle(
            (x - half * 1.25, top, x + half * 1.25, top + size * 1.5), radius=half * 0.6, fill=hair
        )
    canvas.ellipse((x - half, top, x + half, top + size), fill=skin)
    if person.hair_length != "bald":
        if figure.view == "back":
            canvas.ellipse((x - half * 1.05, top - size * 0.03, x + half * 1.05, top + size * 0.93), fill=hair)
        else:
            canvas.pieslice((x - half * 1.1, top - size * 0.05, x + half * 1.1, top + size * 0.85), 180, 360, fill=hair)
    if figure.view != "back":
        _draw_face(canvas, person, figure, half, size)
    if person.hat != "none":
        colour = GARMENT_COLOURS[person.hat_colour]
        canvas.pieslice((x - half * 1.15, top - size * 0.16, x + half * 1.15, top + size * 0.7), 180, 360, fill=colour)
        if person.hat == "cap" and figure.view != "back":
            canvas.rectangle((x - half * 0.2, top + size * 0.2, x + half * 1.6, top + size * 0.29), fill=colour)


def _draw_face(canvas: ImageDraw.ImageDraw, person: Person, figure: Figure, half: float, size: float) -> None:
    eyes = figure.top + size * 0.5
    for side in (-1, 1):
        x = figure.centre + side * half * 0.42
        radius = half * (0.36 if person.glasses else 0.13)
        box = (x - radius, eyes - radius, x + radius, eyes + radius)
        canvas.ellipse(box, fill=(20, 20, 24) if person.glasses else (40, 30, 30))
    if person.glasses:
        canvas.line((figure.centre - half, eyes, figure.centre + half, eyes), fill=(20, 20, 24))
