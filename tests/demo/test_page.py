from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image

from promptreid.demo.answers import Answers
from promptreid.demo.handlers import Handlers, Session
from promptreid.demo.page import fill_page, page_caution
from promptreid.demo.shown_images import ShownImages
from promptreid.demo.sources import Opened

GR = SimpleNamespace(update=lambda **changes: changes)
SENTENCE = "a person in red clothes"
SESSION = Session()
FILTERS: list[Any] = [[], [], -1.0, 3, False]


@pytest.fixture
def handlers(answers: Answers) -> Handlers:
    return Handlers(GR, answers)


def parts(answer: list[Any]) -> SimpleNamespace:
    session, message, receipt, threshold, bare, first, second, crops, bare_crops, *rest = answer
    return SimpleNamespace(
        session=session,
        message=message,
        receipt=receipt,
        threshold=threshold,
        bare=bare,
        statuses=[first, second],
        crops=[crops, bare_crops],
        rest=rest,
    )


def detail(answer: list[Any]) -> SimpleNamespace:
    names = "session panel image facts path phrase heat heat_message alike ticked remove message"
    return SimpleNamespace(**dict(zip(names.split(), answer, strict=True)))


def asked(handlers: Handlers, **changes: Any) -> Session:
    filters = {"cameras": [], "days": [], "threshold": -1.0, "count": 3, "with_bare": False, **changes}
    return parts(handlers.search_sentence(SESSION, SENTENCE, *filters.values())).session


def test_search_sentence_answers_with_the_adapted_model_alone(handlers: Handlers) -> None:
    answer = parts(handlers.search_sentence(SESSION, SENTENCE, *FILTERS))
    assert answer.message == {"value": "", "visible": False}
    assert [len(crops) for crops in answer.crops] == [3, 0]
    assert answer.bare == {"visible": False}
    assert answer.session.query == SENTENCE
    assert all(isinstance(copy, str) for copy, _ in answer.crops[0])


def test_search_sentence_with_the_bare_model_shows_both(handlers: Handlers) -> None:
    answer = parts(handlers.search_sentence(SESSION, SENTENCE, [], [], -1.0, 3, True))
    assert [len(crops) for crops in answer.crops] == [3, 3]
    assert answer.bare == {"visible": True}
    assert len(answer.session.hits) == 2


def test_search_sentence_of_nothing_says_why_in_escaped_words(handlers: Handlers) -> None:
    answer = parts(handlers.search_sentence(asked(handlers), " ", *FILTERS))
    assert answer.message["visible"]
    assert answer.message["value"].startswith('<p role="alert">The query is empty; describe the person, such as &#x27;')
    assert answer.crops == [[], []]
    assert answer.session.hits == ()


def test_search_again_with_empty_fields_uses_the_defaults(handlers: Handlers) -> None:
    assert len(parts(handlers.search_again(asked(handlers), None, None, None, None, False)).crops[0]) == 8


@pytest.mark.parametrize(("count", "shown"), [(0, 1), (-5, 1), (2.7, 2), (10**9, 8)])
def test_search_again_with_an_odd_count_is_bounded(handlers: Handlers, count: float, shown: int) -> None:
    assert len(parts(handlers.search_sentence(SESSION, SENTENCE, [], [], -1.0, count, False)).crops[0]) == shown


def test_search_again_at_the_lower_end_of_the_slider_leaves_nobody_out(handlers: Handlers, answers: Answers) -> None:
    lowest = answers.score_range[0]
    worse = parts(handlers.search_sentence(SESSION, "zebra", [], [], lowest, 50, False))
    assert len(worse.crops[0]) == 8
    assert len(parts(handlers.search_sentence(SESSION, SENTENCE, [], [], 0.99, 50, False)).crops[0]) == 0


def test_search_widens_the_slider_to_the_best_score(handlers: Handlers, answers: Answers, opened: Opened) -> None:
    assert parts(handlers.search_sentence(SESSION, SENTENCE, *FILTERS)).threshold == {"maximum": answers.score_range[1]}
    answer = parts(handlers.search_image(SESSION, str(opened.gallery.paths[2]), *FILTERS))
    assert answer.threshold["maximum"] == pytest.approx(1.0, abs=0.01)


def test_search_again_before_any_question_shows_nothing(handlers: Handlers) -> None:
    answer = parts(handlers.search_again(SESSION, ["hall"], [], 0.5, 3, False))
    assert answer.crops == [[], []]
    assert not answer.message["visible"]


def test_search_image_shows_it_and_finds_its_like(handlers: Handlers, opened: Opened) -> None:
    answer = parts(handlers.search_image(SESSION, str(opened.gallery.paths[2]), *FILTERS))
    assert answer.session.hits[0][0].metadata["person_id"] == 3
    assert answer.rest[0]["visible"]
    assert isinstance(answer.rest[0]["value"], Image.Image)


def test_search_image_that_is_none_says_why_and_hides_the_preview(handlers: Handlers, tmp_path: Path) -> None:
    (tmp_path / "crop.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    answer = parts(handlers.search_image(SESSION, str(tmp_path / "crop.png"), *FILTERS))
    assert "This file is not a readable image" in answer.message["value"]
    assert answer.rest == [{"value": None, "visible": False}]
    assert answer.session.query is None


def test_search_image_taken_away_empties_the_page(handlers: Handlers, opened: Opened) -> None:
    session = parts(handlers.search_image(SESSION, str(opened.gallery.paths[2]), *FILTERS)).session
    answer = parts(handlers.search_image(session, None, *FILTERS))
    assert (answer.session.query, answer.crops) == (None, [[], []])
    assert answer.rest == [{"value": None, "visible": False}]


def test_enlarge_opens_the_image_with_name_camera_and_path(handlers: Handlers) -> None:
    session = asked(handlers)
    opened = detail(handlers.enlarge(session, 0, 1))
    hit = session.hits[0][1]
    assert opened.session.chosen == hit
    assert opened.panel == {"visible": True}
    assert opened.image.endswith(f"{hit.id}-large.jpg")
    assert f"<tr><th>Name</th><td>{hit.path.name}</td></tr>" in opened.facts
    assert opened.path == str(hit.path)
    assert opened.phrase == {"choices": ["person", "red clothes"], "value": "red clothes"}
    assert (opened.heat, opened.alike) == ([], [])


def test_enlarge_of_what_is_not_shown_changes_nothing(handlers: Handlers) -> None:
    session = asked(handlers)
    for version, rank in ((0, 3), (0, -1), (1, 0), (2, 0)):
        opened = detail(handlers.enlarge(session, version, rank))
        assert (opened.session, opened.panel) == (session, {})


def test_show_heat_of_the_enlarged_image(handlers: Handlers) -> None:
    session = handlers.enlarge(asked(handlers), 0, 0)[0]
    message, maps = handlers.show_heat(session, "red clothes", False)
    assert not message["visible"]
    assert len(maps) == 1
    assert len(handlers.show_heat(session, "red clothes", True)[1]) == 2


@pytest.mark.parametrize("phrase", [None, "", "  "])
def test_show_heat_without_phrase_says_so(handlers: Handlers, phrase: str | None) -> None:
    message, maps = handlers.show_heat(handlers.enlarge(asked(handlers), 0, 0)[0], phrase, False)
    assert "The phrase is empty" in message["value"]
    assert maps == []


def test_what_needs_an_image_says_so_before_one_is_clicked(handlers: Handlers) -> None:
    assert "Click an image first" in handlers.show_heat(SESSION, "red", False)[0]["value"]
    assert "Click an image first" in handlers.find_alike(SESSION)[-1]["value"]


def test_a_person_is_found_ticked_and_forgotten_with_a_receipt(own_answers: Answers) -> None:
    handlers = Handlers(GR, own_answers)
    session = handlers.enlarge(asked(handlers), 0, 0)[0]
    session, images, boxes, button, message = handlers.find_alike(session)
    assert len(images) == len(boxes["choices"]) == 8
    assert len(boxes["value"]) == 2  # the same person, as the gallery knows
    assert button == {"visible": True}
    assert not message["visible"]
    panel, message, *rest = handlers.forget(session, boxes["value"], *FILTERS)
    answer = parts(rest)
    assert panel == {"visible": False}
    assert answer.receipt["visible"]
    assert answer.receipt["value"].startswith("Removed 2 images from index on 20")
    assert len(own_answers.gallery) == 6
    assert (answer.session.chosen, answer.session.alike) == (None, ())
    # the next search puts the receipt away
    assert parts(handlers.search_again(answer.session, *FILTERS)).receipt == {"visible": False}
    # and another visitor who still sees the image is told
    stale = detail(handlers.enlarge(session, 0, 0))
    assert (stale.image, stale.path) == (None, "")
    assert "was removed from the gallery" in stale.facts


@pytest.mark.parametrize("ticked", [None, [], ["99 · not offered.png"]])
def test_forget_of_nothing_ticked_says_so_and_removes_nothing(handlers: Handlers, ticked: list[str] | None) -> None:
    session = handlers.find_alike(handlers.enlarge(asked(handlers), 0, 0)[0])[0]
    panel, message, *rest = handlers.forget(session, ticked, *FILTERS)
    assert "No image is ticked" in message["value"]
    assert (panel, rest) == ({}, [{}] * 9)
    assert len(handlers.answers.gallery) == 8


def test_forget_that_cannot_be_written_says_so_without_a_path(
    own_answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/path")

    handlers = Handlers(GR, own_answers)
    session, _, boxes, *_ = handlers.find_alike(handlers.enlarge(asked(handlers), 0, 0)[0])
    monkeypatch.setattr(own_answers.gallery, "remove", fail)
    message = handlers.forget(session, boxes["value"], *FILTERS)[1]
    assert "cannot be written (No space left on device); nothing was removed" in message["value"]
    assert "secret" not in message["value"]


def test_a_page_of_one_model_has_one_column(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptreid.demo.bare_model._MOST_IMAGES", 7)
    answers = Answers(opened, ShownImages(tmp_path, opened.root))
    assert answers.versions == ("Adapted model",)
    answer = Handlers(GR, answers).search_sentence(SESSION, SENTENCE, *FILTERS)
    assert len(answer) == 5 + 2
    assert answer[4] == {"visible": True}


def test_a_visitors_question_is_kept_for_a_bounded_time(answers: Answers) -> None:
    gr = MagicMock()
    fill_page(gr, answers, caution="", kept_seconds=77)
    (state,) = gr.State.call_args_list
    assert state.kwargs == {"time_to_live": 77}


def test_page_caution_promises_privacy_only_where_it_holds() -> None:
    assert "nothing you type or upload leaves it" in page_caution(private=True)
    assert "leaves" not in page_caution(private=False)
