"""The pretraining world of the small base: single things and paper dolls on square images, with captions.

It stands for the web that CLIP was trained on: it knows the words, but neither the street nor its cameras. Only
`pretrain_tiny.py` and measurements on the base's own domain draw from it; the dolls themselves are in
`promptreid.synthetic`, which draws them where `gap` is below 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from promptreid.synthetic.doll import (
    HEADS,
    INK,
    Doll,
    draw_arms,
    draw_backpack,
    draw_carried_bag,
    draw_doll,
    draw_hat,
    draw_head,
    draw_legs,
    draw_shoe,
    draw_upper,
    draw_web_person,
    mix_paint,
)
from promptreid.synthetic.pen import WEB_COLOURS, Colour, fill_pattern, tint
from promptreid.synthetic.person import BAGS, GLASSES, HATS, NONE, Person, as_seen, draw_person, pick
from promptreid.synthetic.sentences import (
    CARRY_WORDS,
    ENDINGS,
    MAX_TOKENS,
    MEDIA,
    OPENERS,
    PATTERN_ADJECTIVES,
    VERBS,
    VIEW_WORDS,
    article,
    bag_phrase,
    colour_word,
    count_tokens,
    glasses_phrase,
    hair_phrase,
    hat_phrase,
    lower_phrase,
    phrases_of,
    shoe_phrase,
    skin_phrase,
    subject_phrase,
    upper_phrase,
)

WEB_SIZE = 64
VIEWS = ("front", "back", "side")
_DRAWN = 2 * WEB_SIZE  # drawn at twice the size and halved, for smooth edges
_SETTINGS = ("in the shop", "for sale", "on a plain background", "new", "isolated")


@dataclass(frozen=True)
class World:
    """What a stretch of the web is like.

    Attributes:
        people: Share of whole persons; the rest are colours, patterns, single things that people wear, and others.
        brevity: Exponent that makes lists of what a person wears short; above 1 most are, below 1 most are not.
        variety: How much proportions, colours, grounds and light of dolls vary, 0 to 1.
    """

    people: float
    brevity: float
    variety: float


PLAIN_WORLD = World(people=0.58, brevity=1.5, variety=0.0)
VARIED_WORLD = World(people=0.85, brevity=0.6, variety=1.0)


def draw_web_pair(random: np.random.Generator, world: World = PLAIN_WORLD) -> tuple[Image.Image, str]:
    """One square image of 64 x 64 pixels and its caption, of 2 to 60 tokens."""
    kind = float(random.random()) / (1 - world.people)
    image = Image.new("RGB", (_DRAWN, _DRAWN), tuple(int(value) for value in random.integers(185, 256, 3)))
    if kind >= 1:
        return _whole_person(random, image, world)
    draw = _swatch if kind < 1 / 7 else _thing if kind < 1 / 3 else _part
    caption = draw(random, image)
    return image.reduce(2), caption


def _whole_person(random: np.random.Generator, image: Image.Image, world: World) -> tuple[Image.Image, str]:
    person, view = draw_person(random), pick(random, VIEWS)
    if world.variety == 0:
        draw_web_person(random, image, person, view)
    else:
        image = _varied_person(random, person, view, world.variety)
    return image.reduce(2), web_caption(random, as_seen(person, view), view, world.brevity)


def _varied_person(random: np.random.Generator, person: Person, view: str, variety: float) -> Image.Image:
    """A doll of other proportions and colours before some ground, in some light."""
    lowest = round(185 - 100 * variety)
    ground, floor = (tuple(int(value) for value in random.integers(lowest, 256, 3)) for _ in range(2))
    image = Image.new("RGB", (_DRAWN, _DRAWN), ground)
    if random.random() < 0.5:
        image.paste(floor, (0, int(_DRAWN * random.uniform(0.6, 0.9)), _DRAWN, _DRAWN))
    tall = _DRAWN * float(random.uniform(0.7, 0.96))
    doll = Doll(
        person,
        view,
        centre=_DRAWN * float(random.uniform(0.35, 0.65)),
        top=(_DRAWN - tall) * float(random.uniform(0.2, 0.9)),
        height=tall,
        paint=mix_paint(random, person, spread=round(14 + 18 * variety)),
        head_scale=1 - variety * float(random.uniform(0, 0.4)),
        width_scale=1 + variety * float(random.uniform(-0.12, 0.2)),
    )
    draw_doll(ImageDraw.Draw(image), doll)
    return ImageEnhance.Brightness(image).enhance(1 + variety * float(random.uniform(-0.35, 0.15)))


def _swatch(random: np.random.Generator, image: Image.Image) -> str:
    person, canvas = draw_person(random), ImageDraw.Draw(image)
    edge = float(random.uniform(4, 24))
    box = (edge, edge, _DRAWN - edge, _DRAWN - edge)
    name = person.upper_colour
    canvas.rectangle(box, fill=tint(random, WEB_COLOURS[name], 14))
    if person.upper_pattern not in PATTERN_ADJECTIVES:
        return f"the colour {colour_word(random, name)}"
    paint = tint(random, WEB_COLOURS[person.pattern_colour], 14)
    fill_pattern(canvas, box, person.upper_pattern, paint, pitch=float(random.uniform(12, 28)))
    words = f"{colour_word(random, name)} and {colour_word(random, person.pattern_colour)}"
    return f"{words} {pick(random, PATTERN_ADJECTIVES[person.upper_pattern])} cloth"


def _thing(random: np.random.Generator, image: Image.Image) -> str:
    thing = THINGS[int(random.integers(len(THINGS)))]
    main = pick(random, WEB_COLOURS)
    second = pick(random, WEB_COLOURS, other_than=main)
    paint = {"main": tint(random, WEB_COLOURS[main], 14), "second": tint(random, WEB_COLOURS[second], 14)}
    draw_thing(ImageDraw.Draw(image), thing, _DRAWN, main=paint["main"], second=paint["second"])
    words = thing.words.format(main=colour_word(random, main), second=colour_word(random, second))
    return article(words.replace(" a orange", " an orange"))


def _part(random: np.random.Generator, image: Image.Image) -> str:
    """Head, hat, upper garment, lower garment, shoes or bag, filling the image."""
    part = pick(random, tuple(_PART_CAPTIONS))
    person = replace(draw_person(random), glasses=pick(random, GLASSES))
    if part == "bag":
        person = replace(person, bag=pick(random, BAGS, other_than=NONE), bag_colour=pick(random, WEB_COLOURS))
    if part == "hat":
        person = replace(person, hat=pick(random, HATS, other_than=NONE), hat_colour=pick(random, WEB_COLOURS))
    draw_doll_part(ImageDraw.Draw(image), person, part, mix_paint(random, person), _DRAWN * random.uniform(0.85, 1.1))
    return _PART_CAPTIONS[part](random, as_seen(person, "front") if part == "head" else person)


def _head_caption(random: np.random.Generator, person: Person) -> str:
    words = [article(hair_phrase(random, person).text)] if person.hair_length != NONE else []
    if person.hat != NONE:
        words.append(article(hat_phrase(random, person).text))
    if person.glasses != NONE:
        words.append(glasses_phrase(random, person).text)
    if random.random() < 0.5:
        words.append(skin_phrase(person).text)
    order = [words[int(index)] for index in random.permutation(len(words))]
    subject = subject_phrase(random, replace(person, build="average", gender=person.gender), neutral=0.5).text
    return f"head of {article(subject)} with {', '.join(order)}"


def _shop(random: np.random.Generator, words: str) -> str:
    return f"{words} {pick(random, _SETTINGS)}" if random.random() < 0.6 else words


_PART_CAPTIONS: dict[str, Callable[[np.random.Generator, Person], str]] = {
    "head": _head_caption,
    "upper": lambda random, person: _shop(random, article(upper_phrase(random, person).text)),
    "lower": lambda random, person: _shop(random, lower_phrase(random, person).text),
    "shoes": lambda random, person: _shop(random, f"a pair of {shoe_phrase(random, person).text}"),
    "bag": lambda random, person: _shop(random, article(bag_phrase(random, person).text)),
    "hat": lambda random, person: _shop(random, article(hat_phrase(random, person).text)),
}


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
        "head": (draw_head,),
        "upper": (draw_arms, draw_upper),
        "lower": (draw_legs,),
        "shoes": (_shoes,),
        "hat": (draw_hat,),
    }
    for draw in draws.get(part, (_bag,)):
        draw(canvas, doll)


def _shoes(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    for side in (-1, 1):
        draw_shoe(canvas, doll, doll.centre + side * doll.half * 0.62, doll.body(0.95))


def _bag(canvas: ImageDraw.ImageDraw, doll: Doll) -> None:
    if doll.person.bag == "backpack":
        draw_backpack(canvas, doll, 1.0)
    else:
        draw_carried_bag(canvas, doll)


def web_caption(random: np.random.Generator, person: Person, view: str, brevity: float) -> str:
    """Caption a whole person; `person` must be what `view` shows; above 1, `brevity` makes most lists short."""
    kind = random.random()
    if kind < 0.5:
        return _list(random, person, view, brevity)
    if kind < 0.8:
        return _sentence(random, person, view)
    return _page(random, person, view)


def _list(random: np.random.Generator, person: Person, view: str, brevity: float = 1.5) -> str:
    phrases = phrases_of(random, person)
    count = 1 + int(len(phrases) * random.random() ** brevity)
    subject = subject_phrase(random, person).text
    start = pick(
        random, (subject, f"{pick(random, MEDIA)} {article(subject)}", f"{subject} {pick(random, VIEW_WORDS[view])}")
    )
    return f"{start}, {', '.join(phrases[:count])}"


def _sentence(random: np.random.Generator, person: Person, view: str) -> str:
    subject = subject_phrase(random, person, neutral=0.1).text
    pronoun, owner = ("he", "his") if person.gender == "man" else ("she", "her")
    carried = [f"{pick(random, CARRY_WORDS)} {article(bag_phrase(random, person).text)}"] if person.bag != NONE else []
    templates: list[Callable[[], str]] = [
        lambda: f"the {subject} {pick(random, VERBS)} {article(upper_phrase(random, person).text)}",
        lambda: (
            f"{article(subject)} {pick(random, VIEW_WORDS[view])}, {pronoun} {pick(random, VERBS)} "
            f"{article(lower_phrase(random, person).text)}"
        ),
        lambda: f"{owner} shoes are a pair of {shoe_phrase(random, person).text}",
        lambda: f"{pick(random, OPENERS)} this {subject} also has {phrases_of(random, person)[0]}",
        lambda: f"there is {article(subject)} who has {skin_phrase(person).text} {pick(random, ENDINGS)}",
        lambda: f"the {subject} can be seen with {phrases_of(random, person)[0]} on {owner} body",
        *[lambda: f"{article(subject)} {carried[0]}" for _ in carried],
    ]
    return templates[int(random.integers(len(templates)))]()


def _page(random: np.random.Generator, person: Person, view: str) -> str:
    """A page of text says the same again in other words, up to the length that captions may have."""
    text, wanted = _list(random, person, view), 15 + int((MAX_TOKENS - 14) * random.random())
    while True:
        more = f"{text}. {(_list, _sentence)[int(random.integers(2))](random, person, view)}"
        if count_tokens(more) > wanted:
            break
        text = more
    for phrase in phrases_of(random, person):
        if count_tokens(f"{text}, {phrase}") <= wanted:
            text = f"{text}, {phrase}"
    return text


Points = tuple[float, ...]


class Shape(NamedTuple):
    """One shape; coordinates in shares of the image's side."""

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
    """Draw `thing` into a square image of `side` pixels."""
    for shape in thing.shapes:
        points = [point * side for point in shape.points]
        draw = {"ellipse": canvas.ellipse, "rectangle": canvas.rectangle, "polygon": canvas.polygon}[shape.kind]
        draw(points, fill=main if shape.paint == "main" else second, outline=INK)
