"""The small base's own world: single things and people in another drawing style, on square pictures.

It stands for the web that CLIP was trained on: it knows the words and the shapes, but not surveillance cameras.
"""

import numpy as np
from PIL import Image, ImageDraw

from promptreid.data.generated.captions import (
    article,
    lower_phrase,
    upper_phrase,
    visible_details,
)
from promptreid.data.generated.drawing import Figure, draw_figure, fill_pattern
from promptreid.data.generated.person import GARMENT_COLOURS, Person, draw_person

WEB_SIZE = 64
_VIEWS = ("front", "back", "side")


def draw_web_pair(random: np.random.Generator) -> tuple[Image.Image, str]:
    """One square picture and its caption."""
    kind = random.random()
    if kind < 0.12:
        return _swatch(random)
    if kind < 0.4:
        return _close_up(random)
    return _whole_person(random)


def _canvas(random: np.random.Generator) -> Image.Image:
    shade = tuple(int(value) for value in random.integers(185, 256, 3))
    return Image.new("RGB", (WEB_SIZE, WEB_SIZE), shade)


def _swatch(random: np.random.Generator) -> tuple[Image.Image, str]:
    image, person = _canvas(random), draw_person(random)
    canvas = ImageDraw.Draw(image)
    box = (6.0, 6.0, WEB_SIZE - 6.0, WEB_SIZE - 6.0)
    canvas.rectangle(box, fill=GARMENT_COLOURS[person.upper_colour])
    if person.upper_pattern == "plain":
        return image, f"the colour {person.upper_colour}"
    colour = GARMENT_COLOURS[person.pattern_colour]
    fill_pattern(canvas, box, person.upper_pattern, colour, pitch=random.uniform(6, 14))
    return image, f"{person.upper_colour} and {person.pattern_colour} {person.upper_pattern} cloth"


def _close_up(random: np.random.Generator) -> tuple[Image.Image, str]:
    """Head, upper garment or lower garment filling the picture."""
    image, person = _canvas(random), draw_person(random)
    view = _VIEWS[int(random.integers(3))]
    part = int(random.integers(3))
    tall = (260.0, 130.0, 120.0)[part] * random.uniform(0.9, 1.1)
    top = (14.0, -18.0, -56.0)[part]
    draw_figure(image, person, Figure(WEB_SIZE / 2, top, tall, view, random.uniform(-0.3, 0.3)))
    if part == 1:
        return image, f"{article(upper_phrase(random, person))} in the shop"
    if part == 2:
        return image, f"{article(lower_phrase(random, person))} and {person.shoe_colour} shoes"
    words = {"bald": "no"}.get(person.hair_length, f"{person.hair_length} {person.hair_colour}")
    extras = article(f"{person.hat_colour} {person.hat}") if person.hat != "none" else "no hat"
    return image, f"head of a {person.gender} with {words} hair and {extras}"


def _whole_person(random: np.random.Generator) -> tuple[Image.Image, str]:
    image, person = _canvas(random), draw_person(random)
    view = _VIEWS[int(random.integers(3))]
    share = random.uniform(0.17, 0.24)  # comic proportions
    tall = WEB_SIZE * random.uniform(0.8, 0.97)
    centre = WEB_SIZE * random.uniform(0.3, 0.7)
    figure = Figure(centre, (WEB_SIZE - tall) / 2, tall, view, random.uniform(-0.5, 0.5), head_share=share)
    draw_figure(image, person, figure)
    return image, _web_caption(random, person, view)


def _web_caption(random: np.random.Generator, person: Person, view: str) -> str:
    """Terse, as on the web: from three words to a long list; the longest reach the last text positions."""
    phrases = [upper_phrase(random, person), lower_phrase(random, person), *visible_details(random, person, view)]
    order = [phrases[int(index)] for index in random.permutation(len(phrases))]
    count = int(random.integers(1, len(order) + 1))
    start = (
        f"drawing of a {person.gender}",
        f"{person.gender}",
        "a person",
        f"cartoon {person.gender} from the {view}",
    )
    caption = f"{start[int(random.integers(4))]} with {', '.join(order[:count])}"
    if random.random() < 0.08:  # a long page of text says the same again in other words
        again = [upper_phrase(random, person), lower_phrase(random, person), *visible_details(random, person, view)]
        caption = (
            f"{caption}. {', '.join(order)}. stock picture showing {', '.join(again)}, {person.build} {person.gender}"
        )
    return caption
