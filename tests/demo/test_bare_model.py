import operator
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from promptreid import Gallery, PromptConfig, PromptedCLIP, evaluate, load_clip
from promptreid.data.images import open_image
from promptreid.data.reader import load_cuhk_pedes
from promptreid.demo import bare_model
from promptreid.demo.bare_model import BareModel
from promptreid.demo.sources import DRAWN_EXAMPLES, DRAWN_SEED, Opened
from promptreid.retrieval.table import Hit

SENTENCE = "a person in red clothes"
IMAGE = torch.linspace(-1, 1, 3 * 96 * 48).reshape(1, 3, 96, 48)


def slow_scores(model: PromptedCLIP, paths: list[Path], sentence: str) -> list[float]:
    """One image at a time."""
    with torch.inference_mode():
        text = model.encode_text(model.tokenizer([sentence]), normalize=True)[0]
        images = [model.eval_transform(open_image(path))[None] for path in paths]
        return [float(model.encode_image(image, normalize=True)[0] @ text) for image in images]


def test_bare_search_ranks_as_one_image_at_a_time_does(opened: Opened, model: PromptedCLIP) -> None:
    hits = BareModel(model, opened.gallery).search(SENTENCE, 8)
    with model.disabled():
        wanted = slow_scores(model, list(opened.gallery.paths), SENTENCE)
    by_id = {hit.id: hit.score for hit in hits}
    assert [by_id[number] for number in range(8)] == pytest.approx(wanted, abs=1e-5)
    assert wanted != pytest.approx(slow_scores(model, list(opened.gallery.paths), SENTENCE), abs=1e-3)
    assert hits[0].metadata == opened.gallery.metadata[hits[0].id]


def test_bare_model_encodes_when_it_is_first_asked_and_once(opened: Opened, model: PromptedCLIP) -> None:
    bare = BareModel(model, opened.gallery)
    built: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = Gallery.build

        def count(*arguments: object, **options: object) -> Gallery:
            built.append(1)
            return whole(*arguments, **options)  # pyright: ignore

        patch.setattr(Gallery, "build", count)
        assert built == []
        alone = bare.search(SENTENCE, 3)
        together: list[list[Hit]] = []
        threads = [threading.Thread(target=lambda: together.append(bare.search(SENTENCE, 3))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert built == [1]
    assert together == [alone] * 4


def test_bare_model_forgets_what_the_gallery_forgot(opened: Opened, model: PromptedCLIP) -> None:
    bare, paths = BareModel(model, opened.gallery), opened.gallery.paths
    bare.remove([paths[0]])  # not encoded yet: nothing to forget
    assert len(bare.search(SENTENCE, 8)) == 8
    bare.remove([paths[0], Path("never there.png")])
    assert paths[0] not in [hit.path for hit in bare.search(SENTENCE, 8)]


def test_bare_model_is_offered_for_a_gallery_of_bounded_size(
    opened: Opened, model: PromptedCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BareModel(model, opened.gallery).is_offered
    monkeypatch.setattr(bare_model, "_MOST_IMAGES", 7)
    assert BareModel(model, opened.gallery).is_known
    assert not BareModel(model, opened.gallery).is_offered


@pytest.mark.slow
def test_on_drawn_people_both_models_answer_every_caption_as_the_evaluation_does(
    shipped: PromptedCLIP, drawn: Opened
) -> None:
    assert drawn.root is not None
    bare = BareModel(shipped, drawn.gallery)
    split = load_cuhk_pedes(drawn.root).test
    captions = [(caption, record.person_id) for record in split.records for caption in record.captions]
    wanted, sentences = [person_id for _, person_id in captions], [caption for caption, _ in captions]
    found: list[float] = []
    for gallery in (drawn.gallery, bare):
        hits: Any = gallery.search(sentences, 1)  # pyright: ignore[reportArgumentType]
        firsts = [one[0].metadata["person_id"] for one in hits]
        found.append(sum(map(operator.eq, firsts, wanted)) / len(wanted))
    adapted, plain = found
    assert adapted == pytest.approx(evaluate(shipped, split, progress=False).text_to_image.rank1)
    with shipped.disabled():
        assert plain == pytest.approx(evaluate(shipped, split, progress=False).text_to_image.rank1)
    # What the page shows on request: the shipped prompts help, and both models know far more than chance.
    assert adapted > plain > 3 / 30  # 30 persons in 4 images each: chance is 1 in 30


def test_the_examples_that_the_page_opens_with_show_that_the_prompts_help(shipped: PromptedCLIP, drawn: Opened) -> None:
    bare = BareModel(shipped, drawn.gallery)
    for sentence in DRAWN_EXAMPLES:
        adapted, plain = (
            sum(hit.metadata["person_id"] in drawn.described[sentence] for hit in gallery.search(sentence, 12))
            for gallery in (drawn.gallery, bare)
        )
        assert adapted > plain, sentence


def prompted(length: int = 2) -> PromptedCLIP:
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, PromptConfig(text_length=length, vision_length=length))


@pytest.fixture(scope="module")
def bare_features() -> torch.Tensor:
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    with torch.inference_mode():
        return clip.encode_image(IMAGE)


def features(model: PromptedCLIP) -> torch.Tensor:
    with torch.inference_mode():
        return model.encode_image(IMAGE)


def test_bare_model_after_stage_one_is_the_model_without_prompts(opened: Opened, bare_features: torch.Tensor) -> None:
    model = prompted().eval()
    assert not torch.allclose(features(model), bare_features, atol=1e-3)
    with BareModel(model, opened.gallery).running() as running:
        assert running is model
        torch.testing.assert_close(features(running), bare_features, rtol=1e-4, atol=1e-5)


def test_bare_model_after_stage_two_is_the_base_loaded_beside_it(opened: Opened, bare_features: torch.Tensor) -> None:
    model = prompted()
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.2)
    bare = BareModel(model, opened.gallery)
    assert bare.is_known
    with bare.running() as running:
        assert running is not model
        torch.testing.assert_close(features(running), bare_features, rtol=1e-4, atol=1e-5)


def test_bare_model_of_a_model_without_prompts_or_with_a_random_base_is_unknown(opened: Opened) -> None:
    assert not BareModel(prompted(0), opened.gallery).is_known
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.2)
    assert not BareModel(model, opened.gallery).is_known


@pytest.mark.slow
def test_the_tool_that_chooses_the_examples_chooses_those(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = Path(__file__).parents[2] / "tools" / "choose_examples.py"
    monkeypatch.setattr(sys, "argv", [tool.name, "--seeds", str(DRAWN_SEED)])
    runpy.run_path(str(tool), run_name="__main__")  # it exits with the choice if that is another
    assert all(sentence in capsys.readouterr().out for sentence in DRAWN_EXAMPLES[:1])
