"""Who a generated pedestrian is: attributes that stay the same in every picture."""

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

GARMENT_COLOURS: dict[str, Colour] = {
    "black": (28, 28, 32),
    "white": (236, 236, 232),
    "grey": (128, 130, 134),
    "red": (190, 36, 40),
    "blue": (40, 74, 170),
    "green": (44, 124, 66),
    "yellow": (226, 190, 50),
    "orange": (226, 120, 36),
    "purple": (112, 58, 138),
    "pink": (230, 140, 170),
    "brown": (110, 74, 48),
    "beige": (206, 184, 148),
}
HAIR_COLOURS: dict[str, Colour] = {
    "black": (24, 20, 20),
    "brown": (88, 58, 36),
    "blond": (206, 172, 100),
    "grey": (160, 160, 160),
    "red": (156, 70, 36),
}
SKIN_TONES: dict[str, Colour] = {
    "very light": (246, 214, 190),
    "light": (228, 186, 152),
    "medium": (196, 146, 108),
    "brown": (142, 96, 66),
    "dark": (90, 60, 44),
}
UPPER_KINDS = ("t-shirt", "shirt", "jacket", "coat", "hoodie", "sweater", "tank top")
LOWER_KINDS = ("trousers", "jeans", "shorts", "skirt", "leggings")
PATTERNS = ("plain", "striped", "checked", "dotted")
BAGS = ("none", "none", "backpack", "handbag", "shoulder bag")
HATS = ("none", "none", "none", "cap", "beanie")
BUILDS = ("slim", "average", "heavy")
GENDERS = ("man", "woman")


@dataclass(frozen=True)
class Person:
    """One identity; colours and kinds are keys of this module's tables."""

    gender: str
    build: str
    skin: str
    hair_colour: str
    hair_length: str
    upper_kind: str
    upper_colour: str
    upper_pattern: str
    pattern_colour: str
    lower_kind: str
    lower_colour: str
    shoe_colour: str
    bag: str
    bag_colour: str
    hat: str
    hat_colour: str
    glasses: bool


def draw_person(random: np.random.Generator) -> Person:
    """Draw one identity; attributes are independent, so identities share many of them."""

    def pick(options: object) -> str:
        names = list(options)  # pyright: ignore[reportArgumentType]
        return str(names[int(random.integers(len(names)))])

    gender = pick(GENDERS)
    upper_colour = pick(GARMENT_COLOURS)
    pattern = pick(("plain", "plain", *PATTERNS))
    contrast = [name for name in GARMENT_COLOURS if name != upper_colour]
    lower_kind = pick(LOWER_KINDS if gender == "woman" else LOWER_KINDS[:3])
    return Person(
        gender=gender,
        build=pick(BUILDS),
        skin=pick(SKIN_TONES),
        hair_colour=pick(HAIR_COLOURS),
        hair_length=pick(
            ("long", "long", "short") if gender == "woman" else ("short", "short", "short", "long", "bald")
        ),
        upper_kind=pick(UPPER_KINDS),
        upper_colour=upper_colour,
        upper_pattern=pattern,
        pattern_colour=pick(contrast),
        lower_kind=lower_kind,
        lower_colour="blue" if lower_kind == "jeans" else pick(GARMENT_COLOURS),
        shoe_colour=pick(("black", "white", "brown", "red", "grey")),
        bag=pick(BAGS),
        bag_colour=pick(GARMENT_COLOURS),
        hat=pick(HATS),
        hat_colour=pick(GARMENT_COLOURS),
        glasses=bool(random.random() < 0.25),
    )
