import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.demo.versions import ADAPTED, BARE, compare

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


def test_compare_after_stage_one_runs_one_model_with_and_without_prompts(bare_features: torch.Tensor) -> None:
    model = prompted().train()
    adapted, bare = compare(model)
    assert (adapted.label, bare.label) == (ADAPTED, BARE)
    assert adapted.model is bare.model is model
    assert not model.training
    with adapted.running() as running:
        assert not torch.allclose(features(running), bare_features, atol=1e-3)
    with bare.running() as running:
        torch.testing.assert_close(features(running), bare_features, rtol=1e-4, atol=1e-5)


def test_compare_after_stage_two_loads_the_base_beside_it(bare_features: torch.Tensor) -> None:
    model = prompted()
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.2)
    _, bare = compare(model)
    assert bare.model is not model
    with bare.running() as running:
        torch.testing.assert_close(features(running), bare_features, rtol=1e-4, atol=1e-5)


def test_compare_with_random_base_has_the_adapted_version_only() -> None:
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
    with torch.no_grad():
        for parameter in model.encoder_parameters():
            parameter.mul_(1.2)
    assert [version.label for version in compare(model)] == [ADAPTED]
