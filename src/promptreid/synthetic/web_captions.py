"""What the web writes below pictures of people: from three words to long lists."""

from collections.abc import Callable

import numpy as np

from promptreid.synthetic.person import NONE, Person, pick
from promptreid.synthetic.words import (
    CARRY_WORDS,
    ENDINGS,
    MAX_TOKENS,
    OPENERS,
    VERBS,
    VIEW_WORDS,
    article,
    bag_phrase,
    count_tokens,
    glasses_phrase,
    hair_phrase,
    hat_phrase,
    lower_phrase,
    shoe_phrase,
    skin_phrase,
    subject_phrase,
    upper_phrase,
)

_MEDIA = ("drawing of", "cartoon of", "picture of", "sketch of", "paper doll of")


def phrases_of(random: np.random.Generator, person: Person) -> list[str]:
    """Everything that `person` (as seen) has, in random order."""
    phrases = [
        article(upper_phrase(random, person).text),
        article(lower_phrase(random, person).text),
        shoe_phrase(random, person).text,
    ]
    if person.hair_length != NONE:
        phrases.append(article(hair_phrase(random, person).text))
    if person.hat != NONE:
        phrases.append(article(hat_phrase(random, person).text))
    if person.glasses != NONE:
        phrases.append(glasses_phrase(random, person).text)
    if person.bag != NONE:
        phrases.append(article(bag_phrase(random, person).text))
    if random.random() < 0.3:
        phrases.append(skin_phrase(person).text)
    return [phrases[int(index)] for index in random.permutation(len(phrases))]


def web_caption(random: np.random.Generator, person: Person, view: str, brevity: float) -> str:
    """Caption a whole person; `person` must be what `view` shows; above 1, `brevity` makes most lists short."""
    kind = random.random()
    if kind < 0.5:
        return _list(random, person, view, brevity)
    if kind < 0.8:
        return _sentence(random, person, view)
    return _page(random, person, view)


def web_description(random: np.random.Generator, person: Person, view: str) -> str:
    """Caption a person whom it should tell from others: the web's list with most of what there is to see."""
    subject = subject_phrase(random, person).text
    start = (
        f"{pick(random, _MEDIA)} {article(subject)}" if random.random() < 0.5 else f"{subject} {_view(random, view)}"
    )
    phrases = phrases_of(random, person)
    kept = phrases[: max(3, round(len(phrases) * float(random.uniform(0.5, 1.0))))]
    return f"{start}, {', '.join(kept)}"


def _list(random: np.random.Generator, person: Person, view: str, brevity: float = 1.5) -> str:
    phrases = phrases_of(random, person)
    count = 1 + int(len(phrases) * random.random() ** brevity)
    subject = subject_phrase(random, person).text
    start = pick(random, (subject, f"{pick(random, _MEDIA)} {article(subject)}", f"{subject} {_view(random, view)}"))
    return f"{start}, {', '.join(phrases[:count])}"


def _sentence(random: np.random.Generator, person: Person, view: str) -> str:
    subject = subject_phrase(random, person, neutral=0.1).text
    pronoun, owner = ("he", "his") if person.gender == "man" else ("she", "her")
    carried = [f"{pick(random, CARRY_WORDS)} {article(bag_phrase(random, person).text)}"] if person.bag != NONE else []
    templates: list[Callable[[], str]] = [
        lambda: f"the {subject} {pick(random, VERBS)} {article(upper_phrase(random, person).text)}",
        lambda: (
            f"{article(subject)} {_view(random, view)}, {pronoun} {pick(random, VERBS)} "
            f"{article(lower_phrase(random, person).text)}"
        ),
        lambda: f"{owner} shoes are a pair of {shoe_phrase(random, person).text}",
        lambda: f"{pick(random, OPENERS)} this {subject} also has {phrases_of(random, person)[0]}",
        lambda: f"there is {article(subject)} who has {skin_phrase(person).text} {pick(random, ENDINGS)}",
        lambda: f"the {subject} can be seen with {phrases_of(random, person)[0]} on {owner} body",
        *[lambda: f"{article(subject)} {carried[0]}" for _ in carried],
    ]
    return templates[int(random.integers(len(templates)))]()


def _page(random: np.random.Generator, person: Person, view: str) -> str:
    """A page of text says the same again in other words, up to the length that captions may have."""
    text, wanted = _list(random, person, view), 15 + int((MAX_TOKENS - 14) * random.random())
    while True:
        more = f"{text}. {(_list, _sentence)[int(random.integers(2))](random, person, view)}"
        if count_tokens(more) > wanted:
            break
        text = more
    for phrase in phrases_of(random, person):
        if count_tokens(f"{text}, {phrase}") <= wanted:
            text = f"{text}, {phrase}"
    return text


def _view(random: np.random.Generator, view: str) -> str:
    return pick(random, VIEW_WORDS[view])
