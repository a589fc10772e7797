from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from promptreid.demo.clerk import Clerk, Visit
from promptreid.demo.crops import Crops
from promptreid.demo.desk import Desk

GR = SimpleNamespace(update=lambda **changes: changes)
SENTENCE = "A person in red clothes."
VISIT = Visit("colours")


@pytest.fixture
def clerk(desk: Desk) -> Clerk:
    return Clerk(GR, desk)


def parts(answer: list[Any]) -> SimpleNamespace:
    visit, message, first, second, crops, bare_crops, *rest = answer
    return SimpleNamespace(visit=visit, message=message, statuses=[first, second], crops=[crops, bare_crops], rest=rest)


def test_ask_sentence_answers_and_offers_its_phrases(clerk: Clerk) -> None:
    answer = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3))
    assert answer.message == {"value": "", "visible": False}
    assert [len(crops) for crops in answer.crops] == [3, 3]
    assert answer.visit.query == SENTENCE
    assert answer.visit.chosen == answer.visit.places[0][0]
    assert answer.rest == [{"choices": ["person", "red clothes"], "value": "red clothes"}]


def test_ask_sentence_of_nothing_says_why_in_escaped_words(clerk: Clerk) -> None:
    before = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3)).visit
    answer = parts(clerk.ask_sentence(before, " ", [], -1.0, 3))
    assert answer.message["visible"]
    assert answer.message["value"].startswith('<p role="alert">The query is empty; describe the person, such as &#x27;')
    assert answer.crops == [[], []]
    assert (answer.visit.places, answer.visit.chosen) == ((), None)


def test_ask_with_empty_number_fields_uses_the_defaults(clerk: Clerk) -> None:
    visit = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3)).visit
    assert len(parts(clerk.ask(visit, [], None, None)).crops[0]) == 6


@pytest.mark.parametrize(("count", "shown"), [(0, 1), (-5, 1), (2.7, 2), (10**9, 8)])
def test_ask_with_an_odd_count_is_bounded(clerk: Clerk, count: float, shown: int) -> None:
    assert len(parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, count)).crops[0]) == shown


def test_ask_before_any_question_shows_nothing(clerk: Clerk) -> None:
    answer = parts(clerk.ask(VISIT, ["hall"], 0.5, 3))
    assert answer.crops == [[], []]
    assert not answer.message["visible"]


def test_ask_again_with_a_filter_keeps_the_chosen_picture_while_it_is_shown(clerk: Clerk) -> None:
    visit = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 8)).visit
    visit = clerk.choose(visit, 1, 5)
    assert parts(clerk.ask(visit, [], -1.0, 8)).visit.chosen == visit.places[1][5]
    only_yard = parts(clerk.ask(clerk.choose(visit, 0, visit.places[0].index(0)), ["yard"], -1.0, 8)).visit
    assert only_yard.chosen == only_yard.places[0][0]


def test_ask_picture_shows_it_and_finds_its_like(clerk: Clerk, crops: Crops) -> None:
    answer = parts(clerk.ask_picture(VISIT, str(crops.paths[2]), [], -1.0, 3))
    assert crops.person_ids[answer.visit.places[0][0]] == 3
    assert answer.rest[0]["visible"]
    assert isinstance(answer.rest[0]["value"], Image.Image)


def test_ask_picture_that_is_none_says_why_and_hides_the_preview(clerk: Clerk, tmp_path: Path) -> None:
    (tmp_path / "crop.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    answer = parts(clerk.ask_picture(VISIT, str(tmp_path / "crop.png"), [], -1.0, 3))
    assert "This file is no readable picture" in answer.message["value"]
    assert answer.rest == [{"value": None, "visible": False}]
    assert answer.visit.query is None


def test_ask_picture_taken_away_empties_the_page(clerk: Clerk, crops: Crops) -> None:
    visit = parts(clerk.ask_picture(VISIT, str(crops.paths[2]), [], -1.0, 3)).visit
    answer = parts(clerk.ask_picture(visit, None, [], -1.0, 3))
    assert (answer.visit.query, answer.crops) == (None, [[], []])
    assert answer.rest == [{"value": None, "visible": False}]


def test_choose_what_is_not_shown_changes_nothing(clerk: Clerk) -> None:
    visit = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3)).visit
    assert clerk.choose(visit, 1, 2).chosen == visit.places[1][2]
    for version, rank in ((0, 3), (0, -1), (2, 0)):
        assert clerk.choose(visit, version, rank) == visit
    assert clerk.choose(VISIT, 0, 0) == VISIT


def test_show_heat_of_the_chosen_picture(clerk: Clerk) -> None:
    visit = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3)).visit
    message, maps = clerk.show_heat(visit, "red clothes")
    assert not message["visible"]
    assert len(maps) == 2


def test_show_heat_before_any_search_says_what_to_do(clerk: Clerk) -> None:
    message, maps = clerk.show_heat(VISIT, "red clothes")
    assert "Search first, then click a picture" in message["value"]
    assert maps == []


@pytest.mark.parametrize("phrase", [None, "", "  "])
def test_show_heat_without_phrase_says_so(clerk: Clerk, phrase: str | None) -> None:
    visit = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3)).visit
    message, maps = clerk.show_heat(visit, phrase)
    assert "The phrase is empty" in message["value"]
    assert maps == []


def test_change_gallery_forgets_the_pictures_and_keeps_the_question(clerk: Clerk) -> None:
    visit = parts(clerk.ask_sentence(VISIT, SENTENCE, [], -1.0, 3)).visit
    moved, summary, cameras, *examples = clerk.change_gallery(visit, "colours")
    assert moved == Visit("colours", query=SENTENCE)
    assert summary.startswith("8 pictures")
    assert cameras == {"choices": ["hall", "yard"], "value": [], "visible": True}
    assert len(examples) == 4
    assert all(example["visible"] for example in examples)
