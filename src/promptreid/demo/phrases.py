"""Cuts a description into the phrases one may want to see in the picture."""

import re

_CUT = re.compile(
    r"[.,;:]|\b(?:and|with|who|is|has|have|on|in|wearing|wears|dressed|carrying|carries|holding|the person)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:an?|the|her|his|their)\s+", re.IGNORECASE)


def phrases_of(sentence: str, *, most: int = 8) -> list[str]:
    """Short phrases of a sentence, in its order, each once.

    Args:
        sentence: A description.
        most: How many at most.

    Example:
        >>> phrases_of("A woman in a red coat and blue jeans, with a backpack.")
        ['woman', 'red coat', 'blue jeans', 'backpack']
    """
    parts = (_ARTICLE.sub("", part.strip()).strip() for part in _CUT.split(sentence))
    return list(dict.fromkeys(part for part in parts if part))[:most]


def best_phrase(phrases: list[str]) -> str | None:
    """The phrase to look for first: the second, as the first is mostly just "a man"."""
    return next(iter(phrases[1:2] or phrases), None)
