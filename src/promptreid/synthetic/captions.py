"""Says what a picture shows as an annotator would: in sentences of varied order and length, not always right."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from promptreid.synthetic.palette import HAIR_COLOURS
from promptreid.synthetic.person import NONE, SHOE_COLOURS, Person, pick
from promptreid.synthetic.scene import Scene
from promptreid.synthetic.words import (
    CARRY_WORDS,
    ENDINGS,
    MAX_TOKENS,
    OPENERS,
    VERBS,
    VIEW_WORDS,
    Phrase,
    article,
    bag_phrase,
    count_tokens,
    glasses_phrase,
    hair_phrase,
    hat_phrase,
    join,
    lower_phrase,
    shoe_phrase,
    skin_phrase,
    subject_phrase,
    upper_phrase,
)

MISTAKE_RATE = 0.08
_CONFUSED = {
    "black": ("blue", "brown", "grey"), "white": ("grey", "beige"), "grey": ("black", "white", "blue"),
    "red": ("orange", "pink"), "blue": ("black", "purple"), "green": ("grey", "blue"), "yellow": ("orange", "beige"),
    "orange": ("red", "yellow"), "purple": ("blue", "pink"), "pink": ("red", "purple"), "brown": ("black", "red"),
    "beige": ("white", "yellow"), "blond": ("brown", "grey"),
    "t-shirt": ("shirt", "tank top"), "shirt": ("t-shirt", "sweater"), "jacket": ("coat",), "coat": ("jacket",),
    "hoodie": ("sweater", "jacket"), "sweater": ("hoodie", "shirt"), "tank top": ("t-shirt",), "top": ("t-shirt",),
    "trousers": ("leggings",), "jeans": ("trousers",), "shorts": ("skirt",), "skirt": ("shorts",),
    "leggings": ("trousers",), "slim": ("average",), "average": ("slim", "heavy"), "heavy": ("average",),
}  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """A caption and what it says.

    Attributes:
        text: The sentence or sentences.
        said: Attribute of the person to the value that the caption gives it.
        mistakes: Those attributes whose value is wrong, on purpose.
    """

    text: str
    said: dict[str, str]
    mistakes: tuple[str, ...]


def describe(random: np.random.Generator, scene: Scene) -> Caption:
    """Caption a picture: details left out, in some order, now and then one of them wrong."""
    seen = scene.seen
    believed = _mistake(random, seen) if random.random() < MISTAKE_RATE else seen
    draft = _Draft(random, believed, scene.view)
    text = draft.write()
    said = {attribute: str(getattr(believed, attribute)) for attribute in draft.attributes}
    mistakes = tuple(name for name, value in said.items() if value != getattr(seen, name))
    return Caption(text.lower() if random.random() < 0.1 else text, said, mistakes)


def _mistake(random: np.random.Generator, seen: Person) -> Person:
    """`seen` with one colour, kind or the build taken for another."""
    colours = [name for name in ("upper_colour", "lower_colour", "shoe_colour", "bag_colour", "hat_colour",
                                 "hair_colour") if getattr(seen, name) != NONE]  # fmt: skip
    attribute = pick(random, [*colours, "upper_kind", "lower_kind", "build"])
    options: Iterable[str] = _CONFUSED[str(getattr(seen, attribute))]
    if attribute == "shoe_colour":
        options = [name for name in options if name in SHOE_COLOURS] or ("black", "grey")
    elif attribute == "hair_colour":
        options = [name for name in options if name in HAIR_COLOURS] or ("black",)
    elif attribute == "upper_colour":  # cloth, its pattern and what is below it stay different colours
        options = [name for name in options if name not in (seen.pattern_colour, seen.inner_colour)] or ("grey",)
    believed = replace(seen, **{attribute: pick(random, options)})
    return replace(believed, inner_colour=NONE) if attribute == "upper_kind" else believed


class _Draft:
    """Writes one caption and notes the attributes that it names."""

    def __init__(self, random: np.random.Generator, person: Person, view: str) -> None:
        self.random, self.person, self.view = random, person, view
        self.attributes: list[str] = []
        # Terse, usual and wordy annotators.
        self.detail, self.padding = ((0.3, 0.0), (0.65, 0.12), (0.97, 0.75))[
            int(random.choice(3, p=(0.36, 0.48, 0.16)))
        ]

    def write(self) -> str:
        """The caption; sentences that would make it too long are left out."""
        details = self.details()
        text = self.opening(details)
        while details:
            before = len(self.attributes)
            sentence = self.sentence(details)
            if count_tokens(f"{text} {sentence}") > MAX_TOKENS:
                del self.attributes[before:]
                break
            text = f"{text} {sentence}"
        if self.chance(self.padding):
            longer = f"{text[:-1]}, {pick(self.random, ENDINGS)}."
            text = longer if count_tokens(longer) <= MAX_TOKENS else text
        return text

    def details(self) -> list[tuple[str, Phrase]]:
        """What may be told beside the garments: (manner, phrase), in random order, some left out."""
        random, person = self.random, self.person
        found: list[tuple[str, Phrase]] = []
        if person.shoe_kind != NONE:
            found.append(("wears", shoe_phrase(random, person)))
        if person.hair_length != NONE:
            found.append(("has", hair_phrase(random, person)))
        if person.hat != NONE:
            found.append(("wears", hat_phrase(random, person)))
        if person.glasses != NONE:
            found.append(("wears", glasses_phrase(random, person)))
        if person.bag != NONE:
            found.append(("carries", bag_phrase(random, person)))
        if random.random() < 0.2:
            found.append(("has", skin_phrase(person)))
        chosen = [detail for detail in found if random.random() < self.detail]
        return [chosen[int(index)] for index in random.permutation(len(chosen))]

    def opening(self, details: list[tuple[str, Phrase]]) -> str:
        """The first sentence: who wears what; takes a detail along now and then."""
        random = self.random
        subject = self.note(subject_phrase(random, self.person))
        self.pronoun, self.owner = self.pronouns()
        who = f"the {subject}" if self.chance(0.3) else article(subject)
        if self.chance(0.3):
            who += f" {pick(random, VIEW_WORDS[self.view])}"
        worn = [self.garment(upper_phrase(random, self.person)), self.garment(lower_phrase(random, self.person))]
        if self.chance(0.25):
            worn.reverse()
        if details and details[0][0] == "wears" and self.chance(0.5):
            worn.append(self.garment(details.pop(0)[1]))
        text = f"{who} {pick(random, VERBS)} {join(worn)}"
        if details and details[0][0] == "carries" and self.chance(0.5):
            text += f", {pick(random, CARRY_WORDS)} {self.garment(details.pop(0)[1])}"
        if self.chance(self.padding):
            text = f"{pick(random, OPENERS)} {text}"
        return f"{text[0].upper()}{text[1:]}."

    def sentence(self, details: list[tuple[str, Phrase]]) -> str:
        """A further sentence; takes up to three details of one manner off the list."""
        manner = details[0][0]
        chosen = [detail for detail in details if detail[0] == manner][:3]
        details[:] = [detail for detail in details if detail not in chosen]
        phrases = [self.garment(phrase) for _, phrase in chosen]
        also = "also " if self.chance(self.padding) else ""
        if manner == "carries":
            return f"{self.pronoun} is {also}{pick(self.random, CARRY_WORDS)} {join(phrases)}."
        if manner == "has":
            return f"{self.pronoun} {also}has {join(phrases)}."
        if len(chosen) == 1 and chosen[0][1].attributes[0] == "shoe_kind" and self.chance(0.4):
            return f"{self.owner} shoes are a pair of {phrases[0]}."
        ending = f" with {join(phrases)}" if also else f" {join(phrases)}"
        return f"{self.pronoun} {'can be seen' if also else 'wears'}{ending}."

    def pronouns(self) -> tuple[str, str]:
        """`He` and `His`, or words without gender where the subject has none."""
        if "gender" not in self.attributes:
            return "The person", "The"
        return ("He", "His") if self.person.gender == "man" else ("She", "Her")

    def garment(self, phrase: Phrase) -> str:
        """The phrase with its article, which the hurried forget."""
        return self.note(phrase) if self.chance(0.05) else article(self.note(phrase))

    def note(self, phrase: Phrase) -> str:
        """The phrase's words; its attributes have been named."""
        self.attributes.extend(phrase.attributes)
        return phrase.text

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return bool(self.random.random() < probability)
