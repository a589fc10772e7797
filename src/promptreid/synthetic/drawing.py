"""Draws a person of the street, from what is farthest to what is nearest."""

from PIL import Image

from promptreid.synthetic.accessories import draw_backpack, draw_carried_bag, draw_head
from promptreid.synthetic.clothing import Figure, draw_arm, draw_leg, draw_skirt, draw_upper
from promptreid.synthetic.pen import Pen
from promptreid.synthetic.person import Person
from promptreid.synthetic.skeleton import pose

_SHADOW = (60, 58, 56)
HEIGHTS = {"child": 0.74, "adult": 1.0, "elderly": 0.95}


def draw_figure(
    image: Image.Image, person: Person, *, view: str, facing: int, phase: float, foot: tuple[float, float], tall: float
) -> None:
    """Draw `person` onto `image`.

    Args:
        image: What is drawn on.
        person: Who it is.
        view: `"front"`, `"back"` or `"side"`.
        facing: 1 towards the right edge, -1 towards the left one; counts from the side.
        phase: Of the walking cycle, in [0, 1).
        foot: Point between the feet, in pixels.
        tall: Height of a grown person, in pixels.
    """
    height = tall * HEIGHTS[person.age]
    pen = Pen(image, centre=foot[0], top=foot[1] - height, height=height)
    figure = Figure(person, view, facing, pose(person, view, facing, phase))
    side = view == "side"
    pen.oval((0.0, 1.0), (0.15, 0.016), _SHADOW)
    if side:
        draw_arm(pen, figure, figure.bones.arms[0], far=True)
    if view == "front":
        draw_backpack(pen, figure)
    for limb, far in zip(figure.bones.legs, (side, False), strict=True):
        draw_leg(pen, figure, limb, far=far)
    draw_skirt(pen, figure)
    if not side:
        draw_arm(pen, figure, figure.bones.arms[0], far=False)
        draw_arm(pen, figure, figure.bones.arms[1], far=False)
    draw_upper(pen, figure)
    draw_backpack(pen, figure)
    draw_head(pen, figure)
    if side:
        draw_arm(pen, figure, figure.bones.arms[1], far=False)
    draw_carried_bag(pen, figure)
