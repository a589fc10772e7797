"""Who a synthetic pedestrian is, and what of it can be seen from one side."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from promptreid.synthetic.pen import GARMENT_COLOURS, HAIR_COLOURS, SKIN_TONES

NONE = "none"
GENDERS = ("man", "woman")
BUILDS = ("slim", "average", "heavy")
UPPER_KINDS = ("t-shirt", "shirt", "jacket", "coat", "hoodie", "sweater", "tank top")
OPEN_KINDS = ("jacket", "coat")
LOWER_KINDS = ("trousers", "jeans", "shorts", "skirt", "leggings")
PATTERNS = ("plain", "striped", "checked", "dotted", "printed")
SHOE_KINDS = ("shoes", "sneakers", "boots", "sandals")
SHOE_COLOURS = ("black", "white", "brown", "red", "grey", "blue")
BAGS = (NONE, "backpack", "handbag", "shoulder bag")
HATS = (NONE, "cap", "beanie", "hat")
GLASSES = (NONE, "glasses", "sunglasses")


@dataclass(frozen=True)
class Person:
    """One identity; kinds and colours are keys of this module's and the palette's tables.

    What a person does not have is `"none"`, so two persons are equal exactly if they look the same. `gender` is what
    annotators call the person (drawn as shape of the body), `pattern_colour` that of stripes, checks, dots or print,
    and `inner_colour` that of the shirt below an open jacket or coat.
    """

    gender: str
    age: str
    build: str
    skin: str
    hair_colour: str
    hair_length: str
    upper_kind: str
    upper_colour: str
    upper_pattern: str
    pattern_colour: str
    inner_colour: str
    lower_kind: str
    lower_colour: str
    shoe_kind: str
    shoe_colour: str
    bag: str
    bag_colour: str
    hat: str
    hat_colour: str
    glasses: str


def pick(random: np.random.Generator, options: Iterable[str], *, other_than: str | None = None) -> str:
    """One of `options`, each as likely, but not `other_than`."""
    names = [name for name in options if name != other_than]
    return names[int(random.integers(len(names)))]


def draw_person(random: np.random.Generator) -> Person:
    """Draw one identity; most attributes are independent, so identities share many of them."""
    gender = pick(random, GENDERS)
    age = pick(random, ("child", "elderly", *["adult"] * 6))
    hair_length = _hair_length(random, gender, age)
    hair_colour = "grey" if age == "elderly" else pick(random, HAIR_COLOURS)
    upper_kind, upper_colour = pick(random, UPPER_KINDS), pick(random, GARMENT_COLOURS)
    pattern = pick(random, ("plain", "plain", *PATTERNS))
    lower_kind = pick(random, LOWER_KINDS if gender == "woman" else LOWER_KINDS[:3])
    bag = pick(random, (NONE, *BAGS))
    hat = pick(random, (NONE, NONE, NONE, *HATS))
    return Person(
        gender=gender,
        age=age,
        build=pick(random, BUILDS),
        skin=pick(random, SKIN_TONES),
        hair_colour=NONE if hair_length == "bald" else hair_colour,
        hair_length=hair_length,
        upper_kind=upper_kind,
        upper_colour=upper_colour,
        upper_pattern=pattern,
        pattern_colour=NONE if pattern == "plain" else pick(random, GARMENT_COLOURS, other_than=upper_colour),
        inner_colour=pick(random, GARMENT_COLOURS, other_than=upper_colour) if upper_kind in OPEN_KINDS else NONE,
        lower_kind=lower_kind,
        lower_colour=pick(random, ("blue", "black", "grey") if lower_kind == "jeans" else GARMENT_COLOURS),
        shoe_kind=pick(random, SHOE_KINDS),
        shoe_colour=pick(random, SHOE_COLOURS),
        bag=bag,
        bag_colour=NONE if bag == NONE else pick(random, GARMENT_COLOURS),
        hat=hat,
        hat_colour=NONE if hat == NONE else pick(random, GARMENT_COLOURS),
        glasses=pick(random, (NONE, *GLASSES)),
    )


def _hair_length(random: np.random.Generator, gender: str, age: str) -> str:
    if gender == "woman":
        return pick(random, ("short", "shoulder length", "long", "long"))
    return pick(random, ("short", "short", "short", "shoulder length", "short" if age == "child" else "bald"))


def near_twin(random: np.random.Generator, person: Person) -> Person:
    """A person who differs from `person` in the colour of one thing that every view shows."""
    attributes = ["upper_colour", "lower_colour", "shoe_colour"]
    if person.upper_pattern in ("striped", "checked", "dotted"):
        attributes.append("pattern_colour")
    if person.bag in ("handbag", "shoulder bag"):
        attributes.append("bag_colour")
    if person.hat != NONE:
        attributes.append("hat_colour")
    attribute = pick(random, attributes)
    options: Iterable[str] = SHOE_COLOURS if attribute == "shoe_colour" else GARMENT_COLOURS
    if attribute == "lower_colour" and person.lower_kind == "jeans":
        options = ("blue", "black", "grey")
    # Cloth and its pattern must stay two colours.
    partner = {"upper_colour": person.pattern_colour, "pattern_colour": person.upper_colour}.get(attribute, NONE)
    now: str = getattr(person, attribute)
    return replace(person, **{attribute: pick(random, [name for name in options if name != partner], other_than=now)})


def as_seen(person: Person, view: str, *, shoes: bool = True, small_things: bool = True) -> Person:
    """`person` without what does not show, with kinds that do not show put into the kind that does.

    `shoes` says whether the feet are in the image, `small_things` whether it is sharp enough for glasses and for the
    kind of shoes. It is what a truthful caption may say; what is hidden is `"none"`.
    """
    changes: dict[str, str] = {}
    if view == "back" and person.hat != NONE:
        changes["hat"] = "hat"  # a cap's brim points away
    if person.hat != NONE and person.hair_length == "bald":
        changes["hair_length"] = NONE
    if view == "back" or not small_things:
        changes["glasses"] = NONE
    if view != "front":
        changes["inner_colour"] = NONE
        if person.upper_pattern == "printed":
            changes |= {"upper_pattern": "plain", "pattern_colour": NONE}
    if person.bag == "backpack" and view == "front":
        changes |= {"bag": NONE, "bag_colour": NONE}
    # Collar, hood and plain neck are all that tells these three apart, and long hair falls over them.
    hairy = person.hair_length in ("long", "shoulder length")
    if view != "front" and hairy and person.upper_kind in ("shirt", "hoodie", "sweater"):
        changes["upper_kind"] = "top"
    if not shoes:
        changes |= {"shoe_kind": NONE, "shoe_colour": NONE}
    elif not small_things:
        changes["shoe_kind"] = "shoes"
    return replace(person, **changes)
