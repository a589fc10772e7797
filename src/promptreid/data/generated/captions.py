"""Says what a picture shows, in sentences of varied order and length."""

from dataclasses import replace

import numpy as np

from promptreid.data.generated.person import Person

_SUBJECTS = {"man": ("man", "man", "guy", "male", "person"), "woman": ("woman", "woman", "lady", "female", "person")}
_UPPER_WORDS = {
    "t-shirt": ("t-shirt", "tee shirt", "short sleeved shirt"),
    "shirt": ("shirt", "button up shirt", "collared shirt"),
    "jacket": ("jacket", "zip jacket"),
    "coat": ("coat", "long coat"),
    "hoodie": ("hoodie", "hooded sweatshirt"),
    "sweater": ("sweater", "pullover", "jumper"),
    "tank top": ("tank top", "sleeveless top"),
    "top": ("top", "long sleeved top"),  # what is left of a shirt, hoodie or sweater whose neck is hidden
}
_LOWER_WORDS = {
    "trousers": ("trousers", "pants", "slacks"),
    "jeans": ("jeans", "denim pants"),
    "shorts": ("shorts", "short pants"),
    "skirt": ("skirt",),
    "leggings": ("leggings", "tight pants"),
}
_PATTERN_WORDS = {"striped": ("striped", "stripes"), "checked": ("checked", "plaid"), "dotted": ("dotted", "spotted")}
_COLOUR_WORDS = {
    "grey": ("grey", "gray"),
    "blond": ("blond", "fair"),
    "beige": ("beige", "tan"),
    "purple": ("purple", "violet"),
}
_BUILD_WORDS = {"slim": ("slim", "thin"), "average": ("",), "heavy": ("heavy set", "stout")}


def _pick(random: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(random.integers(len(options)))]


def _colour(random: np.random.Generator, name: str) -> str:
    return _pick(random, _COLOUR_WORDS.get(name, (name,)))


def upper_phrase(random: np.random.Generator, person: Person) -> str:
    """Name the upper garment, such as `red and white striped shirt`."""
    words = _colour(random, person.upper_colour)
    if person.upper_pattern != "plain":
        words += f" and {_colour(random, person.pattern_colour)} {_PATTERN_WORDS[person.upper_pattern][0]}"
    return f"{words} {_pick(random, _UPPER_WORDS[person.upper_kind])}"


def lower_phrase(random: np.random.Generator, person: Person) -> str:
    """Name the lower garment, such as `black trousers`."""
    return f"{_colour(random, person.lower_colour)} {_pick(random, _LOWER_WORDS[person.lower_kind])}"


def article(phrase: str) -> str:
    """`a` or `an` and the phrase; plural garments take none."""
    if phrase.endswith("s") and not phrase.endswith("ss"):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def visible_details(random: np.random.Generator, person: Person, view: str) -> list[str]:
    """Phrases for everything else that this view shows, in random order."""
    details = [f"{person.shoe_colour} shoes"]
    if person.hair_length == "bald":
        if person.hat == "none":
            details.append("a bald head")
    else:
        details.append(f"{person.hair_length} {_colour(random, person.hair_colour)} hair")
    if person.hat != "none":
        details.append(article(f"{_colour(random, person.hat_colour)} {person.hat}"))
    if person.glasses and view != "back":
        details.append(_pick(random, ("glasses", "dark glasses")))
    if person.bag == "backpack" and view != "front":
        details.append(article(f"{_colour(random, person.bag_colour)} {_pick(random, ('backpack', 'rucksack'))}"))
    elif person.bag in ("handbag", "shoulder bag"):
        details.append(article(f"{_colour(random, person.bag_colour)} {person.bag}"))
    return [details[int(index)] for index in random.permutation(len(details))]


def as_seen(person: Person, view: str) -> Person:
    """`person` with kinds that this view does not tell apart put into the kind that it does show."""
    if view == "back" and person.hat != "none":
        person = replace(person, hat="hat")  # a cap's brim points away
    # Collar, hood and plain neck are all that tells these three apart, and long hair falls over them.
    neck_hidden = view != "front" and person.hair_length == "long"
    if neck_hidden and person.upper_kind in ("shirt", "hoodie", "sweater"):
        person = replace(person, upper_kind="top")
    return person


def describe(random: np.random.Generator, person: Person, view: str) -> str:
    """A caption as an annotator might write it: some details left out, in some order, sometimes in lower case."""
    person = as_seen(person, view)
    build = _pick(random, _BUILD_WORDS[person.build]) if random.random() < 0.4 else ""
    subject = " ".join(filter(None, (build, _pick(random, _SUBJECTS[person.gender]))))
    upper, lower = article(upper_phrase(random, person)), lower_phrase(random, person)
    lower = article(lower)
    details = [detail for detail in visible_details(random, person, view) if random.random() < 0.75]
    wearing = _pick(random, ("is wearing", "wears", "is dressed in", "has on"))
    tail = f" The person has {_join(details)}." if details else ""
    if random.random() < 0.25:
        lower, upper = upper, lower
    opening = f"{'The' if random.random() < 0.3 else 'A'} {subject}"
    if build == "" and random.random() < 0.3:
        way = {"front": "walking towards the camera", "back": "seen from behind", "side": "seen from the side"}[view]
        opening += f" {way}"
    caption = f"{opening} {wearing} {upper} and {lower}.{tail}"
    return caption.lower() if random.random() < 0.1 else caption


def _join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
