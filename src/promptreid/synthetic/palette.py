"""Colours by name: as paint gives them on the web's drawings, as cloth gives them in the street."""

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
WEB_COLOURS: dict[str, Colour] = {
    "black": (12, 12, 12),
    "white": (252, 252, 252),
    "grey": (150, 150, 150),
    "red": (232, 24, 24),
    "blue": (28, 70, 235),
    "green": (22, 165, 54),
    "yellow": (252, 222, 24),
    "orange": (255, 140, 10),
    "purple": (142, 34, 176),
    "pink": (255, 130, 182),
    "brown": (134, 78, 34),
    "beige": (232, 206, 164),
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


def shade(colour: Colour, factor: float) -> Colour:
    """`colour`, darker (below 1) or brighter (above 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def tint(random: np.random.Generator, colour: Colour, spread: int) -> Colour:
    """`colour` with every channel moved by up to `spread`."""
    moved = random.integers(-spread, spread + 1, 3)
    red, green, blue = (min(255, max(0, channel + int(move))) for channel, move in zip(colour, moved, strict=True))
    return red, green, blue
