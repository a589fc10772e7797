import copy

import pytest
import torch


@pytest.fixture
def kind_example(run_example):
    return run_example("A prompt kind")


@pytest.fixture
def batch(kind_example):
    images = torch.randn(4, 3, 96, 48, generator=torch.Generator().manual_seed(0))
    return images, kind_example.model.tokenizer(["a man in red", "a woman in blue", "a boy", "a girl with a bag"])


def train(model, batch, steps=3):
    from promptreid import ContrastiveLoss, Stage

    stage = Stage("one", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()}, learning_rate=0.01)
    stage.prepare()
    optimizer = stage.optimizer()
    for _ in range(steps):
        optimizer.zero_grad()
        features = model.encode_image(batch[0]), model.encode_text(batch[1])
        stage.losses(*features, torch.arange(4))["total"].backward()
        optimizer.step()
    model.eval()


def features(model, batch):
    with torch.no_grad():
        return torch.cat([model.encode_image(batch[0]), model.encode_text(batch[1])])


def test_kind_starts_as_the_bare_model_and_is_trained_by_stage_one(kind_example, batch):
    model = kind_example.model
    with model.disabled():
        bare = features(model, batch)
    torch.testing.assert_close(features(model, batch), bare)
    weights = {name: value.clone() for name, value in model.clip.state_dict().items()}
    assert [tuple(parameter.shape) for parameter in model.prompt_parameters()] == [(4, 128), (4, 128)]
    train(model, batch)
    assert all(parameter.abs().min() > 0 for parameter in model.prompt_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.clip.state_dict().items())
    assert not torch.allclose(features(model, batch), bare)
    with model.disabled():
        torch.testing.assert_close(features(model, batch), bare)  # frozen, some kernels round differently


def test_kind_is_saved_and_loaded_with_the_same_features(kind_example, batch, tmp_path):
    from safetensors.torch import load_file

    shifts = kind_example.BlockShifts
    train(kind_example.model, batch)
    folder = kind_example.save_prompts(kind_example.model, tmp_path / "trained")
    assert load_file(folder / "prompts.safetensors").keys() == {"vision.prompts.shifts", "text.prompts.shifts"}
    loaded = kind_example.load_prompts(folder, vision_prompts=shifts, text_prompts=shifts)
    torch.testing.assert_close(features(loaded, batch), features(kind_example.model, batch))


def test_loading_without_the_class_names_the_kind(kind_example):
    from promptreid.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"BlockShifts.*vision_prompts"):
        kind_example.load_prompts(kind_example.folder)


def test_copy_has_hooks_of_its_own(kind_example, batch):
    model = kind_example.model
    before = features(model, batch)
    other = copy.deepcopy(model)
    train(other, batch)
    assert not torch.allclose(features(other, batch), before)
    assert torch.equal(features(model, batch), before)
