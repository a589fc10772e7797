import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from promptreid import PromptedCLIP
from promptreid.demo.crops import Crops, folder_crops
from promptreid.demo.desk import MAX_SENTENCE, Desk
from promptreid.demo.finder import Finder
from promptreid.demo.versions import compare

SENTENCE = "A person in red clothes."


def test_search_shows_rank_score_camera_and_who_is_right(desk: Desk, crops: Crops) -> None:
    adapted, bare = desk.search("colours", SENTENCE, k=8)
    assert (adapted.title, bare.title) == ("Adapted model", "Bare model")
    for rank, ((image, words), place) in enumerate(zip(adapted.crops, adapted.places, strict=True), start=1):
        first, camera = words.split("\n")
        assert image.size == (24, 48)
        assert first.startswith(f"{rank} · ")
        assert first.endswith(" ✓") == (crops.person_ids[place] == 1)
        assert camera == crops.cameras[place]
    assert "✓ is the person described." in adapted.status


def test_search_for_a_sentence_nobody_wrote_marks_nobody(desk: Desk) -> None:
    (column, _) = desk.search("colours", "someone in red")
    assert not any("✓" in words for _, words in column.crops)
    assert "✓" not in column.status


def test_search_for_a_sentence_with_odd_blanks_is_the_same_sentence(desk: Desk) -> None:
    odd = desk.search("colours", "  A person\n in  red clothes. ")
    assert [column.places for column in odd] == [column.places for column in desk.search("colours", SENTENCE)]
    assert "✓" in odd[0].status


def test_search_above_every_score_says_that_nobody_matches(desk: Desk) -> None:
    for column in desk.search("colours", SENTENCE, threshold=0.99):
        assert column.crops == []
        assert "nobody matches. The best picture scores " in column.status
        assert "below 0.99" in column.status


def test_search_in_a_camera_without_pictures_says_so(desk: Desk) -> None:
    (column, _) = desk.search("colours", SENTENCE, cameras=["roof"])
    assert column.status.endswith("no picture from these cameras.")


def test_search_when_a_picture_was_deleted_shows_the_others_and_counts_it(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paths = [paint(tmp_path / f"{number}.png", (60 * number, 36, 40)) for number in range(3)]
    desk = Desk([Finder(folder_crops(tmp_path), compare(model), progress=False)])
    paths[1].unlink()
    (column, _) = desk.search(tmp_path.name, SENTENCE)
    assert sorted(column.places) == [0, 2]
    assert "1 of them can no longer be read" in column.status


@pytest.mark.parametrize(
    ("gallery", "query", "words"),
    [
        ("nowhere", SENTENCE, "there is no gallery 'nowhere', only colours"),
        ("colours", "", "the query is empty"),
        ("colours", " \n", "the query is empty"),
        ("colours", "red " * MAX_SENTENCE, f"at most {MAX_SENTENCE} are taken"),
    ],
)
def test_search_for_something_impossible_is_refused(desk: Desk, gallery: str, query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        desk.search(gallery, query)


@pytest.mark.filterwarnings("ignore:.* captions are longer than:UserWarning")
@pytest.mark.parametrize("query", ["<script>alert(1)</script>", "🦖" * 100, "ليلى", "\x00", "a" * MAX_SENTENCE])
def test_search_for_odd_sentences_answers(desk: Desk, query: str) -> None:
    for column in desk.search("colours", query):
        assert len(column.crops) == 8
        assert "<script" not in column.status


def test_summary_escapes_what_the_gallery_says(desk: Desk) -> None:
    assert desk.summary("colours") == "8 pictures from 2 cameras. Plain &lt;colours&gt;."


def test_examples_are_of_different_people_and_least_alike_first(finder: Finder, crops: Crops) -> None:
    captions = {"red coat, cap": 1, "red coat, bag": 2, "green hat": 3, "green hat, shoes": 3}
    other = Finder(dataclasses.replace(crops, captions=captions), finder.versions, progress=False)
    # the two coats share two of four words; person 3 shares none, and the shorter sentence is taken
    assert Desk([other]).examples("colours") == ["green hat", "red coat, bag", "red coat, cap"]
    assert Desk([other]).examples("colours", count=1) == ["green hat"]


def test_examples_of_a_gallery_without_captions_are_none(finder: Finder, crops: Crops) -> None:
    other = Finder(dataclasses.replace(crops, captions={}), finder.versions, progress=False)
    assert Desk([other]).examples("colours") == []


def test_heat_maps_are_one_a_version(desk: Desk) -> None:
    maps = desk.heat_maps("colours", 0, "red coat")
    assert [label for _, label in maps] == ["Adapted model", "Bare model"]
    assert all(isinstance(image, Image.Image) for image, _ in maps)


@pytest.mark.parametrize("place", [-1, 8])
def test_heat_maps_of_no_picture_are_refused(desk: Desk, place: int) -> None:
    with pytest.raises(IndexError, match=f"there is no picture {place}, the gallery has 8"):
        desk.heat_maps("colours", place, "red")


@pytest.mark.parametrize(("phrase", "words"), [("", "phrase is empty"), ("red " * MAX_SENTENCE, "at most 500")])
def test_heat_maps_of_no_phrase_are_refused(desk: Desk, phrase: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        desk.heat_maps("colours", 0, phrase)


def test_desk_with_two_galleries_of_one_name_is_refused(finder: Finder) -> None:
    with pytest.raises(ValueError, match="two galleries are called the same"):
        Desk([finder, finder])


def test_desk_knows_galleries_versions_and_cameras(desk: Desk) -> None:
    assert desk.galleries == ["colours"]
    assert desk.versions == ["Adapted model", "Bare model"]
    assert desk.cameras("colours") == ["hall", "yard"]
