"""Captions: the words for what people look like, an annotator's sentences, and the lists that the web writes."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from numpy.random import Generator, default_rng

from promptreid.synthetic.pen import HAIR_COLOURS
from promptreid.synthetic.person import NONE, SHOE_COLOURS, Person, draw_person, pick
from promptreid.synthetic.scenes import Caption, Scene, draw_scene

SUBJECTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("man", "child"): ("boy",), ("woman", "child"): ("girl",),
    ("man", "adult"): ("man", "man", "guy", "male", "gentleman"),
    ("woman", "adult"): ("woman", "woman", "lady", "female"),
    ("man", "elderly"): ("old man", "elderly man", "elderly gentleman"),
    ("woman", "elderly"): ("old woman", "elderly woman", "elderly lady"),
}  # fmt: skip
NEUTRAL_SUBJECTS: dict[str, tuple[str, ...]] = {
    "child": ("child", "kid"), "adult": ("person",), "elderly": ("elderly person", "old person"),
}  # fmt: skip
# "top" is what is left of a shirt, hoodie or sweater whose neck is hidden.
UPPER_WORDS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirt", "tee shirt", "short sleeved shirt"),
    "shirt": ("shirt", "button up shirt", "collared shirt"), "jacket": ("jacket", "zip jacket"),
    "coat": ("coat", "long coat", "overcoat"), "hoodie": ("hoodie", "hooded sweatshirt"),
    "sweater": ("sweater", "pullover", "jumper"), "tank top": ("tank top", "sleeveless top"),
    "top": ("top", "long sleeved top"),
}  # fmt: skip
LOWER_WORDS: dict[str, tuple[str, ...]] = {
    "trousers": ("trousers", "pants", "slacks"), "jeans": ("jeans", "denim pants"),
    "shorts": ("shorts", "short pants"), "skirt": ("skirt",), "leggings": ("leggings", "tight pants"),
}  # fmt: skip
PATTERN_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "striped": ("striped",), "checked": ("checked", "plaid", "checkered"), "dotted": ("dotted", "spotted"),
}  # fmt: skip
PATTERN_NOUNS: dict[str, tuple[str, ...]] = {
    "striped": ("stripes",), "checked": ("checks",), "dotted": ("dots", "spots"),
    "printed": ("logo", "print", "design"),
}  # fmt: skip
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"), "blond": ("blond", "blonde", "fair"), "beige": ("beige", "tan", "cream"),
    "purple": ("purple", "violet"),
}  # fmt: skip
BUILD_WORDS: dict[str, tuple[str, ...]] = {
    "slim": ("slim", "thin"), "average": ("",), "heavy": ("heavy set", "stout", "chubby"),
}  # fmt: skip
SKIN_WORDS: dict[str, str] = {
    "very light": "pale", "light": "light", "medium": "olive", "brown": "brown", "dark": "dark",
}  # fmt: skip
SHOE_WORDS: dict[str, tuple[str, ...]] = {
    "shoes": ("shoes",), "sneakers": ("sneakers", "trainers"), "boots": ("boots",),
    "sandals": ("sandals", "open shoes"),
}  # fmt: skip
BAG_WORDS: dict[str, tuple[str, ...]] = {
    "backpack": ("backpack", "rucksack"), "handbag": ("handbag", "purse"),
    "shoulder bag": ("shoulder bag", "messenger bag"),
}  # fmt: skip
HAT_WORDS: dict[str, tuple[str, ...]] = {
    "cap": ("cap", "baseball cap"), "beanie": ("beanie", "knitted cap"), "hat": ("hat",),
}  # fmt: skip
GLASSES_WORDS: dict[str, tuple[str, ...]] = {
    "glasses": ("glasses", "eyeglasses"),
    "sunglasses": ("sunglasses", "dark glasses"),
}


_STRANGERS = 7_919  # beside a seed: other people than those of `write_generated` with it


class Phrase(NamedTuple):
    """Some words and the attributes of a person that they name."""

    text: str
    attributes: tuple[str, ...]


def colour_word(random: Generator, name: str) -> str:
    """A word for a colour."""
    return pick(random, COLOUR_WORDS.get(name, (name,)))


def article(phrase: str) -> str:
    """`a` or `an` and the phrase; plural garments take none."""
    head = phrase.split(" with ")[0].split(" over ")[0]
    if head.endswith(("s", "hair", "skin")) and not head.endswith("ss"):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def subject_phrase(random: Generator, person: Person, *, neutral: float = 0.2) -> Phrase:
    """Who it is, such as `slim elderly lady`; with probability `neutral` without a word for gender."""
    attributes: tuple[str, ...] = ("age",) if person.age != "adult" else ()
    if random.random() < neutral:
        noun = pick(random, NEUTRAL_SUBJECTS[person.age])
    else:
        noun = pick(random, SUBJECTS[person.gender, person.age])
        attributes = ("gender", *attributes)
    build = pick(random, BUILD_WORDS[person.build]) if random.random() < 0.4 else ""
    return Phrase(f"{build} {noun}", ("build", *attributes)) if build else Phrase(noun, attributes)


def upper_phrase(random: Generator, person: Person, *, inner: float = 0.6) -> Phrase:
    """Name the upper garment, such as `red and white striped shirt` or `blue jacket over a white shirt`."""
    colour, noun = colour_word(random, person.upper_colour), pick(random, UPPER_WORDS[person.upper_kind])
    text, attributes = f"{colour} {noun}", ("upper_kind", "upper_colour")
    if person.upper_pattern != "plain":
        second, pattern = colour_word(random, person.pattern_colour), person.upper_pattern
        attributes += ("upper_pattern", "pattern_colour")
        if pattern in PATTERN_ADJECTIVES and random.random() < 0.6:
            text = f"{colour} and {second} {pick(random, PATTERN_ADJECTIVES[pattern])} {noun}"
        else:
            text += f" with {article(f'{second} {pick(random, PATTERN_NOUNS[pattern])}')}"
    if person.inner_colour != NONE and random.random() < inner:
        text += f" over {article(colour_word(random, person.inner_colour))} shirt"
        attributes += ("inner_colour",)
    return Phrase(text, attributes)


_Namer = Callable[[Generator, Person], Phrase]


def _coloured(kind: str, colour: str, words: Mapping[str, tuple[str, ...]]) -> _Namer:
    """The phrase for one thing that a person has, such as `black trousers`."""

    def phrase(random: Generator, person: Person) -> Phrase:
        name = colour_word(random, getattr(person, colour))
        return Phrase(f"{name} {pick(random, words[getattr(person, kind)])}", (kind, colour))

    return phrase


lower_phrase: _Namer = _coloured("lower_kind", "lower_colour", LOWER_WORDS)
shoe_phrase: _Namer = _coloured("shoe_kind", "shoe_colour", SHOE_WORDS)
bag_phrase: _Namer = _coloured("bag", "bag_colour", BAG_WORDS)
hat_phrase: _Namer = _coloured("hat", "hat_colour", HAT_WORDS)


def hair_phrase(random: Generator, person: Person) -> Phrase:
    """Name the hair, or that there is none."""
    if person.hair_length == "bald":
        return Phrase(pick(random, ("bald head", "shaved head")), ("hair_length",))
    colour = colour_word(random, person.hair_colour)
    return Phrase(f"{person.hair_length} {colour} hair", ("hair_length", "hair_colour"))


def glasses_phrase(random: Generator, person: Person) -> Phrase:
    """Name the glasses, which the person must have."""
    return Phrase(pick(random, GLASSES_WORDS[person.glasses]), ("glasses",))


def skin_phrase(person: Person) -> Phrase:
    """Name the tone of the skin."""
    return Phrase(f"{SKIN_WORDS[person.skin]} skin", ("skin",))


def _other_phrases(random: Generator, person: Person, *, skin: float) -> list[tuple[str, Phrase]]:
    """Phrases for what a person has beside garments, each with its manner; skin tone with that probability."""
    things = (
        ("wears", person.shoe_kind, shoe_phrase),
        ("has", person.hair_length, hair_phrase),
        ("wears", person.hat, hat_phrase),
        ("wears", person.glasses, glasses_phrase),
        ("carries", person.bag, bag_phrase),
    )
    found = [(manner, phrase(random, person)) for manner, kind, phrase in things if kind != NONE]
    return [*found, ("has", skin_phrase(person))] if random.random() < skin else found


VERBS = ("is wearing", "wears", "is dressed in", "has on")
VIEW_WORDS = {
    "front": ("walking towards the camera", "facing the camera", "seen from the front"),
    "back": ("walking away from the camera", "facing away", "seen from behind"),
    "side": ("seen from the side", "walking past", "in profile"),
}  # fmt: skip
CARRY_WORDS = ("carrying", "holding")
# What annotators write to fill a line; true of every image.
OPENERS = ("in this picture", "in the image", "here")
ENDINGS = ("while walking along the street", "on the way somewhere", "and seems to be in a hurry", "and is outside")
MEDIA = ("drawing of", "cartoon of", "picture of", "sketch of", "paper doll of")
MAX_TOKENS = 60
_IN_PIECES = {"checkered", "rucksack", "eyeglasses", "sleeved", "collared", "slacks", "overcoat"}  # two pieces each


def count_tokens(text: str) -> int:
    """Words and punctuation marks: what CLIP's tokenizer makes of them, without its start and end."""
    pieces = re.findall(r"[a-z]+|[^a-z\s]", text.lower())
    return len(pieces) + sum(word in _IN_PIECES for word in pieces)


def join(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


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


def describe(random: Generator, scene: Scene) -> Caption:
    """Caption an image: details left out, in some order, occasionally one of them wrong."""
    seen = scene.seen
    believed = _mistake(random, seen) if random.random() < MISTAKE_RATE else seen
    draft = _Draft(random, believed, scene.view)
    text = draft.write()
    said = {attribute: str(getattr(believed, attribute)) for attribute in draft.attributes}
    mistakes = tuple(name for name, value in said.items() if value != getattr(seen, name))
    return Caption(text.lower() if random.random() < 0.1 else text, said, mistakes)


def describe_people(count: int, *, seed: int = 0) -> list[str]:
    """Sentences about people who exist nowhere, as an annotator would write them: what a search in vain looks like.

    Args:
        count: How many.
        seed: Of the people; nothing that is drawn has the same.

    Example:
        >>> describe_people(2) == describe_people(3)[:2]
        True
    """
    random = default_rng([seed, _STRANGERS])
    sentences: list[str] = []
    for _ in range(count):
        person, view = draw_person(random), pick(random, VIEW_WORDS)
        sentences.append(describe(random, draw_scene(random, person, camera="", view=view, sharp=True, gap=1.0)).text)
    return sentences


def _mistake(random: Generator, seen: Person) -> Person:
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

    def __init__(self, random: Generator, person: Person, view: str) -> None:
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
        """Details beside the garments: (manner, phrase), in random order, some left out."""
        random = self.random
        found = _other_phrases(random, self.person, skin=0.2)
        chosen = [detail for detail in found if random.random() < self.detail]
        return [chosen[int(index)] for index in random.permutation(len(chosen))]

    def opening(self, details: list[tuple[str, Phrase]]) -> str:
        """The first sentence: who wears what; occasionally includes a detail."""
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


def phrases_of(random: Generator, person: Person) -> list[str]:
    """Everything that `person` (as seen) has, in random order."""
    garments = [upper_phrase(random, person), lower_phrase(random, person)]
    found = [*garments, *(phrase for _, phrase in _other_phrases(random, person, skin=0.3))]
    phrases = [article(phrase.text) for phrase in found]
    return [phrases[int(index)] for index in random.permutation(len(phrases))]


def web_description(random: Generator, person: Person, view: str) -> str:
    """Caption a person whom it should tell from others: the web's list with most of what there is to see."""
    subject = subject_phrase(random, person).text
    start = (
        f"{pick(random, MEDIA)} {article(subject)}"
        if random.random() < 0.5
        else f"{subject} {pick(random, VIEW_WORDS[view])}"
    )
    phrases = phrases_of(random, person)
    kept = phrases[: max(3, round(len(phrases) * float(random.uniform(0.5, 1.0))))]
    return f"{start}, {', '.join(kept)}"
