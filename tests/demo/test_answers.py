import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptreid import Gallery, PromptedCLIP
from promptreid.demo import answers as answers_module
from promptreid.demo.answers import MAX_SENTENCE, Answers, Filters, paint_heat, split_phrases
from promptreid.demo.shown_images import ShownImages
from promptreid.demo.sources import Opened, encode_crops, open_indexed
from promptreid.errors import DatasetError
from promptreid.evaluation.calibration import Calibration
from promptreid.evaluation.pictures.occlusion import occlusion_map
from promptreid.retrieval.table import Hit

SENTENCE = "a person in red clothes"


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def shot(answers: Answers, sentence: str = SENTENCE) -> tuple[Hit, ...]:
    """All images, the best first."""
    return answers.search(sentence, Filters())[0].hits


def test_search_shows_rank_score_camera_day_and_who_is_right(answers: Answers) -> None:
    (column,) = answers.search(SENTENCE, Filters(count=8))
    assert len(column.hits) == 8
    for rank, ((copy, words), hit) in enumerate(zip(column.crops, column.hits, strict=True), start=1):
        first, camera, day = words.split("\n")
        assert size_of(copy) == (24, 48)
        assert first.startswith(f"{rank} · {hit.score:.2f}")
        assert first.endswith(" ✓") == (hit.metadata["person_id"] == 1)
        assert (camera, day) == (hit.metadata["camera"], hit.metadata["time"][:10])
    assert column.status == f"Best score {column.hits[0].score:.2f}. ✓ fits the description."


def test_search_with_the_bare_model_names_both(answers: Answers) -> None:
    adapted, bare = answers.search(SENTENCE, Filters(), with_bare=True)
    assert adapted.status.startswith("<b>Adapted model</b>: best score ")
    assert bare.status.startswith("<b>Bare model</b>: best score ")
    assert [hit.score for hit in adapted.hits] != pytest.approx([hit.score for hit in bare.hits], abs=1e-3)
    assert answers.versions == ("Adapted model", "Bare model")


@pytest.mark.parametrize("odd", ["  a person\n in  red clothes ", "A person in red clothes."])
def test_search_for_a_sentence_written_oddly_marks_the_same_people(answers: Answers, odd: str) -> None:
    assert "✓" in answers.search(odd, Filters())[0].status
    assert "✓" not in answers.search("someone in red", Filters())[0].status


def test_search_above_every_score_says_that_no_image_reaches_it(answers: Answers) -> None:
    (column,) = answers.search(SENTENCE, Filters(threshold=0.99))
    assert column.crops == []
    assert column.status.startswith("No image scores 0.99 or more; the best scores 0.")


def test_search_with_threshold_counts_what_reaches_it(answers: Answers) -> None:
    everyone = answers.search(SENTENCE, Filters())[0].hits
    (column,) = answers.search(SENTENCE, Filters(threshold=everyone[3].score, count=2))
    assert column.hits == everyone[:2]
    assert column.status.startswith(f"4 images reach {everyone[3].score:.2f}, the best {everyone[0].score:.2f}.")


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        (Filters(cameras=["yard"]), [4, 5, 6, 7]),
        (Filters(days=["2026-11-24"]), [1, 3, 5, 7]),
        (Filters(cameras=["yard"], days=["2026-11-24"]), [5, 7]),
        (Filters(cameras=["yard", "hall"], days=["2026-11-23", "2026-11-24"]), list(range(8))),
    ],
)
def test_search_with_cameras_and_days_finds_only_theirs(answers: Answers, filters: Filters, numbers: list[int]) -> None:
    for column in answers.search(SENTENCE, filters, with_bare=True):
        assert sorted(hit.id for hit in column.hits) == numbers


def test_search_with_filters_read_from_names_of_files(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    for number in range(6):
        paint(tmp_path / f"2026-11-2{number % 3}" / f"000{number}_c{number % 2}_0.png", (40 * number, 36, 40))
    answers = Answers(encode_crops(tmp_path, model, progress=False), ShownImages(tmp_path / "shown", tmp_path))
    assert answers.cameras.values == ("camera 0", "camera 1")
    (column,) = answers.search(SENTENCE, Filters(cameras=["camera 1"], days=["2026-11-20"]))
    assert [hit.path.name for hit in column.hits] == ["0003_c1_0.png"]
    (column,) = answers.search(SENTENCE, Filters(cameras=["camera 9"]))
    assert column.status == "No image from these cameras and days."


def test_search_says_what_a_calibrated_threshold_means(opened: Opened, tmp_path: Path) -> None:
    gallery = Gallery(opened.gallery.model, opened.gallery.paths, opened.gallery.features)  # pyright: ignore
    lowest = shot(Answers(dataclasses.replace(opened, gallery=gallery), ShownImages(tmp_path, None)))[2].score
    gallery._store.header["calibration"] = dataclasses.asdict(  # pyright: ignore
        Calibration(lowest, false_alarm_rate=0.05, hit_rate=0.5, num_queries=10, gallery_size=8)
    )
    (column,) = Answers(dataclasses.replace(opened, gallery=gallery), ShownImages(tmp_path, None)).search(
        "red", Filters()
    )
    reaching = sum(hit.score >= lowest for hit in column.hits)
    words = "reached by 5% of searches for people who are not there and by 50% of those for people who are."
    assert f"{reaching} of these reach {lowest:.2f}, {words}" in column.status
    calibrated = gallery._store.header["calibration"]  # pyright: ignore
    gallery = Gallery(opened.gallery.model, opened.gallery.paths[:4], opened.gallery.features[:4])  # pyright: ignore
    gallery._store.header["calibration"] = {**calibrated, "threshold": column.hits[0].score}  # pyright: ignore
    answers = Answers(dataclasses.replace(opened, gallery=gallery), ShownImages(tmp_path, None))
    one = answers.search("red", Filters(threshold=column.hits[0].score))[0].status
    assert one.startswith("1 image reaches ")
    assert "1 of these reaches " in one
    with Image.open(gallery.paths[0]) as image:  # an image scores higher than sentences do
        assert answers.search(image, Filters())[0].status.startswith("Best score 1.00.")
        assert "people who are not there" not in answers.search(image, Filters())[0].status
    adapted, bare = answers.search("red", Filters(), with_bare=True)  # another model has other scores
    assert ("not there" in adapted.status, "not there" in bare.status) == (True, False)


def test_search_when_an_image_was_deleted_shows_a_grey_one_in_its_place(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paths = [paint(tmp_path / f"{number}.png", (60 * number, 36, 40)) for number in range(3)]
    answers = Answers(encode_crops(tmp_path, model, progress=False), ShownImages(tmp_path / "shown", tmp_path))
    paths[1].unlink()
    (column,) = answers.search(SENTENCE, Filters())
    grey = [hit.path for (copy, _), hit in zip(column.crops, column.hits, strict=True) if copy.stem == "unreadable"]
    assert grey == [paths[1]]


@pytest.mark.parametrize(
    ("query", "words"),
    [("", "the query is empty"), (" \n", "the query is empty"), ("red " * MAX_SENTENCE, f"at most {MAX_SENTENCE} are")],
)
def test_search_for_something_impossible_is_refused(answers: Answers, query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        answers.search(query, Filters())


@pytest.mark.filterwarnings("ignore:.* captions are (longer than|not in Latin):UserWarning")
@pytest.mark.parametrize("query", ["<script>alert(1)</script>", "🦖" * 100, "ليلى", "\x00", "a" * MAX_SENTENCE])
def test_search_for_odd_sentences_answers(answers: Answers, query: str) -> None:
    (column,) = answers.search(query, Filters())
    assert len(column.crops) == 8
    assert "<script" not in column.status


def test_search_of_a_large_gallery_looks_at_a_bounded_number(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_MOST_RANKED", 3)
    assert len(answers.search(SENTENCE, Filters(count=2))[0].hits) == 2
    assert len(answers.search(SENTENCE, Filters(count=5))[0].hits) == 5


def test_summary_escapes_what_the_gallery_says(answers: Answers) -> None:
    assert answers.summary() == "<b>colours</b>: 8 images, 2 cameras, 2 days. Plain &lt;colours&gt;."


def test_summary_counts_no_images_without_a_camera_and_a_single_thing_as_one(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    one = Answers(
        encode_crops(paint(tmp_path / "1.png", (9, 9, 9)).parent, model, progress=False), ShownImages(tmp_path, None)
    )
    assert ": 1 image. " in one.summary()
    for folder in ("hall", "yard"):
        paint(tmp_path / folder / "2.png", (90, 9, 9))
    answers = Answers(encode_crops(tmp_path, model, progress=False), ShownImages(tmp_path, None))
    assert answers.cameras.values == ("hall", "no camera", "yard")
    assert ": 3 images, 2 cameras. " in answers.summary()


def test_score_range_holds_the_scores_of_the_examples_and_a_little_above(answers: Answers) -> None:
    scores = [hit.score for sentence in answers.opened.examples for hit in shot(answers, sentence)]
    lowest, highest = answers.score_range
    assert min(scores) - 0.01 <= lowest <= min(scores)
    assert max(scores) + 0.05 <= highest + 1e-9 <= max(scores) + 0.07
    unknown = Answers(dataclasses.replace(answers.opened, examples=()), ShownImages(Path(), None))
    assert unknown.score_range == (-1.0, 1.0)


def test_detail_names_everything_that_is_known(answers: Answers) -> None:
    hit = shot(answers)[0]
    detail = answers.detail(hit)
    assert size_of(detail.image) == (256, 512)
    assert dict(detail.facts) == {
        "Name": hit.path.name,
        "Camera": hit.metadata["camera"],
        "Time": hit.metadata["time"],
        "Score": f"{hit.score:.3f}",
        "Number": str(hit.id),
        "person_id": "1",
    }
    assert detail.path == str(hit.path)


def test_detail_tells_a_stranger_no_path_of_this_computer(opened: Opened, tmp_path: Path) -> None:
    answers = Answers(opened, ShownImages(tmp_path, opened.root), is_trusted=False)
    hit = shot(answers)[0]
    assert answers.detail(hit).path == f"{hit.metadata['camera']}/{hit.path.name}"


@pytest.mark.parametrize(("is_trusted", "path"), [(True, "s3://bucket/1.jpg"), (False, "1.jpg")])
def test_detail_of_an_image_with_an_address_names_it_whole_or_by_its_file(
    opened: Opened, tmp_path: Path, is_trusted: bool, path: str
) -> None:
    answers = Answers(opened, ShownImages(tmp_path, opened.root), is_trusted=is_trusted)
    key = "s3://bucket/1.jpg"
    assert answers.detail(Hit(Path(key), 0.5, 0, id=99, key=key)).path == path


def test_heat_maps_are_one_a_version_asked_for(answers: Answers) -> None:
    hit = shot(answers)[0]
    ((image, words),) = answers.heat_maps(hit, "red coat")
    assert (image.size, words) == ((192, 384), "red coat")
    assert [label for _, label in answers.heat_maps(hit, "red coat", with_bare=True)] == ["Adapted model", "Bare model"]


@pytest.mark.parametrize(("phrase", "words"), [("", "phrase is empty"), ("red " * MAX_SENTENCE, "at most 500")])
def test_heat_maps_of_no_phrase_are_refused(answers: Answers, phrase: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        answers.heat_maps(shot(answers)[0], phrase)


def test_alike_begins_with_the_image_and_everybody_known_to_be_the_same(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "NUM_ALIKE", 3)
    hit = shot(answers)[5]
    crops, hits, same = answers.alike(hit)
    assert hits[0] == hit
    assert len(crops) == len({found.id for found in hits}) == 3
    person = hit.metadata["person_id"]
    assert [one.metadata["person_id"] == person for one in hits] == list(same) == [True, True, False]


def test_alike_names_every_image_of_a_known_person(drawn: Opened, tmp_path: Path) -> None:
    answers = Answers(drawn, ShownImages(tmp_path, drawn.root))
    (column,) = answers.search("a man in a green jacket", Filters(count=1))
    _, hits, same = answers.alike(column.hits[0])
    assert sum(same) == 4  # each of the drawn people has four images
    assert len({hit.metadata["person_id"] for hit in hits[:4]}) == 1


def test_alike_of_an_image_whose_file_is_gone_is_itself_and_can_be_forgotten(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paths = [paint(tmp_path / f"{number}.png", (60 * number, 36, 40)) for number in range(3)]
    answers = Answers(encode_crops(tmp_path, model, progress=False), ShownImages(tmp_path / "shown", tmp_path))
    (column,) = answers.search(SENTENCE, Filters())
    (gone,) = (hit for hit in column.hits if hit.path == paths[1])
    paths[1].unlink()
    crops, hits, same = answers.alike(gone)
    assert (len(crops), hits, same) == (1, (gone,), (True,))
    assert answers.forget(hits).removed == (str(paths[1]),)


def test_forget_removes_from_the_files_for_good_and_says_so(
    own_answers: Answers, model: PromptedCLIP, tmp_path: Path
) -> None:
    answers, before = own_answers, datetime.now(timezone.utc) - timedelta(seconds=1)
    answers.search(SENTENCE, Filters(), with_bare=True)  # so that there are copies, and features of the bare model
    hits = [hit for hit in shot(answers) if hit.metadata["person_id"] == 1]
    receipt = answers.forget(hits)
    assert before <= datetime.fromisoformat(receipt.when) <= datetime.now(timezone.utc)
    assert (receipt.gallery, receipt.removed) == ("index", tuple(str(hit.path) for hit in hits))
    text = str(receipt)
    assert text.startswith(f"Removed 2 images from index on {receipt.when}.")
    assert all(f"  {hit.path}" in text for hit in hits)
    for column in answers.search(SENTENCE, Filters(), with_bare=True):
        assert {1}.isdisjoint(hit.metadata["person_id"] for hit in column.hits)
        assert len(column.hits) == 6
    assert not [file for hit in hits for file in (tmp_path / "shown").glob(f"{hit.id}-*")]
    loaded = Gallery.load(tmp_path / "index", model)
    assert len(loaded) == 6
    assert loaded.update(tmp_path / "crops", progress=False).excluded  # the tombstones keep them out
    for ask in (answers.detail, answers.alike, lambda hit: answers.heat_maps(hit, "red")):
        with pytest.raises(DatasetError, match="was removed from the gallery"):
            ask(hits[0])


def test_forget_of_what_somebody_else_removed_removes_the_rest(own_answers: Answers) -> None:
    hits = shot(own_answers)[:3]
    own_answers.gallery.remove([hits[1].id])
    receipt = own_answers.forget(hits)
    assert receipt.removed == (str(hits[0].path), str(hits[2].path))
    assert "1 more had been removed before." in str(receipt)
    with pytest.raises(ValueError, match="were already removed"):
        own_answers.forget(hits)


def test_forget_of_nothing_or_by_a_stranger_is_refused(opened: Opened, answers: Answers, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image is ticked"):
        answers.forget([])
    stranger = Answers(opened, ShownImages(tmp_path, None), is_trusted=False)
    with pytest.raises(PermissionError, match="may not remove"):
        stranger.forget(shot(answers)[:1])
    assert len(opened.gallery) == 8


def test_forget_in_memory_says_that_it_lasts_as_long_as_the_page(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paint(tmp_path / "1.png", (190, 36, 40))
    paint(tmp_path / "2.png", (40, 74, 170))
    answers = Answers(encode_crops(tmp_path, model, progress=False), ShownImages(tmp_path / "shown", tmp_path))
    text = str(answers.forget(shot(answers)[:1]))
    assert text.startswith("Removed 1 image from ")
    assert "restarting the page builds it again from all image files" in text


class Store:
    """A database behind the same search: it lists nothing, and removes by key."""

    def __init__(self, gallery: Any) -> None:
        self._gallery = gallery
        self.model, self.calibration, self.url = gallery.model, None, "s3://bucket/people/"
        self.erased: list[str] = []

    def __len__(self) -> int:
        return len(self._gallery)

    def search(self, query: str | Image.Image, k: int, *, where: Any = None) -> list[Hit]:
        return self._gallery.search(query, k, where=where)

    def erase(self, images: Sequence[str]) -> None:
        self.erased += images


def test_a_database_that_lists_nothing_is_searched_filtered_and_erased_from(opened: Opened, tmp_path: Path) -> None:
    store = Store(opened.gallery)
    answers = Answers(open_indexed(store), ShownImages(tmp_path, None))
    assert answers.opened.name == "people"
    assert (answers.cameras.values, answers.days.values) == (("hall", "yard"), ("2026-11-23", "2026-11-24"))
    assert answers.versions == ("Adapted model",)  # its images cannot be encoded once more
    (column,) = answers.search(SENTENCE, Filters(cameras=["yard"]))
    assert sorted(hit.id for hit in column.hits) == [4, 5, 6, 7]
    receipt = answers.forget(column.hits[:1])
    assert store.erased == [column.hits[0].key]
    assert receipt.is_kept


def test_opening_is_the_answer_to_the_first_example_where_that_is_known(answers: Answers, mine: Opened) -> None:
    sentence, columns = answers.opening()
    assert sentence == SENTENCE
    assert columns == answers.search(SENTENCE, Filters())
    assert Answers(mine, ShownImages(Path(), None)).opening() == ("", [])


def two_halves() -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (48, 96), (190, 36, 40))
    image.paste((40, 74, 170), (0, 48, 48, 96))
    return image


def find_heat(model: PromptedCLIP, image: Image.Image, phrase: str) -> torch.Tensor:
    return occlusion_map(model, model.eval_transform(image), phrase)


def test_heat_lies_on_the_half_that_is_named(model: PromptedCLIP) -> None:
    with model.disabled():
        red, blue = (find_heat(model, two_halves(), f"a {name} shirt") for name in ("red", "blue"))
    assert red.shape == blue.shape == (12, 6)
    assert red[:6].mean() - red[6:].mean() > blue[:6].mean() - blue[6:].mean() + 0.1


@pytest.mark.parametrize("size", [(48, 96), (1, 1), (300, 20), (20, 300)])
def test_heat_of_an_image_of_any_size_is_between_0_and_1(model: PromptedCLIP, size: tuple[int, int]) -> None:
    heat = find_heat(model, two_halves().resize(size), "red coat")
    assert bool(((heat >= 0) & (heat <= 1)).all())


def test_heat_of_an_empty_phrase_is_refused(model: PromptedCLIP) -> None:
    with pytest.raises(ValueError, match="the phrase is empty; give a few words"):
        find_heat(model, two_halves(), " ")


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
