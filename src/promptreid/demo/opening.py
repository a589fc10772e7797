"""What the page shows before anything was asked."""

from dataclasses import dataclass, field

from promptreid.demo.desk import Captioned, Column, Desk
from promptreid.demo.phrases import best_phrase, phrases_of

FEW_PICTURES = 6


@dataclass(frozen=True)
class Opening:
    """The first gallery's first example with its answer; all empty where the gallery knows no sentence.

    Attributes:
        gallery: The gallery.
        sentence: The example.
        columns: Its answer.
        phrases: What can be looked for in the pictures.
        phrase: The one that is looked for.
        maps: Where it is in the best picture.
    """

    gallery: str
    sentence: str = ""
    columns: tuple[Column, ...] = ()
    phrases: list[str] = field(default_factory=list[str])
    phrase: str | None = None
    maps: list[Captioned] = field(default_factory=list[Captioned])


def open_with(desk: Desk) -> Opening:
    """Ask the first example once, for every visitor."""
    gallery = desk.galleries[0]
    sentence = next(iter(desk.examples(gallery, count=1)), "")
    if not sentence:
        return Opening(gallery)
    columns, phrases = tuple(desk.search(gallery, sentence, k=FEW_PICTURES)), phrases_of(sentence)
    phrase = best_phrase(phrases)
    maps = desk.heat_maps(gallery, columns[0].places[0], phrase) if phrase else []
    return Opening(gallery, sentence, columns, phrases, phrase, maps)
