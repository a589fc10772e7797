"""Draws paper dolls, whole or one thing that they wear."""

from dataclasses import replace

from PIL import ImageDraw

from promptreid.synthetic.doll import HEADS, INK, Doll
from promptreid.synthetic.doll_head import draw_doll_hat, draw_doll_head
from promptreid.synthetic.palette import Colour
from promptreid.synthetic.patterns import fill_pattern
from promptreid.synthetic.person import NONE, Person


def draw_doll(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    """Draw a doll from the back to the front."""
    person = doll.person
    if person.bag == "backpack" and doll.view == "front":
        _backpack(canvas, doll, 1.25)
    _legs(canvas, doll)
    _arms(canvas, doll)
    _upper(canvas, doll)
    if person.bag == "backpack" and doll.view != "front":
        _backpack(canvas, doll, 0.8)
    if person.bag in ("handbag", "shoulder bag"):
        _carried_bag(canvas, doll)
    draw_doll_head(canvas, doll)


def _legs(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
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
        _shoe(canvas, doll, x, sole)
    if kind == "jeans":
        canvas.line((doll.centre, hip, doll.centre, doll.body(0.6)), fill=(225, 200, 130), width=2)
    if kind == "skirt":
        low = doll.body(0.76)
        x = doll.centre
        canvas.polygon([(x - half * 0.7, hip), (x + half * 0.7, hip), (x + half * 1.4, low), (x - half * 1.4, low)],
                       fill=cloth, outline=INK)  # fmt: skip


def _shoe(canvas: ImageDraw.ImageDraw, doll: Doll, x: float, sole: float) -> None:
    half, kind, colour = doll.half, doll.person.shoe_kind, doll.paint["shoe_colour"]
    bottom = doll.body(1.0)
    top = doll.body(0.84) if kind == "boots" else sole - half * 0.1
    canvas.rectangle((x - half * 0.5, top, x + half * 0.55, bottom), fill=colour, outline=INK)
    if kind == "sneakers":
        canvas.line((x - half * 0.5, bottom, x + half * 0.55, bottom), fill=(250, 250, 250), width=3)
    if kind == "sandals":
        open_toe = (x - half * 0.2, top * 0.7 + bottom * 0.3, x + half * 0.25, top * 0.2 + bottom * 0.8)
        canvas.rectangle(open_toe, fill=doll.paint["skin"])


def _arms(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
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


def _upper(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
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


def _backpack(canvas: ImageDraw.ImageDraw, doll: Doll, scale: float) -> None:
    half = doll.half * scale
    x = doll.centre - (doll.half * 0.8 if doll.view == "side" else 0)
    box = (x - half, doll.body(0.06), x + half, doll.body(0.42))
    canvas.rounded_rectangle(box, radius=half * 0.3, fill=doll.paint["bag_colour"], outline=INK, width=2)


def _carried_bag(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    half, colour = doll.half, doll.paint["bag_colour"]
    if doll.person.bag == "handbag":
        x, y = doll.centre + half * 1.75, doll.body(0.52)
        canvas.arc((x - half * 0.4, y - half * 0.6, x + half * 0.4, y + half * 0.6), 180, 360, fill=INK, width=2)
    else:
        x, y = doll.centre - half * 1.1, doll.body(0.42)
        canvas.line((doll.centre + half * 0.7, doll.body(0.02), x, y), fill=colour, width=max(2, round(half * 0.25)))
    size = half * 0.75
    canvas.rectangle((x - size, y, x + size, y + size * 1.3), fill=colour, outline=INK, width=2)


def draw_doll_part(
    canvas: ImageDraw.ImageDraw, person: Person, part: str, paint: dict[str, Colour], size: float
) -> None:
    """Draw only `part` (`head`, `upper`, `lower`, `shoes`, `bag` or `hat`), about `size` pixels tall."""
    middle = size / 2
    head = size * 0.7 / HEADS[person.age]
    height = {"upper": 1.9, "lower": 2.1, "shoes": 2.7, "bag": 2.6}.get(part, 0.0) * size or head
    doll = Doll(
        replace(person, age="adult") if part not in ("head", "hat") else person, "front", middle, 0, height, paint
    )
    # Where the part begins on the doll goes near the upper edge.
    begins = {"upper": doll.body(0), "lower": doll.body(0.5), "shoes": doll.body(0.72), "bag": doll.body(0.45)}
    tops = {"head": size * 0.2, "hat": size * 0.35, "bag": size * 0.25}
    doll = replace(doll, top=tops.get(part, size * 0.1) - begins.get(part, 0.0))
    if part == "bag" and person.bag == "backpack":
        doll = replace(doll, top=doll.top + doll.height * 0.2)
    if part == "bag" and person.bag != "backpack":
        doll = replace(doll, centre=middle + doll.half * (-1.75 if person.bag == "handbag" else 1.1))
    draws = {
        "head": (draw_doll_head,),
        "upper": (_arms, _upper),
        "lower": (_legs,),
        "shoes": (_shoes,),
        "hat": (draw_doll_hat,),
    }
    for draw in draws.get(part, (_bag,)):
        draw(canvas, doll)


def _shoes(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    for side in (-1, 1):
        _shoe(canvas, doll, doll.centre + side * doll.half * 0.62, doll.body(0.95))


def _bag(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    if doll.person.bag == "backpack":
        _backpack(canvas, doll, 1.0)
    else:
        _carried_bag(canvas, doll)
