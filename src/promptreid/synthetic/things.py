"""Other things than people, for the web's pictures: each a few shapes in two colours and a template of words."""

from typing import Literal, NamedTuple

from PIL import ImageDraw

from promptreid.synthetic.doll import INK
from promptreid.synthetic.palette import Colour

Points = tuple[float, ...]


class Shape(NamedTuple):
    """One shape; coordinates in shares of the picture's side."""

    kind: Literal["ellipse", "rectangle", "polygon"]
    points: Points
    paint: Literal["main", "second"]


class Thing(NamedTuple):
    """A drawing and its words; `{main}` and `{second}` stand for the colours."""

    words: str
    shapes: tuple[Shape, ...]


THINGS = (
    Thing("{main} ball with a {second} spot", (
        Shape("ellipse", (0.15, 0.15, 0.85, 0.85), "main"), Shape("ellipse", (0.35, 0.3, 0.6, 0.55), "second"))),
    Thing("{main} car with {second} wheels", (
        Shape("polygon", (0.25, 0.45, 0.35, 0.28, 0.65, 0.28, 0.75, 0.45), "main"),
        Shape("rectangle", (0.08, 0.45, 0.92, 0.66), "main"), Shape("ellipse", (0.18, 0.58, 0.38, 0.78), "second"),
        Shape("ellipse", (0.62, 0.58, 0.82, 0.78), "second"))),
    Thing("{main} house with a {second} roof", (
        Shape("rectangle", (0.2, 0.45, 0.8, 0.9), "main"),
        Shape("polygon", (0.1, 0.45, 0.5, 0.1, 0.9, 0.45), "second"))),
    Thing("{main} tree with a {second} trunk", (
        Shape("rectangle", (0.44, 0.55, 0.56, 0.92), "second"), Shape("ellipse", (0.2, 0.08, 0.8, 0.65), "main"))),
    Thing("{main} flower with a {second} middle", (
        Shape("ellipse", (0.35, 0.08, 0.65, 0.4), "main"), Shape("ellipse", (0.35, 0.6, 0.65, 0.92), "main"),
        Shape("ellipse", (0.08, 0.35, 0.4, 0.65), "main"), Shape("ellipse", (0.6, 0.35, 0.92, 0.65), "main"),
        Shape("ellipse", (0.35, 0.35, 0.65, 0.65), "second"))),
    Thing("{main} cup on a {second} table", (
        Shape("rectangle", (0.05, 0.7, 0.95, 0.9), "second"), Shape("ellipse", (0.55, 0.38, 0.82, 0.62), "main"),
        Shape("polygon", (0.25, 0.3, 0.7, 0.3, 0.62, 0.7, 0.33, 0.7), "main"))),
    Thing("{main} fish with a {second} tail", (
        Shape("polygon", (0.62, 0.5, 0.95, 0.25, 0.95, 0.75), "second"),
        Shape("ellipse", (0.08, 0.3, 0.72, 0.7), "main"))),
    Thing("{main} boat with a {second} sail", (
        Shape("polygon", (0.1, 0.65, 0.9, 0.65, 0.75, 0.88, 0.25, 0.88), "main"),
        Shape("polygon", (0.5, 0.1, 0.5, 0.6, 0.85, 0.6), "second"))),
    Thing("{main} chair with {second} legs", (
        Shape("rectangle", (0.28, 0.1, 0.4, 0.55), "main"), Shape("rectangle", (0.28, 0.5, 0.75, 0.6), "main"),
        Shape("rectangle", (0.28, 0.6, 0.34, 0.92), "second"), Shape("rectangle", (0.69, 0.6, 0.75, 0.92), "second"))),
    Thing("{main} book with a {second} label", (
        Shape("rectangle", (0.22, 0.12, 0.78, 0.88), "main"), Shape("rectangle", (0.35, 0.25, 0.65, 0.42), "second"))),
    Thing("{main} kite with a {second} string", (
        Shape("polygon", (0.5, 0.05, 0.8, 0.38, 0.5, 0.72, 0.2, 0.38), "main"),
        Shape("rectangle", (0.48, 0.72, 0.52, 0.97), "second"))),
    Thing("{main} umbrella with a {second} handle", (
        Shape("rectangle", (0.47, 0.45, 0.53, 0.92), "second"),
        Shape("polygon", (0.08, 0.5, 0.3, 0.18, 0.5, 0.12, 0.7, 0.18, 0.92, 0.5), "main"))),
)  # fmt: skip


def draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, side: int, *, main: Colour, second: Colour) -> None:
    """Draw `thing` into a square picture of `side` pixels."""
    for shape in thing.shapes:
        points = [point * side for point in shape.points]
        draw = {"ellipse": canvas.ellipse, "rectangle": canvas.rectangle, "polygon": canvas.polygon}[shape.kind]
        draw(points, fill=main if shape.paint == "main" else second, outline=INK)
