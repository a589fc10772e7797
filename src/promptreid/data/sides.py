"""Left and right in captions of mirrored pictures."""

import re

_OTHER = {"left": "right", "right": "left"}
# As words of their own or before "-": "left", "left-hand", "rightmost"; not "bright", "leftover" or "upright".
_SIDE = re.compile(r"\b(left|right)(?=(?:hand|most|wards?|side)?\b)", re.IGNORECASE)
# "right" that is no side: "right behind him", "right now"; and "left" as what somebody did: "left the shop".
_NO_SIDE = re.compile(
    r"\bright (?:now|away|after|before|behind|next|above|below|at the)\b|\bleft (?:the|a|an|behind|open|over)\b",
    re.IGNORECASE,
)


def has_sides(caption: str) -> bool:
    """Whether a caption tells left from right.

    Example:
        >>> has_sides("a bag in his left hand"), has_sides("a bright coat")
        (True, False)
    """
    return mirror_caption(caption) != caption


def mirror_caption(caption: str) -> str:
    """The caption of the mirrored picture: left and right exchanged, in the same case.

    Phrases that name no side, such as "right behind him" and "left the shop", stay as they are.

    Example:
        >>> mirror_caption("Left hand in pocket, a bag over the right shoulder, right behind a car")
        'Right hand in pocket, a bag over the left shoulder, right behind a car'
    """
    spared = [match.span() for match in _NO_SIDE.finditer(caption)]

    def exchange(match: re.Match[str]) -> str:
        word = match.group()
        if any(start <= match.start() < end for start, end in spared):
            return word
        other = _OTHER[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE.sub(exchange, caption)
