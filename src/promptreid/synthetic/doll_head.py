"""Draws the heads of paper dolls."""

from PIL import ImageDraw

from promptreid.synthetic.doll import INK, Doll
from promptreid.synthetic.person import NONE


def draw_doll_head(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw head, hair, face, glasses and hat."""
    person, half, x, top = doll.person, doll.head * 0.44, doll.centre, doll.top
    bottom = top + doll.head
    bald, skin = person.hair_length == "bald", doll.paint["skin"]
    hair = doll.paint.get("hair_colour", skin)
    if not bald:
        low = top + doll.head * {"short": 0.45, "shoulder length": 1.05, "long": 1.55}[person.hair_length]
        box = (x - half * 1.22, top, x + half * 1.22, low)
        canvas.rounded_rectangle(box, radius=half * 0.6, fill=hair, outline=INK)
    if doll.view == "back" and not bald:
        canvas.ellipse((x - half * 1.05, top, x + half * 1.05, bottom - doll.head * 0.12), fill=hair)
    else:
        face_top = top + doll.head * (0.0 if bald else 0.12)
        canvas.ellipse((x - half, face_top, x + half, bottom), fill=skin, outline=INK)
        if not bald:
            canvas.chord((x - half * 1.1, top, x + half * 1.1, top + doll.head * 0.75), 195, 345, fill=hair)
    if doll.view != "back":
        _face(canvas, doll, half)
    draw_doll_hat(canvas, doll)


def _face(canvas: ImageDraw.ImageDraw, doll: Doll, half: float) -> None:
    y, shift = doll.top + doll.head * 0.52, half * (0.35 if doll.view == "side" else 0)
    for side in (-1, 1):
        x = doll.centre + shift + side * half * 0.4
        radius = half * (0.09 if doll.person.glasses == NONE else 0.32)
        fill = None if doll.person.glasses == "glasses" else INK
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=INK, width=2)
    if doll.person.age == "elderly":  # wrinkles
        for line in (0.72, 0.82):
            low = doll.top + doll.head * line
            canvas.line((doll.centre - half * 0.4, low, doll.centre + half * 0.4, low), fill=INK)


def draw_doll_hat(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw the hat, if there is one."""
    person, half, x, top = doll.person, doll.head * 0.44, doll.centre, doll.top
    if person.hat == NONE:
        return
    colour, brim = doll.paint["hat_colour"], top + doll.head * 0.3
    canvas.chord((x - half * 1.25, top - doll.head * 0.14, x + half * 1.25, top + doll.head * 0.74), 180, 360,
                 fill=colour, outline=INK, width=2)  # fmt: skip
    if person.hat == "cap" and doll.view != "back":
        canvas.rectangle((x, brim - 3, x + half * 1.9, brim + 2), fill=colour, outline=INK)
    if person.hat == "hat":
        canvas.ellipse((x - half * 1.9, brim - 4, x + half * 1.9, brim + 4), fill=colour, outline=INK)
    if person.hat == "beanie":
        canvas.ellipse((x - 5, top - doll.head * 0.24, x + 5, top - doll.head * 0.06), fill=colour, outline=INK)
