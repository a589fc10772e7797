import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptreid import PromptConfig, PromptedCLIP, evaluate, load_clip
from promptreid.data.images import open_image
from promptreid.data.reader import load_cuhk_pedes
from promptreid.demo.answers import Galleries
from promptreid.demo.comparison import ADAPTED, BARE, ComparedGallery, Found, make_versions
from promptreid.demo.sources import Crops, list_crops
from promptreid.errors import DatasetError

SENTENCE = "A person in red clothes."


def slow_scores(model: PromptedCLIP, crops: Crops, sentence: str) -> list[float]:
    """One image at a time."""
    with torch.inference_mode():
        text = model.encode_text(model.tokenizer([sentence]), normalize=True)[0]
        images = [model.eval_transform(open_image(path))[None] for path in crops.paths]
        return [float(model.encode_image(image, normalize=True)[0] @ text) for image in images]


def test_search_ranks_as_one_image_at_a_time_does(compared: ComparedGallery, model: PromptedCLIP, crops: Crops) -> None:
    adapted, bare = compared.search(SENTENCE, k=8)
    wanted = slow_scores(model, crops, SENTENCE)
    with model.disabled():
        wanted_bare = slow_scores(model, crops, SENTENCE)
    for found, scores in ((adapted, wanted), (bare, wanted_bare)):
        by_position = {match.position: match.score for match in found.matches}
        assert [by_position[position] for position in range(8)] == pytest.approx(scores, abs=1e-5)
        assert [match.score for match in found.matches] == sorted(by_position.values(), reverse=True)
        assert found.best == pytest.approx(max(scores), abs=1e-5)
        ordered = sorted(scores)
        assert found.typical == pytest.approx((ordered[3] + ordered[4]) / 2, abs=1e-5)
    assert wanted != pytest.approx(wanted_bare, abs=1e-3)


def test_search_by_one_of_the_images_finds_it_first(compared: ComparedGallery, crops: Crops) -> None:
    for found in compared.search(crops.open(2)):
        assert crops.person_ids[found.matches[0].position] == 3
        assert found.best == pytest.approx(1, abs=1e-3)


def test_search_with_cameras_finds_only_theirs(compared: ComparedGallery) -> None:
    for found in compared.search(SENTENCE, cameras=["yard"]):
        assert sorted(match.position for match in found.matches) == [4, 5, 6, 7]


def test_search_with_a_camera_that_has_no_image_finds_nothing(compared: ComparedGallery) -> None:
    assert compared.search(SENTENCE, cameras=["roof"])[0] == Found("Adapted model", (), None, None)


def test_search_with_threshold_keeps_what_scores_as_much_or_more(compared: ComparedGallery) -> None:
    everyone = compared.search(SENTENCE)[0]
    kept = compared.search(SENTENCE, threshold=everyone.matches[3].score)[0]  # each crop is there twice: two pairs
    assert kept.matches == everyone.matches[:4]
    nobody = compared.search(SENTENCE, threshold=1.0)[0]
    assert nobody.matches == ()
    assert nobody.best == everyone.best


def test_search_with_k_larger_than_the_gallery_gives_all(compared: ComparedGallery) -> None:
    assert len(compared.search(SENTENCE, k=1000)[0].matches) == len(compared) == 8
    assert len(compared.search(SENTENCE, k=3)[0].matches) == 3


def test_search_for_nothing_is_refused(compared: ComparedGallery) -> None:
    with pytest.raises(ValueError, match="the query is empty"):
        compared.search("  ")


def test_search_in_many_threads_gives_what_one_thread_gives(compared: ComparedGallery, crops: Crops) -> None:
    queries: list[str | Image.Image] = [*crops.captions, *(crops.open(position) for position in range(4))]
    alone = [compared.search(query) for query in queries]
    together: dict[int, tuple[Found, ...]] = {}

    def ask(number: int) -> None:
        together[number] = compared.search(queries[number % len(queries)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4 * len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(len(threads))] == alone * 4


def test_compared_gallery_with_a_broken_image_warns_once_and_keeps_positions(
    model: PromptedCLIP, tmp_path: Path, paint: Callable[..., Path]
) -> None:
    paint(tmp_path / "2.png", (190, 36, 40))
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read") as warned:
        compared = ComparedGallery(list_crops(tmp_path), make_versions(model), progress=False)
    assert len(warned) == 1
    assert [match.position for match in compared.search(SENTENCE)[0].matches] == [1]
    assert len(compared) == 1


def test_compared_gallery_without_readable_image_is_refused(model: PromptedCLIP, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="none of the 1 images can be read"):
        ComparedGallery(list_crops(tmp_path), make_versions(model), progress=False)


def test_compared_gallery_on_drawn_people_answers_every_sentence_as_the_evaluation_does(
    shipped: PromptedCLIP, drawn: Crops
) -> None:
    compared = ComparedGallery(drawn, make_versions(shipped), progress=False)
    split = load_cuhk_pedes(drawn.root).test
    right = [0, 0]
    for sentence, person_id in drawn.captions.items():
        for version, found in enumerate(compared.search(sentence, k=1)):
            right[version] += drawn.shows(found.matches[0].position, person_id)
    adapted, bare = (count / len(drawn.captions) for count in right)
    assert adapted == pytest.approx(evaluate(shipped, split, progress=False).text_to_image.rank1)
    with shipped.disabled():
        assert bare == pytest.approx(evaluate(shipped, split, progress=False).text_to_image.rank1)
    # What the page shows side by side: the shipped prompts help, and both models know far more than chance.
    assert adapted > bare > 3 / 30  # 30 persons in 4 images each: chance is 1 in 30


def test_compared_gallery_on_drawn_people_ranks_as_the_gallery_does(
    shipped: PromptedCLIP, drawn: Crops, known: Any
) -> None:
    compared = ComparedGallery(drawn, make_versions(shipped), progress=False)
    (column, _) = Galleries([compared]).search(compared.crops.name, known.sentence, k=6)
    assert [label for _, label in column.crops] == known.labels
    assert "✓" in known.labels[0]


IMAGE = torch.linspace(-1, 1, 3 * 96 * 48).reshape(1, 3, 96, 48)


def prompted() -> PromptedCLIP:
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))


@pytest.fixture(scope="module")
def bare_features() -> torch.Tensor:
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    with torch.inference_mode():
        return clip.encode_image(IMAGE)


def features(model: PromptedCLIP) -> torch.Tensor:
    with torch.inference_mode():
        return model.encode_image(IMAGE)


def test_make_versions_after_stage_one_runs_one_model_with_and_without_prompts(bare_features: torch.Tensor) -> None:
    model = prompted().train()
    adapted, bare = make_versions(model)
    assert (adapted.label, bare.label) == (ADAPTED, BARE)
    assert adapted.model is bare.model is model
    assert not model.training
    with adapted.running() as running:
        assert not torch.allclose(features(running), bare_features, atol=1e-3)
    with bare.running() as running:
        torch.testing.assert_close(features(running), bare_features, rtol=1e-4, atol=1e-5)


def test_make_versions_after_stage_two_loads_the_base_beside_it(bare_features: torch.Tensor) -> None:
    model = prompted()
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.2)
    _, bare = make_versions(model)
    assert bare.model is not model
    with bare.running() as running:
        torch.testing.assert_close(features(running), bare_features, rtol=1e-4, atol=1e-5)


def test_make_versions_with_random_base_has_the_adapted_version_only() -> None:
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.2)
    assert [version.label for version in make_versions(model)] == [ADAPTED]
