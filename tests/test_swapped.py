"""Arguments that are swapped, or the thing beside the one that was meant, are a TypeError that says what to write."""

from types import SimpleNamespace

import pytest

import promptreid
from promptreid import Gallery, PromptConfig, PromptedCLIP, Stage, Trainer, TwoStageSchedule, evaluate
from promptreid.adaptation import adapt
from promptreid.data import CaptionedImages
from promptreid.data.records import ReIDDataset

CASES = {
    "a folder before the model": (lambda t: Gallery.build("crops", t.model), "model is str, expected a PromptedCLIP"),
    "a gallery of a bare model": (lambda t: Gallery.build(t.clip, "crops"), r"wrap it: PromptedCLIP\(clip\)"),
    "a gallery of a dataset": (lambda t: Gallery.build(t.model, t.data), "images is ReIDDataset, .* dataset.test"),
    "the model before the folder": (lambda t: Gallery.load(t.model, "gallery"), "model is str"),
    "a schedule of a bare model": (lambda t: TwoStageSchedule(t.clip, num_identities=5), r"wrap it: PromptedCLIP"),
    "persons as the recipe": (lambda t: TwoStageSchedule(t.model, 5), "recipe is 5, .* num_identities="),
    "a stage of a bare model": (
        lambda t: Stage("a", t.clip, trains=["encoders"], losses={}),
        "wrap it: PromptedCLIP",
    ),
    "the schedule before the model": (
        lambda t: Trainer([t.model], t.model, train_data=[], batch_size=8, output_dir="run"),
        "model is list, expected a PromptedCLIP",
    ),
    "scores on a whole dataset": (lambda t: evaluate(t.model, t.data), "whole ReIDDataset, .* dataset.test"),
    "the split before the model": (lambda t: evaluate(t.split, t.model), "model is ReIDSplit"),
    "scores on a folder": (lambda t: evaluate(t.model, "data"), r"split is str, .* load_dataset\(folder\).test"),
    "pairs of a whole dataset": (
        lambda t: CaptionedImages(t.data, transform=None, tokenizer=None),
        "whole ReIDDataset",
    ),
    "adapting the data": (lambda t: adapt(t.data, t.model, output_dir="run"), "model is ReIDDataset"),
    "adapting to a split": (lambda t: adapt(t.model, t.split, output_dir="run"), "data is ReIDSplit"),
    "saving a folder": (lambda t: promptreid.save_prompts("folder", t.model), "model is str"),
    "pushing a name": (lambda t: promptreid.push_prompts("user/name", t.model), "repo_id is PromptedCLIP"),
    "loading a model": (
        lambda t: promptreid.load_prompts(t.model),
        "source is PromptedCLIP, which is neither a folder",
    ),
    "the config before the model": (lambda t: PromptedCLIP(PromptConfig(), t.clip), "config is CLIP, expected"),
}


@pytest.fixture
def things(clip, split):
    return SimpleNamespace(
        clip=clip, model=PromptedCLIP(clip), split=split, data=ReIDDataset("mine", None, split, None, split)
    )


@pytest.mark.parametrize("case", CASES)
def test_swapped_arguments_are_named(case, things, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = CASES[case]
    with pytest.raises(TypeError, match=said) as caught:
        call(things)
    assert len(str(caught.value)) < 200  # a model's whole tree is no help
    assert not list(tmp_path.iterdir())


def test_compiled_model_is_a_prompted_one(things):
    import torch

    from promptreid.model.encoding import check_prompted

    check_prompted(torch.compile(things.model))
