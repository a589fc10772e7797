"""The small base's own world: single things and paper dolls on square pictures.

It stands for the web that CLIP was trained on: it knows the words, but neither the street nor its cameras.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from promptreid.synthetic.doll import Doll, mix_paint, reach_of
from promptreid.synthetic.doll_body import draw_doll, draw_doll_part
from promptreid.synthetic.palette import WEB_COLOURS, tint
from promptreid.synthetic.patterns import fill_pattern
from promptreid.synthetic.person import BAGS, GLASSES, HATS, NONE, Person, draw_person, pick
from promptreid.synthetic.sight import as_seen
from promptreid.synthetic.things import THINGS, draw_thing
from promptreid.synthetic.web_captions import web_caption
from promptreid.synthetic.words import (
    PATTERN_ADJECTIVES,
    article,
    bag_phrase,
    colour_word,
    glasses_phrase,
    hair_phrase,
    hat_phrase,
    lower_phrase,
    shoe_phrase,
    skin_phrase,
    subject_phrase,
    upper_phrase,
)

WEB_SIZE = 64
VIEWS = ("front", "back", "side")
_DRAWN = 2 * WEB_SIZE  # drawn at twice the size and halved, for smooth edges
_PLACES = ("in the shop", "for sale", "on a plain background", "new", "isolated")


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
    """One square picture of 64 x 64 pixels and its caption, of 2 to 60 tokens."""
    kind = float(random.random()) / (1 - world.people)
    image = Image.new("RGB", (_DRAWN, _DRAWN), tuple(int(value) for value in random.integers(185, 256, 3)))
    if kind >= 1:
        return _whole_person(random, image, world)
    draw = _swatch if kind < 1 / 7 else _thing if kind < 1 / 3 else _part
    caption = draw(random, image)
    return image.reduce(2), caption


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
    """Head, hat, upper garment, lower garment, shoes or bag, filling the picture."""
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
    return f"{words} {pick(random, _PLACES)}" if random.random() < 0.6 else words


_PART_CAPTIONS: dict[str, Callable[[np.random.Generator, Person], str]] = {
    "head": _head_caption,
    "upper": lambda random, person: _shop(random, article(upper_phrase(random, person).text)),
    "lower": lambda random, person: _shop(random, lower_phrase(random, person).text),
    "shoes": lambda random, person: _shop(random, f"a pair of {shoe_phrase(random, person).text}"),
    "bag": lambda random, person: _shop(random, article(bag_phrase(random, person).text)),
    "hat": lambda random, person: _shop(random, article(hat_phrase(random, person).text)),
}
