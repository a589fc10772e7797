import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from promptreid import PromptedCLIP
from promptreid.demo.answers import MAX_SENTENCE, Galleries, Opening, paint_heat, prepare_opening, split_phrases
from promptreid.demo.comparison import ComparedGallery, Version, make_versions
from promptreid.demo.page import Session
from promptreid.demo.sources import Crops, list_crops
from promptreid.evaluation.pictures.occlusion import occlusion_map

SENTENCE = "A person in red clothes."


def test_search_shows_rank_score_camera_and_who_is_right(galleries: Galleries, crops: Crops) -> None:
    adapted, bare = galleries.search("colours", SENTENCE, k=8)
    assert (adapted.title, bare.title) == ("Adapted model", "Bare model")
    for rank, ((image, words), position) in enumerate(zip(adapted.crops, adapted.positions, strict=True), start=1):
        first, camera = words.split("\n")
        assert image.size == (24, 48)
        assert first.startswith(f"{rank} · ")
        assert first.endswith(" ✓") == (crops.person_ids[position] == 1)
        assert camera == crops.cameras[position]
    assert "✓ is the person described." in adapted.status


def test_search_for_a_sentence_nobody_wrote_marks_nobody(galleries: Galleries) -> None:
    (column, _) = galleries.search("colours", "someone in red")
    assert not any("✓" in words for _, words in column.crops)
    assert "✓" not in column.status


def test_search_for_a_sentence_with_odd_blanks_is_the_same_sentence(galleries: Galleries) -> None:
    odd = galleries.search("colours", "  A person\n in  red clothes. ")
    assert [column.positions for column in odd] == [
        column.positions for column in galleries.search("colours", SENTENCE)
    ]
    assert "✓" in odd[0].status


def test_search_above_every_score_says_that_nobody_matches(galleries: Galleries) -> None:
    for column in galleries.search("colours", SENTENCE, threshold=0.99):
        assert column.crops == []
        assert "nobody matches. The best image scores " in column.status
        assert "below 0.99" in column.status


def test_search_in_a_camera_without_images_says_so(galleries: Galleries) -> None:
    (column, _) = galleries.search("colours", SENTENCE, cameras=["roof"])
    assert column.status.endswith("no image from these cameras.")


def test_search_when_an_image_was_deleted_shows_the_others_and_counts_it(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paths = [paint(tmp_path / f"{number}.png", (60 * number, 36, 40)) for number in range(3)]
    galleries = Galleries([ComparedGallery(list_crops(tmp_path), make_versions(model), progress=False)])
    paths[1].unlink()
    (column, _) = galleries.search(tmp_path.name, SENTENCE)
    assert sorted(column.positions) == [0, 2]
    assert "1 of them can no longer be read" in column.status


@pytest.mark.parametrize(
    ("gallery", "query", "words"),
    [
        ("nowhere", SENTENCE, "there is no gallery 'nowhere', only colours"),
        ("colours", "", "the query is empty"),
        ("colours", " \n", "the query is empty"),
        ("colours", "red " * MAX_SENTENCE, f"at most {MAX_SENTENCE} are allowed"),
    ],
)
def test_search_for_something_impossible_is_refused(galleries: Galleries, gallery: str, query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        galleries.search(gallery, query)


@pytest.mark.filterwarnings("ignore:.* captions are (longer than|not in Latin):UserWarning")
@pytest.mark.parametrize("query", ["<script>alert(1)</script>", "🦖" * 100, "ليلى", "\x00", "a" * MAX_SENTENCE])
def test_search_for_odd_sentences_answers(galleries: Galleries, query: str) -> None:
    for column in galleries.search("colours", query):
        assert len(column.crops) == 8
        assert "<script" not in column.status


def test_summary_escapes_what_the_gallery_says(galleries: Galleries) -> None:
    assert galleries.summary("colours") == "8 images from 2 cameras. Plain &lt;colours&gt;."


def test_examples_are_of_different_people_and_least_alike_first(compared: ComparedGallery, crops: Crops) -> None:
    captions = {"red coat, cap": 1, "red coat, bag": 2, "green hat": 3, "green hat, shoes": 3}
    other = ComparedGallery(dataclasses.replace(crops, captions=captions), compared.versions, progress=False)
    # the two coats share two of four words; person 3 shares none, and the shorter sentence is taken
    assert Galleries([other]).examples("colours") == ["green hat", "red coat, bag", "red coat, cap"]
    assert Galleries([other]).examples("colours", count=1) == ["green hat"]


def test_examples_of_a_gallery_without_captions_are_none(compared: ComparedGallery, crops: Crops) -> None:
    other = ComparedGallery(dataclasses.replace(crops, captions={}), compared.versions, progress=False)
    assert Galleries([other]).examples("colours") == []


def test_heat_maps_are_one_a_version(galleries: Galleries) -> None:
    maps = galleries.heat_maps("colours", 0, "red coat")
    assert [label for _, label in maps] == ["Adapted model", "Bare model"]
    assert all(isinstance(image, Image.Image) for image, _ in maps)


@pytest.mark.parametrize("position", [-1, 8])
def test_heat_maps_of_no_image_are_refused(galleries: Galleries, position: int) -> None:
    with pytest.raises(IndexError, match=f"there is no image {position}, the gallery has 8"):
        galleries.heat_maps("colours", position, "red")


@pytest.mark.parametrize(("phrase", "words"), [("", "phrase is empty"), ("red " * MAX_SENTENCE, "at most 500")])
def test_heat_maps_of_no_phrase_are_refused(galleries: Galleries, phrase: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        galleries.heat_maps("colours", 0, phrase)


def two_halves() -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (48, 96), (190, 36, 40))
    image.paste((40, 74, 170), (0, 48, 48, 96))
    return image


def find_heat(version: Version, image: Image.Image, phrase: str) -> torch.Tensor:
    with version.running() as model:
        return occlusion_map(model, model.eval_transform(image), phrase)


def test_heat_lies_on_the_half_that_is_named(model: PromptedCLIP) -> None:
    bare = make_versions(model)[1]
    red, blue = (find_heat(bare, two_halves(), f"a {name} shirt") for name in ("red", "blue"))
    assert red.shape == blue.shape == (12, 6)
    assert red[:6].mean() - red[6:].mean() > blue[:6].mean() - blue[6:].mean() + 0.1


@pytest.mark.parametrize("size", [(48, 96), (1, 1), (300, 20), (20, 300)])
def test_heat_of_an_image_of_any_size_is_between_0_and_1(model: PromptedCLIP, size: tuple[int, int]) -> None:
    heat = find_heat(make_versions(model)[0], two_halves().resize(size), "red coat")
    assert bool(((heat >= 0) & (heat <= 1)).all())


def test_heat_of_an_empty_phrase_is_refused(model: PromptedCLIP) -> None:
    with pytest.raises(ValueError, match="the phrase is empty; give a few words"):
        find_heat(make_versions(model)[0], two_halves(), " ")


def test_paint_heat_colours_the_hot_part_and_greys_the_cold() -> None:
    heat = torch.zeros(12, 6)
    heat[:6] = 1
    painted = paint_heat(two_halves(), heat)
    assert painted.size == (192, 384)
    hot, cold = painted.getpixel((96, 40)), painted.getpixel((96, 340))
    assert isinstance(hot, tuple)
    assert isinstance(cold, tuple)
    # 65 % of the red, which is (190, 36, 40), and 35 % of the tint, (213, 94, 0)
    assert hot == pytest.approx((198, 56, 26), abs=1)
    assert len(set(cold)) == 1


def test_galleries_with_two_galleries_of_one_name_is_refused(compared: ComparedGallery) -> None:
    with pytest.raises(ValueError, match="two galleries have the same name"):
        Galleries([compared, compared])


def test_galleries_know_names_versions_and_cameras(galleries: Galleries) -> None:
    assert galleries.names == ["colours"]
    assert galleries.versions == ["Adapted model", "Bare model"]
    assert galleries.cameras("colours") == ["hall", "yard"]


def test_prepare_opening_with_known_sentences_answers_the_first_example(galleries: Galleries) -> None:
    opening = prepare_opening(galleries)
    assert opening.sentence == galleries.examples("colours")[0]
    assert [len(column.crops) for column in opening.columns] == [6, 6]
    assert opening.phrase == opening.phrases[1]
    assert opening.phrase.endswith(" clothes")
    assert len(opening.maps) == 2
    session = Session.from_opening(opening)
    assert (session.gallery, session.query) == ("colours", opening.sentence)
    assert session.chosen == session.positions[0][0] == opening.columns[0].positions[0]


def test_prepare_opening_with_a_gallery_that_knows_no_sentence_is_empty(
    compared: ComparedGallery, crops: Crops
) -> None:
    other = ComparedGallery(dataclasses.replace(crops, captions={}), compared.versions, progress=False)
    opening = prepare_opening(Galleries([other]))
    assert opening == Opening("colours")
    assert Session.from_opening(opening) == Session("colours")


def test_split_phrases_of_two_sentences_gives_subject_garments_and_details() -> None:
    sentence = "The slim man is wearing a blue and white striped shirt and jeans. The person has a red cap, grey shoes."
    # cut at "is", "wearing", "and", ".", "the person", "has" and ","; articles go
    assert split_phrases(sentence) == ["slim man", "blue", "white striped shirt", "jeans", "red cap", "grey shoes"]


def test_split_phrases_of_a_repeated_phrase_names_it_once() -> None:
    assert split_phrases("red cap, red cap and a red cap") == ["red cap"]


def test_split_phrases_of_words_that_hold_a_cutting_word_stay_whole() -> None:
    assert split_phrases("a sandwich band hat") == ["sandwich band hat"]


@pytest.mark.parametrize("sentence", ["", "   ", "and, with. on"])
def test_split_phrases_of_nothing_is_empty(sentence: str) -> None:
    assert split_phrases(sentence) == []


def test_split_phrases_of_a_long_list_stops_at_the_limit() -> None:
    assert split_phrases(", ".join(f"thing {number}" for number in range(20)), most=3) == [
        "thing 0",
        "thing 1",
        "thing 2",
    ]
