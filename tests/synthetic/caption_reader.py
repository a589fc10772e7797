"""Reads a caption back, from tables of its own: what each word may stand for."""

import re

C = "grey|gray|blonde|blond|fair|beige|tan|cream|purple|violet|black|white|red|blue|green|yellow|orange|pink|brown"
SAME = {"gray": "grey", "blonde": "blond", "fair": "blond", "tan": "beige", "cream": "beige", "violet": "purple"}
UPPER = {
    "short sleeved shirt": "t-shirt", "tee shirt": "t-shirt", "t-shirt": "t-shirt", "button up shirt": "shirt",
    "collared shirt": "shirt", "shirt": "shirt", "zip jacket": "jacket", "jacket": "jacket", "long coat": "coat",
    "overcoat": "coat", "coat": "coat", "hooded sweatshirt": "hoodie", "hoodie": "hoodie", "sweater": "sweater",
    "pullover": "sweater", "jumper": "sweater", "tank top": "tank top", "sleeveless top": "tank top",
    "long sleeved top": "top", "top": "top",
}  # fmt: skip
LOWER = {
    "denim pants": "jeans", "jeans": "jeans", "short pants": "shorts", "shorts": "shorts", "tight pants": "leggings",
    "leggings": "leggings", "skirt": "skirt", "trousers": "trousers", "slacks": "trousers", "pants": "trousers",
}  # fmt: skip
PATTERN = {
    "striped": "striped", "stripes": "striped", "checked": "checked", "plaid": "checked", "checkered": "checked",
    "checks": "checked", "dotted": "dotted", "spotted": "dotted", "dots": "dotted", "spots": "dotted",
    "logo": "printed", "print": "printed", "design": "printed",
}  # fmt: skip
SHOES = {"open shoes": "sandals", "sandals": "sandals", "sneakers": "sneakers", "trainers": "sneakers",
         "boots": "boots", "shoes": "shoes"}  # fmt: skip
BAGS = {"backpack": "backpack", "rucksack": "backpack", "shoulder bag": "shoulder bag",
        "messenger bag": "shoulder bag", "handbag": "handbag", "purse": "handbag"}  # fmt: skip
HATS = {"baseball cap": "cap", "knitted cap": "beanie", "cap": "cap", "beanie": "beanie", "hat": "hat"}
GLASSES = {"eyeglasses": "glasses", "sunglasses": "sunglasses", "dark glasses": "sunglasses", "glasses": "glasses"}
SKIN = {"pale": "very light", "light": "light", "olive": "medium", "brown": "brown", "dark": "dark"}
BUILD = {"heavy set": "heavy", "stout": "heavy", "chubby": "heavy", "slim": "slim", "thin": "slim"}
MEN = ("boy", "man", "guy", "male", "gentleman", "he", "his")
WOMEN = ("girl", "woman", "lady", "female", "she", "her")
AGES = {"boy": "child", "girl": "child", "child": "child", "kid": "child", "old": "elderly", "elderly": "elderly"}


def either(table: dict[str, str]) -> str:
    return "|".join(sorted(table, key=len, reverse=True))


PARTS: list[tuple[str, list[tuple[str, dict[str, str]]]]] = [
    (rf"({either(SKIN)}) skin", [("skin", SKIN)]),
    (rf"(short|shoulder length|long) ({C}) hair", [("hair_length", {}), ("hair_colour", SAME)]),
    (r"(bald|shaved) head", [("hair_length", {"shaved": "bald"})]),
    (
        rf"({C})(?: and ({C}) ({either(PATTERN)}))? ({either(UPPER)})(?: with (?:an? )?({C}) ({either(PATTERN)}))?"
        rf"(?: over an? ({C}) shirt)?",
        [("upper_colour", SAME), ("pattern_colour", SAME), ("upper_pattern", PATTERN), ("upper_kind", UPPER),
         ("pattern_colour", SAME), ("upper_pattern", PATTERN), ("inner_colour", SAME)],
    ),
    (rf"({C}) ({either(LOWER)})", [("lower_colour", SAME), ("lower_kind", LOWER)]),
    (rf"({C}) ({either(SHOES)})", [("shoe_colour", SAME), ("shoe_kind", SHOES)]),
    (rf"({C}) ({either(BAGS)})", [("bag_colour", SAME), ("bag", BAGS)]),
    (rf"({C}) ({either(HATS)})", [("hat_colour", SAME), ("hat", HATS)]),
    (rf"({either(GLASSES)})", [("glasses", GLASSES)]),
    (rf"({either(BUILD)})", [("build", BUILD)]),
]  # fmt: skip


def read_caption(text: str) -> tuple[dict[str, str], str]:
    """What a caption says of a person, and the words that say nothing of that."""
    rest, said = text.lower(), {}
    for pattern, names in PARTS:
        found = re.search(rf"\b{pattern}\b", rest)
        if found:
            rest = f"{rest[: found.start()]} * {rest[found.end() :]}"
            for (name, table), value in zip(names, found.groups(), strict=True):
                if value is not None:
                    said[name] = table.get(value, value)
    words = set(re.findall(r"[a-z]+", rest))
    for gender, nouns in (("man", MEN), ("woman", WOMEN)):
        if words & set(nouns):
            said["gender"] = gender if "gender" not in said else "both"
    for noun, age in AGES.items():
        if noun in words:
            said["age"] = age
    return said, rest


LEFT_OVER = re.compile(rf"\b({C}|{either(UPPER)}|{either(LOWER)}|{either(PATTERN)}|{either(BAGS)}|{either(HATS)})\b")
