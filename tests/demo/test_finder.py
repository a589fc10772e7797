import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptreid import PromptedCLIP, evaluate
from promptreid.data.images import open_image
from promptreid.data.reader import load_cuhk_pedes
from promptreid.demo.crops import Crops, folder_crops
from promptreid.demo.desk import Desk
from promptreid.demo.finder import Finder, Found
from promptreid.demo.versions import compare
from promptreid.errors import DatasetError

SENTENCE = "A person in red clothes."


def slow_scores(model: PromptedCLIP, crops: Crops, sentence: str) -> list[float]:
    """One picture at a time."""
    with torch.inference_mode():
        text = model.encode_text(model.tokenizer([sentence]), normalize=True)[0]
        pictures = [model.eval_transform(open_image(path))[None] for path in crops.paths]
        return [float(model.encode_image(picture, normalize=True)[0] @ text) for picture in pictures]


def test_search_ranks_as_one_picture_at_a_time_does(finder: Finder, model: PromptedCLIP, crops: Crops) -> None:
    adapted, bare = finder.search(SENTENCE, k=8)
    wanted = slow_scores(model, crops, SENTENCE)
    with model.disabled():
        wanted_bare = slow_scores(model, crops, SENTENCE)
    for found, scores in ((adapted, wanted), (bare, wanted_bare)):
        by_place = {match.place: match.score for match in found.matches}
        assert [by_place[place] for place in range(8)] == pytest.approx(scores, abs=1e-5)
        assert [match.score for match in found.matches] == sorted(by_place.values(), reverse=True)
        assert found.best == pytest.approx(max(scores), abs=1e-5)
        ordered = sorted(scores)
        assert found.typical == pytest.approx((ordered[3] + ordered[4]) / 2, abs=1e-5)
    assert wanted != pytest.approx(wanted_bare, abs=1e-3)


def test_search_by_one_of_the_pictures_finds_it_first(finder: Finder, crops: Crops) -> None:
    for found in finder.search(crops.open(2)):
        assert crops.person_ids[found.matches[0].place] == 3
        assert found.best == pytest.approx(1, abs=1e-3)


def test_search_with_cameras_finds_only_theirs(finder: Finder) -> None:
    for found in finder.search(SENTENCE, cameras=["yard"]):
        assert sorted(match.place for match in found.matches) == [4, 5, 6, 7]


def test_search_with_a_camera_that_has_no_picture_finds_nothing(finder: Finder) -> None:
    assert finder.search(SENTENCE, cameras=["roof"])[0] == Found("Adapted model", (), None, None)


def test_search_with_threshold_keeps_what_scores_as_much_or_more(finder: Finder) -> None:
    everyone = finder.search(SENTENCE)[0]
    kept = finder.search(SENTENCE, threshold=everyone.matches[3].score)[0]  # each crop is there twice: two pairs
    assert kept.matches == everyone.matches[:4]
    nobody = finder.search(SENTENCE, threshold=1.0)[0]
    assert nobody.matches == ()
    assert nobody.best == everyone.best


def test_search_with_k_larger_than_the_gallery_gives_all(finder: Finder) -> None:
    assert len(finder.search(SENTENCE, k=1000)[0].matches) == len(finder) == 8
    assert len(finder.search(SENTENCE, k=3)[0].matches) == 3


def test_search_for_nothing_is_refused(finder: Finder) -> None:
    with pytest.raises(ValueError, match="the query is empty"):
        finder.search("  ")


def test_search_in_many_threads_gives_what_one_thread_gives(finder: Finder, crops: Crops) -> None:
    queries: list[str | Image.Image] = [*crops.captions, *(crops.open(place) for place in range(4))]
    alone = [finder.search(query) for query in queries]
    together: dict[int, tuple[Found, ...]] = {}

    def ask(number: int) -> None:
        together[number] = finder.search(queries[number % len(queries)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4 * len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(threads))] == alone * 4


def test_finder_with_a_broken_picture_warns_once_and_keeps_places(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paint(tmp_path / "2.png", (190, 36, 40))
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="1 of 2 pictures cannot be read") as warned:
        finder = Finder(folder_crops(tmp_path), compare(model), progress=False)
    assert len(warned) == 1
    assert [match.place for match in finder.search(SENTENCE)[0].matches] == [1]
    assert len(finder) == 1


def test_finder_without_readable_picture_is_refused(model: PromptedCLIP, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of the 1 pictures can be read"):
        Finder(folder_crops(tmp_path), compare(model), progress=False)


def test_finder_on_drawn_people_answers_every_sentence_as_the_evaluation_does(
    shipped: PromptedCLIP, drawn: Crops
) -> None:
    finder = Finder(drawn, compare(shipped), progress=False)
    split = load_cuhk_pedes(drawn.root).test
    right = [0, 0]
    for sentence, person_id in drawn.captions.items():
        for version, found in enumerate(finder.search(sentence, k=1)):
            right[version] += drawn.is_right(found.matches[0].place, person_id)
    adapted, bare = (count / len(drawn.captions) for count in right)
    assert adapted == pytest.approx(evaluate(shipped, split, progress=False).text_to_image.rank1)
    with shipped.disabled():
        assert bare == pytest.approx(evaluate(shipped, split, progress=False).text_to_image.rank1)
    # What the page shows side by side: the shipped prompts help, and both models know far more than chance.
    assert adapted > bare > 3 / 30  # 30 persons in 4 pictures each: chance is 1 in 30


def test_finder_on_drawn_people_ranks_as_the_gallery_does(shipped: PromptedCLIP, drawn: Crops, known: Any) -> None:
    finder = Finder(drawn, compare(shipped), progress=False)
    (column, _) = Desk([finder]).search(finder.crops.name, known.sentence, k=6)
    assert [label for _, label in column.crops] == known.labels
    assert "✓" in known.labels[0]
