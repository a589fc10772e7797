"""The web's way to draw people: flat paper dolls with thick outlines, big heads and straight limbs."""

from dataclasses import dataclass

import numpy as np

from promptreid.synthetic.palette import HAIR_COLOURS, SKIN_TONES, WEB_COLOURS, Colour, tint
from promptreid.synthetic.person import NONE, Person

INK = (20, 18, 22)
_HALF_WIDTHS = {"slim": 0.085, "average": 0.115, "heavy": 0.16}
HEADS = {"child": 0.36, "adult": 0.25, "elderly": 0.25}


@dataclass(frozen=True)
class Doll:
    """A doll's place and colours.

    Attributes:
        person: Whom it shows.
        view: `"front"`, `"back"` or `"side"`.
        centre: Horizontal middle, in pixels.
        top: Top of the head.
        height: From head to sole.
        paint: Colour by attribute, such as `upper_colour`.
        head_scale: Times the usual size of the head.
        width_scale: Times the usual width.
    """

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
