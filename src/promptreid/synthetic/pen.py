"""Draws in units of a body: 0 is the middle of the person and the crown of the head, 1 the soles."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from promptreid.synthetic.palette import Colour
from promptreid.synthetic.patterns import fill_pattern

Point = tuple[float, float]


class Pen:
    """Draws onto an image, in shares of a body's height.

    Args:
        image: What is drawn on.
        centre: Horizontal middle of the body, in pixels.
        top: Crown of the head, in pixels.
        height: From crown to sole, in pixels.
    """

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
