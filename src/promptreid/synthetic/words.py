"""The words for what people look like, shared by the web's captions and the annotators'."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from promptreid.synthetic.person import NONE, Person, pick

SUBJECTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("man", "child"): ("boy",),
    ("woman", "child"): ("girl",),
    ("man", "adult"): ("man", "man", "guy", "male", "gentleman"),
    ("woman", "adult"): ("woman", "woman", "lady", "female"),
    ("man", "elderly"): ("old man", "elderly man", "elderly gentleman"),
    ("woman", "elderly"): ("old woman", "elderly woman", "elderly lady"),
}
NEUTRAL_SUBJECTS: dict[str, tuple[str, ...]] = {
    "child": ("child", "kid"),
    "adult": ("person",),
    "elderly": ("elderly person", "old person"),
}
UPPER_WORDS: dict[str, tuple[str, ...]] = {
    "t-shirt": ("t-shirt", "tee shirt", "short sleeved shirt"),
    "shirt": ("shirt", "button up shirt", "collared shirt"),
    "jacket": ("jacket", "zip jacket"),
    "coat": ("coat", "long coat", "overcoat"),
    "hoodie": ("hoodie", "hooded sweatshirt"),
    "sweater": ("sweater", "pullover", "jumper"),
    "tank top": ("tank top", "sleeveless top"),
    "top": ("top", "long sleeved top"),  # what is left of a shirt, hoodie or sweater whose neck is hidden
}
LOWER_WORDS: dict[str, tuple[str, ...]] = {
    "trousers": ("trousers", "pants", "slacks"),
    "jeans": ("jeans", "denim pants"),
    "shorts": ("shorts", "short pants"),
    "skirt": ("skirt",),
    "leggings": ("leggings", "tight pants"),
}
PATTERN_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "striped": ("striped",),
    "checked": ("checked", "plaid", "checkered"),
    "dotted": ("dotted", "spotted"),
}
PATTERN_NOUNS: dict[str, tuple[str, ...]] = {
    "striped": ("stripes",),
    "checked": ("checks",),
    "dotted": ("dots", "spots"),
    "printed": ("logo", "print", "design"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"),
    "blond": ("blond", "blonde", "fair"),
    "beige": ("beige", "tan", "cream"),
    "purple": ("purple", "violet"),
}
BUILD_WORDS: dict[str, tuple[str, ...]] = {
    "slim": ("slim", "thin"),
    "average": ("",),
    "heavy": ("heavy set", "stout", "chubby"),
}
SKIN_WORDS: dict[str, str] = {
    "very light": "pale",
    "light": "light",
    "medium": "olive",
    "brown": "brown",
    "dark": "dark",
}
SHOE_WORDS: dict[str, tuple[str, ...]] = {
    "shoes": ("shoes",),
    "sneakers": ("sneakers", "trainers"),
    "boots": ("boots",),
    "sandals": ("sandals", "open shoes"),
}
BAG_WORDS: dict[str, tuple[str, ...]] = {
    "backpack": ("backpack", "rucksack"),
    "handbag": ("handbag", "purse"),
    "shoulder bag": ("shoulder bag", "messenger bag"),
}
HAT_WORDS: dict[str, tuple[str, ...]] = {
    "cap": ("cap", "baseball cap"),
    "beanie": ("beanie", "knitted cap"),
    "hat": ("hat",),
}
GLASSES_WORDS: dict[str, tuple[str, ...]] = {
    "glasses": ("glasses", "eyeglasses"),
    "sunglasses": ("sunglasses", "dark glasses"),
}


class Phrase(NamedTuple):
    """Some words and the attributes of a person that they name."""

    text: str
    attributes: tuple[str, ...]


def colour_word(random: np.random.Generator, name: str) -> str:
    """A word for a colour."""
    return pick(random, COLOUR_WORDS.get(name, (name,)))


def article(phrase: str) -> str:
    """`a` or `an` and the phrase; plural garments take none."""
    head = phrase.split(" with ")[0].split(" over ")[0]
    if head.endswith(("s", "hair", "skin")) and not head.endswith("ss"):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def subject_phrase(random: np.random.Generator, person: Person, *, neutral: float = 0.2) -> Phrase:
    """Who it is, such as `slim elderly lady`; with probability `neutral` without a word for gender."""
    attributes: tuple[str, ...] = ("age",) if person.age != "adult" else ()
    if random.random() < neutral:
        noun = pick(random, NEUTRAL_SUBJECTS[person.age])
    else:
        noun = pick(random, SUBJECTS[person.gender, person.age])
        attributes = ("gender", *attributes)
    build = pick(random, BUILD_WORDS[person.build]) if random.random() < 0.4 else ""
    return Phrase(f"{build} {noun}", ("build", *attributes)) if build else Phrase(noun, attributes)


def upper_phrase(random: np.random.Generator, person: Person, *, inner: float = 0.6) -> Phrase:
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


def lower_phrase(random: np.random.Generator, person: Person) -> Phrase:
    """Name the lower garment, such as `black trousers`."""
    colour = colour_word(random, person.lower_colour)
    return Phrase(f"{colour} {pick(random, LOWER_WORDS[person.lower_kind])}", ("lower_kind", "lower_colour"))


def shoe_phrase(random: np.random.Generator, person: Person) -> Phrase:
    """Name the shoes."""
    colour = colour_word(random, person.shoe_colour)
    return Phrase(f"{colour} {pick(random, SHOE_WORDS[person.shoe_kind])}", ("shoe_kind", "shoe_colour"))


def bag_phrase(random: np.random.Generator, person: Person) -> Phrase:
    """Name the bag, which the person must have."""
    colour = colour_word(random, person.bag_colour)
    return Phrase(f"{colour} {pick(random, BAG_WORDS[person.bag])}", ("bag", "bag_colour"))


def hat_phrase(random: np.random.Generator, person: Person) -> Phrase:
    """Name the hat, which the person must have."""
    colour = colour_word(random, person.hat_colour)
    return Phrase(f"{colour} {pick(random, HAT_WORDS[person.hat])}", ("hat", "hat_colour"))


def hair_phrase(random: np.random.Generator, person: Person) -> Phrase:
    """Name the hair, or that there is none."""
    if person.hair_length == "bald":
        return Phrase(pick(random, ("bald head", "shaved head")), ("hair_length",))
    colour = colour_word(random, person.hair_colour)
    return Phrase(f"{person.hair_length} {colour} hair", ("hair_length", "hair_colour"))


def glasses_phrase(random: np.random.Generator, person: Person) -> Phrase:
    """Name the glasses, which the person must have."""
    return Phrase(pick(random, GLASSES_WORDS[person.glasses]), ("glasses",))


def skin_phrase(person: Person) -> Phrase:
    """Name the tone of the skin."""
    return Phrase(f"{SKIN_WORDS[person.skin]} skin", ("skin",))


VERBS = ("is wearing", "wears", "is dressed in", "has on")
VIEW_WORDS = {
    "front": ("walking towards the camera", "facing the camera", "seen from the front"),
    "back": ("walking away from the camera", "facing away", "seen from behind"),
    "side": ("seen from the side", "walking past", "in profile"),
}
CARRY_WORDS = ("carrying", "holding")
# What annotators write to fill a line; true of every picture.
OPENERS = ("in this picture", "in the image", "here")
ENDINGS = ("while walking along the street", "on the way somewhere", "and seems to be in a hurry", "and is outside")
MAX_TOKENS = 60
_IN_PIECES = {"checkered", "rucksack", "eyeglasses", "sleeved", "collared", "slacks", "overcoat"}  # two pieces each


def count_tokens(text: str) -> int:
    """Words and punctuation marks: what CLIP's tokenizer makes of them, without its start and end."""
    pieces = re.findall(r"[a-z]+|[^a-z\s]", text.lower())
    return len(pieces) + sum(word in _IN_PIECES for word in pieces)


def join(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
