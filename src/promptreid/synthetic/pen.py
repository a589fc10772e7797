"""Colours, patterns and a pen that draws in units of a body."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

GARMENT_COLOURS: dict[str, Colour] = {
    "black": (28, 28, 32), "white": (236, 236, 232), "grey": (128, 130, 134), "red": (190, 36, 40),
    "blue": (40, 74, 170), "green": (44, 124, 66), "yellow": (226, 190, 50), "orange": (226, 120, 36),
    "purple": (112, 58, 138), "pink": (230, 140, 170), "brown": (110, 74, 48), "beige": (206, 184, 148),
}  # fmt: skip
WEB_COLOURS: dict[str, Colour] = {
    "black": (12, 12, 12), "white": (252, 252, 252), "grey": (150, 150, 150), "red": (232, 24, 24),
    "blue": (28, 70, 235), "green": (22, 165, 54), "yellow": (252, 222, 24), "orange": (255, 140, 10),
    "purple": (142, 34, 176), "pink": (255, 130, 182), "brown": (134, 78, 34), "beige": (232, 206, 164),
}  # fmt: skip
HAIR_COLOURS: dict[str, Colour] = {
    "black": (24, 20, 20), "brown": (88, 58, 36), "blond": (206, 172, 100), "grey": (160, 160, 160),
    "red": (156, 70, 36),
}  # fmt: skip
SKIN_TONES: dict[str, Colour] = {
    "very light": (246, 214, 190), "light": (228, 186, 152), "medium": (196, 146, 108), "brown": (142, 96, 66),
    "dark": (90, 60, 44),
}  # fmt: skip


def shade(colour: Colour, factor: float) -> Colour:
    """`colour`, darker (below 1) or brighter (above 1)."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def tint(random: np.random.Generator, colour: Colour, spread: int) -> Colour:
    """`colour` with every channel moved by up to `spread`."""
    moved = random.integers(-spread, spread + 1, 3)
    red, green, blue = (min(255, max(0, channel + int(move))) for channel, move in zip(colour, moved, strict=True))
    return red, green, blue


Box = tuple[float, float, float, float]


def fill_pattern(canvas: ImageDraw.ImageDraw, box: Box, pattern: str, colour: Colour, *, pitch: float) -> None:
    """Draw stripes, checks or dots, one every `pitch` pixels, into `box`."""
    left, top, right, bottom = box
    line = max(1, round(pitch * 0.4))
    if pattern in ("striped", "checked"):
        for y in np.arange(top + pitch * 0.5, bottom - line / 2, pitch):
            canvas.line((left, float(y), right, float(y)), fill=colour, width=line)
    if pattern == "checked":
        for x in np.arange(left + pitch * 0.4, right, pitch):
            canvas.line((float(x), top, float(x), bottom), fill=colour, width=max(1, line // 2))
    if pattern == "dotted":
        radius = pitch * 0.27
        for y in np.arange(top + pitch * 0.4, bottom - radius, pitch):
            for x in np.arange(left + pitch * 0.4, right - radius / 2, pitch):
                dot = (float(x) - radius, float(y) - radius, float(x) + radius, float(y) + radius)
                canvas.ellipse(dot, fill=colour)


Point = tuple[float, float]


class Pen:
    """Draws in shares of a body's height; its `centre` (horizontal), crown (`top`) and `height` are in pixels."""

    def __init__(self, image: Image.Image, *, centre: float, top: float, height: float) -> None:
        self.canvas: ImageDraw.ImageDraw = ImageDraw.Draw(image)
        self.centre: float = centre
        self.top: float = top
        self.height: float = height

    def limb(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A bent line with round joints and ends."""
        pixels = [self._at(point) for point in points]
        thick = max(2, round(width * self.height))
        self.canvas.line(pixels, fill=colour, width=thick)
        radius = thick / 2
        for x, y in pixels:
            self.canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A thin line, at least one pixel wide."""
        self.canvas.line([self._at(point) for point in points], fill=colour, width=max(1, round(width * self.height)))

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self.canvas.polygon([self._at(point) for point in points], fill=colour)

    def oval(self, middle: Point, size: Point, colour: Colour, *, outline: Colour | None = None) -> None:
        """A filled ellipse with half-axes `size`."""
        (x, y), width, height = self._at(middle), size[0] * self.height, size[1] * self.height
        self.canvas.ellipse((x - width, y - height, x + width, y + height), fill=colour, outline=outline)

    def dome(self, middle: Point, size: Point, colour: Colour) -> None:
        """The upper half of an ellipse with half-axes `size`."""
        (x, y), width, height = self._at(middle), size[0] * self.height, size[1] * self.height
        self.canvas.pieslice((x - width, y - height, x + width, y + height), 180, 360, fill=colour)

    def box(self, left_top: Point, right_bottom: Point, colour: Colour, *, radius: float = 0.0) -> None:
        """A filled rectangle, with round corners if `radius` is above 0."""
        corners = (*self._at(left_top), *self._at(right_bottom))
        self.canvas.rounded_rectangle(corners, radius=radius * self.height, fill=colour)

    def pattern(self, left_top: Point, right_bottom: Point, name: str, colour: Colour) -> None:
        """Stripes, checks or dots."""
        corners = (*self._at(left_top), *self._at(right_bottom))
        fill_pattern(self.canvas, corners, name, colour, pitch=0.062 * self.height)

    def _at(self, point: Point) -> Point:
        return self.centre + point[0] * self.height, self.top + point[1] * self.height
