"""Draws paper dolls: the way in which the small base's own pretraining world draws people.

A doll is flat, with thick outlines, a big head and straight limbs.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from promptreid.synthetic.pen import HAIR_COLOURS, SKIN_TONES, WEB_COLOURS, Colour, fill_pattern, tint
from promptreid.synthetic.person import NONE, Person

INK = (20, 18, 22)
_HALF_WIDTHS = {"slim": 0.085, "average": 0.115, "heavy": 0.16}
HEADS = {"child": 0.36, "adult": 0.25, "elderly": 0.25}


@dataclass(frozen=True)
class Doll:
    """A doll's place in pixels (`centre` is its horizontal middle, `top` the top of its head) and colours."""

    person: Person
    view: str
    centre: float
    top: float
    height: float
    paint: dict[str, Colour]
    head_scale: float = 1.0
    width_scale: float = 1.0

    @property
    def head(self) -> float:
        """Diameter of the head."""
        return self.height * HEADS[self.person.age] * self.head_scale

    @property
    def half(self) -> float:
        """Half the width of the body."""
        return self.height * _HALF_WIDTHS[self.person.build] * self.width_scale * (0.75 if self.view == "side" else 1)

    def body(self, share: float) -> float:
        """A height on the body: 0 at the neck, 1 at the soles."""
        return self.top + self.head + (self.height - self.head) * share


def reach_of(person: Person) -> float:
    """How far a doll reaches to either side, with all that it carries, as a share of its height."""
    return _HALF_WIDTHS[person.build] * (2.5 if person.bag == "handbag" else 2.0)


def mix_paint(random: np.random.Generator, person: Person, *, spread: int = 14) -> dict[str, Colour]:
    """The web's colours of everything a person has, a little different every time."""
    tables = {"skin": SKIN_TONES, "hair_colour": HAIR_COLOURS}
    paint: dict[str, Colour] = {}
    for attribute in ("skin", "hair_colour", "upper_colour", "pattern_colour", "inner_colour", "lower_colour",
                      "shoe_colour", "bag_colour", "hat_colour"):  # fmt: skip
        name = getattr(person, attribute)
        if name != NONE:
            paint[attribute] = tint(random, tables.get(attribute, WEB_COLOURS)[name], spread)
    return paint


def draw_web_person(
    random: np.random.Generator, image: Image.Image, person: Person, view: str, *, loose: bool = True
) -> None:
    """Draw a whole paper doll onto `image`, near the middle."""
    width, height = image.size
    tall = height * random.uniform(0.78, 0.94)
    centre = width * (random.uniform(0.3, 0.7) if loose else random.uniform(0.45, 0.55))
    if not loose:  # narrow pictures must hold arms and bags too
        tall = min(tall, width * 0.45 / reach_of(person))
    doll = Doll(person, view, centre, (height - tall) * random.uniform(0.4, 0.8), tall, mix_paint(random, person))
    draw_doll(ImageDraw.Draw(image), doll)


def draw_doll(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw a doll from the back to the front."""
    person = doll.person
    if person.bag == "backpack" and doll.view == "front":
        draw_backpack(canvas, doll, 1.25)
    draw_legs(canvas, doll)
    draw_arms(canvas, doll)
    draw_upper(canvas, doll)
    if person.bag == "backpack" and doll.view != "front":
        draw_backpack(canvas, doll, 0.8)
    if person.bag in ("handbag", "shoulder bag"):
        draw_carried_bag(canvas, doll)
    draw_head(canvas, doll)


def draw_legs(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw legs, what covers them, and shoes."""
    kind, half = doll.person.lower_kind, doll.half
    cloth, hip, sole = doll.paint["lower_colour"], doll.body(0.5), doll.body(0.95)
    thick = half * {"leggings": 0.5, "jeans": 0.75}.get(kind, 0.9)
    for side in (-1, 1):
        x = doll.centre + side * half * 0.52
        bare = kind in ("shorts", "skirt")
        leg = (x - thick / 2, hip, x + thick / 2, sole)
        if bare:
            leg = (x - half * 0.22, hip, x + half * 0.22, sole)
        canvas.rectangle(leg, fill=doll.paint["skin"] if bare else cloth, outline=INK)
        if kind == "shorts":
            canvas.rectangle((x - half * 0.48, hip, x + half * 0.48, doll.body(0.68)), fill=cloth, outline=INK)
        draw_shoe(canvas, doll, x, sole)
    if kind == "jeans":
        canvas.line((doll.centre, hip, doll.centre, doll.body(0.6)), fill=(225, 200, 130), width=2)
    if kind == "skirt":
        low = doll.body(0.76)
        x = doll.centre
        canvas.polygon([(x - half * 0.7, hip), (x + half * 0.7, hip), (x + half * 1.4, low), (x - half * 1.4, low)],
                       fill=cloth, outline=INK)  # fmt: skip


def draw_shoe(canvas: ImageDraw.ImageDraw, doll: Doll, x: float, sole: float) -> None:
    """Draw a shoe below the middle `x` of a leg."""
    half, kind, colour = doll.half, doll.person.shoe_kind, doll.paint["shoe_colour"]
    bottom = doll.body(1.0)
    top = doll.body(0.84) if kind == "boots" else sole - half * 0.1
    canvas.rectangle((x - half * 0.5, top, x + half * 0.55, bottom), fill=colour, outline=INK)
    if kind == "sneakers":
        canvas.line((x - half * 0.5, bottom, x + half * 0.55, bottom), fill=(250, 250, 250), width=3)
    if kind == "sandals":
        open_toe = (x - half * 0.2, top * 0.7 + bottom * 0.3, x + half * 0.25, top * 0.2 + bottom * 0.8)
        canvas.rectangle(open_toe, fill=doll.paint["skin"])


def draw_arms(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw arms, sleeves and hands."""
    half, kind = doll.half, doll.person.upper_kind
    shoulder, hand = doll.body(0.06), doll.body(0.5)
    thick = max(3, round(half * 0.45))
    reach = half * (0.3 if doll.view == "side" else 0.75)
    cloth = doll.paint["skin"] if kind in ("t-shirt", "tank top") else doll.paint["upper_colour"]
    for side in (-1, 1):
        start, end = doll.centre + side * half * 0.85, doll.centre + side * (half + reach)
        canvas.line((start, shoulder, end, hand), fill=INK, width=thick + 2)
        canvas.line((start, shoulder, end, hand), fill=cloth, width=thick)
        if kind == "t-shirt":
            middle = ((start * 2 + end) / 3, (shoulder * 2 + hand) / 3)
            canvas.line((start, shoulder, *middle), fill=doll.paint["upper_colour"], width=thick + 2)
        canvas.ellipse((end - thick / 2, hand - thick / 2, end + thick / 2, hand + thick / 2), fill=doll.paint["skin"])


def draw_upper(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw the trunk in its garment."""
    person, half, x = doll.person, doll.half, doll.centre
    top, low = doll.body(0.0), doll.body(0.7 if person.upper_kind == "coat" else 0.52)
    # Broad shoulders or broad hips: what is called man or woman here.
    broad, narrow = (half * 1.05, half * 0.85) if person.gender == "man" else (half * 0.85, half * 1.0)
    if person.upper_kind == "tank top":
        broad *= 0.8
    shape = [(x - broad, top), (x + broad, top), (x + narrow, low), (x - narrow, low)]
    canvas.polygon(shape, fill=doll.paint["upper_colour"], outline=INK)
    box = (x - min(broad, narrow) + 1, top + 2, x + min(broad, narrow) - 1, low - 1)
    draw_cloth(canvas, doll, box)


def draw_cloth(canvas: ImageDraw.ImageDraw, doll: Doll, box: tuple[float, float, float, float]) -> None:
    """Draw what lies on the upper garment that fills `box`: pattern, print, collar, hood, zip, belt."""
    person, front = doll.person, doll.view == "front"
    left, top, right, low = box
    width, x = right - left, (left + right) / 2
    if person.upper_pattern in ("striped", "checked", "dotted"):
        fill_pattern(canvas, box, person.upper_pattern, doll.paint["pattern_colour"], pitch=max(4.0, width * 0.3))
    if person.upper_pattern == "printed" and front:
        y = top + (low - top) * 0.4
        canvas.rectangle((x - width * 0.27, y - width * 0.17, x + width * 0.27, y + width * 0.17),
                         fill=doll.paint["pattern_colour"])  # fmt: skip
    if person.inner_colour != NONE and front:
        canvas.polygon([(x - width * 0.22, top), (x + width * 0.22, top), (x, top + (low - top) * 0.6)],
                       fill=doll.paint["inner_colour"], outline=INK)  # fmt: skip
    if person.upper_kind in ("jacket", "coat", "shirt") and front:
        canvas.line((x, top, x, low), fill=INK, width=2)
    if person.upper_kind == "jacket":
        canvas.line((left, low - 2, right, low - 2), fill=INK, width=3)
    if person.upper_kind == "shirt":
        canvas.polygon([(x - width * 0.3, top), (x + width * 0.3, top), (x, top + width * 0.3)],
                       fill=(250, 250, 250), outline=INK)  # fmt: skip
    if person.upper_kind == "hoodie":
        canvas.chord((x - width * 0.45, top - width * 0.3, x + width * 0.45, top + width * 0.35), 0, 180,
                     fill=doll.paint["upper_colour"], outline=INK, width=2)  # fmt: skip
    if person.upper_kind == "sweater":
        canvas.line((x - width * 0.3, top + 2, x + width * 0.3, top + 2), fill=INK, width=3)


def draw_backpack(canvas: ImageDraw.ImageDraw, doll: Doll, scale: float) -> None:
    """Draw a backpack, `scale` times as wide as the body."""
    half = doll.half * scale
    x = doll.centre - (doll.half * 0.8 if doll.view == "side" else 0)
    box = (x - half, doll.body(0.06), x + half, doll.body(0.42))
    canvas.rounded_rectangle(box, radius=half * 0.3, fill=doll.paint["bag_colour"], outline=INK, width=2)


def draw_carried_bag(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw a handbag beside the body or a shoulder bag across it."""
    half, colour = doll.half, doll.paint["bag_colour"]
    if doll.person.bag == "handbag":
        x, y = doll.centre + half * 1.75, doll.body(0.52)
        canvas.arc((x - half * 0.4, y - half * 0.6, x + half * 0.4, y + half * 0.6), 180, 360, fill=INK, width=2)
    else:
        x, y = doll.centre - half * 1.1, doll.body(0.42)
        canvas.line((doll.centre + half * 0.7, doll.body(0.02), x, y), fill=colour, width=max(2, round(half * 0.25)))
    size = half * 0.75
    canvas.rectangle((x - size, y, x + size, y + size * 1.3), fill=colour, outline=INK, width=2)


def draw_head(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
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
    draw_hat(canvas, doll)


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


def draw_hat(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
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
