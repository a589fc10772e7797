"""Persons share attributes, near-twins differ in one colour, and nothing worn is left without a colour."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from promptreid.synthetic.pen import SKIN_TONES, shade, tint
from promptreid.synthetic.person import BUILDS, Person, as_seen, draw_person, near_twin, pick
from promptreid.synthetic.writer import draw_people


def differences(one: Person, other: Person) -> set[str]:
    first, second = asdict(one), asdict(other)
    return {name for name in first if first[name] != second[name]}


def test_draw_person_same_seed_gives_the_same_person() -> None:
    assert draw_person(np.random.default_rng(3)) == draw_person(np.random.default_rng(3))


def test_draw_person_covers_all_skins_builds_ages_and_shares_attributes(people: list[Person]) -> None:
    assert {person.skin for person in people} == set(SKIN_TONES)
    assert {person.build for person in people} == set(BUILDS)
    assert {person.age for person in people} == {"child", "adult", "elderly"}
    assert len(set(people)) == len(people)
    assert Counter((person.upper_kind, person.upper_colour) for person in people).most_common(1)[0][1] > 3


@pytest.mark.parametrize(
    ("thing", "colour"), [("bag", "bag_colour"), ("hat", "hat_colour"), ("upper_pattern", "pattern_colour")]
)
def test_draw_person_has_a_colour_exactly_for_what_there_is(thing: str, colour: str, people: list[Person]) -> None:
    for person in people:
        assert (getattr(person, thing) in ("none", "plain")) == (getattr(person, colour) == "none")


def test_near_twin_differs_in_one_colour_that_every_view_shows(people: list[Person]) -> None:
    for index, person in enumerate(people):
        twin = near_twin(np.random.default_rng(index), person)
        (name,) = differences(person, twin)
        assert name.endswith("_colour")
        for view in ("front", "back", "side"):
            assert differences(as_seen(person, view), as_seen(twin, view)) == {name}


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_draw_people_near_twins_is_the_share_of_people_who_have_one(share: float) -> None:
    people = draw_people((400, 100, 300), near_twins=share, seed=1)
    twins = [(number, twin) for number, (*_, twin) in enumerate(people) if twin is not None]
    assert 2 * len(twins) / len(people) == pytest.approx(share, abs=0.06)
    for number, twin in twins:
        assert people[number][0] == people[twin][0]  # of the same split
        assert len(differences(people[number][1], people[twin][1])) == 1


def test_draw_people_no_two_look_the_same() -> None:
    people = draw_people((1500, 200, 1300), near_twins=1.0, seed=0)
    assert len({person for _, person, _ in people}) == 3000


def test_pick_never_gives_what_is_ruled_out() -> None:
    random = np.random.default_rng(0)
    assert {pick(random, ("a", "b", "c"), other_than="b") for _ in range(50)} == {"a", "c"}


def test_shade_and_tint_stay_colours() -> None:
    assert shade((200, 100, 0), 1.5) == (255, 150, 0)
    random = np.random.default_rng(0)
    for _ in range(50):
        colour = tint(random, (250, 128, 3), 20)
        assert all(0 <= channel <= 255 for channel in colour)
        assert abs(colour[1] - 128) <= 20
