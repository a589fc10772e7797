from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image

from promptreid.demo.answers import Galleries, prepare_opening
from promptreid.demo.page import Handlers, Session, fill_page
from promptreid.demo.sources import Crops

GR = SimpleNamespace(update=lambda **changes: changes)
SENTENCE = "A person in red clothes."
SESSION = Session("colours")


@pytest.fixture
def handlers(galleries: Galleries) -> Handlers:
    return Handlers(GR, galleries)


def parts(answer: list[Any]) -> SimpleNamespace:
    session, message, first, second, crops, bare_crops, *rest = answer
    return SimpleNamespace(
        session=session, message=message, statuses=[first, second], crops=[crops, bare_crops], rest=rest
    )


def test_search_sentence_answers_and_offers_its_phrases(handlers: Handlers) -> None:
    answer = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3))
    assert answer.message == {"value": "", "visible": False}
    assert [len(crops) for crops in answer.crops] == [3, 3]
    assert answer.session.query == SENTENCE
    assert answer.session.chosen == answer.session.positions[0][0]
    assert answer.rest == [{"choices": ["person", "red clothes"], "value": "red clothes"}]


def test_search_sentence_of_nothing_says_why_in_escaped_words(handlers: Handlers) -> None:
    before = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3)).session
    answer = parts(handlers.search_sentence(before, " ", [], -1.0, 3))
    assert answer.message["visible"]
    assert answer.message["value"].startswith('<p role="alert">The query is empty; describe the person, such as &#x27;')
    assert answer.crops == [[], []]
    assert (answer.session.positions, answer.session.chosen) == ((), None)


def test_search_again_with_empty_number_fields_uses_the_defaults(handlers: Handlers) -> None:
    session = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3)).session
    assert len(parts(handlers.search_again(session, [], None, None)).crops[0]) == 6


@pytest.mark.parametrize(("count", "shown"), [(0, 1), (-5, 1), (2.7, 2), (10**9, 8)])
def test_search_again_with_an_odd_count_is_bounded(handlers: Handlers, count: float, shown: int) -> None:
    assert len(parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, count)).crops[0]) == shown


def test_search_again_before_any_question_shows_nothing(handlers: Handlers) -> None:
    answer = parts(handlers.search_again(SESSION, ["hall"], 0.5, 3))
    assert answer.crops == [[], []]
    assert not answer.message["visible"]


def test_search_again_with_a_filter_keeps_the_chosen_image_while_it_is_shown(handlers: Handlers) -> None:
    session = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 8)).session
    session = handlers.choose(session, 1, 5)
    assert parts(handlers.search_again(session, [], -1.0, 8)).session.chosen == session.positions[1][5]
    only_yard = parts(
        handlers.search_again(handlers.choose(session, 0, session.positions[0].index(0)), ["yard"], -1.0, 8)
    ).session
    assert only_yard.chosen == only_yard.positions[0][0]


def test_search_image_shows_it_and_finds_its_like(handlers: Handlers, crops: Crops) -> None:
    answer = parts(handlers.search_image(SESSION, str(crops.paths[2]), [], -1.0, 3))
    assert crops.person_ids[answer.session.positions[0][0]] == 3
    assert answer.rest[0]["visible"]
    assert isinstance(answer.rest[0]["value"], Image.Image)


def test_search_image_that_is_none_says_why_and_hides_the_preview(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "crop.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    answer = parts(handlers.search_image(SESSION, str(tmp_path / "crop.png"), [], -1.0, 3))
    assert "This file is not a readable image" in answer.message["value"]
    assert answer.rest == [{"value": None, "visible": False}]
    assert answer.session.query is None


def test_search_image_taken_away_empties_the_page(handlers: Handlers, crops: Crops) -> None:
    session = parts(handlers.search_image(SESSION, str(crops.paths[2]), [], -1.0, 3)).session
    answer = parts(handlers.search_image(session, None, [], -1.0, 3))
    assert (answer.session.query, answer.crops) == (None, [[], []])
    assert answer.rest == [{"value": None, "visible": False}]


def test_choose_what_is_not_shown_changes_nothing(handlers: Handlers) -> None:
    session = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3)).session
    assert handlers.choose(session, 1, 2).chosen == session.positions[1][2]
    for version, rank in ((0, 3), (0, -1), (2, 0)):
        assert handlers.choose(session, version, rank) == session
    assert handlers.choose(SESSION, 0, 0) == SESSION


def test_show_heat_of_the_chosen_image(handlers: Handlers) -> None:
    session = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3)).session
    message, maps = handlers.show_heat(session, "red clothes")
    assert not message["visible"]
    assert len(maps) == 2


def test_show_heat_before_any_search_says_what_to_do(handlers: Handlers) -> None:
    message, maps = handlers.show_heat(SESSION, "red clothes")
    assert "Search first, then click an image" in message["value"]
    assert maps == []


@pytest.mark.parametrize("phrase", [None, "", "  "])
def test_show_heat_without_phrase_says_so(handlers: Handlers, phrase: str | None) -> None:
    session = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3)).session
    message, maps = handlers.show_heat(session, phrase)
    assert "The phrase is empty" in message["value"]
    assert maps == []


def test_change_gallery_forgets_the_images_and_keeps_the_question(handlers: Handlers) -> None:
    session = parts(handlers.search_sentence(SESSION, SENTENCE, [], -1.0, 3)).session
    moved, summary, cameras, *examples = handlers.change_gallery(session, "colours")
    assert moved == Session("colours", query=SENTENCE)
    assert summary.startswith("8 images")
    assert cameras == {"choices": ["hall", "yard"], "value": [], "visible": True}
    assert len(examples) == 4
    assert all(example["visible"] for example in examples)


def test_a_visitors_question_is_kept_for_a_bounded_time(galleries: Galleries) -> None:
    gr = MagicMock()
    fill_page(gr, galleries, prepare_opening(galleries), private=False, kept_seconds=77)
    (state,) = gr.State.call_args_list
    assert state.kwargs == {"time_to_live": 77}
