import pytest
import torch


@pytest.fixture
def family_example(run_example):
    return run_example("A tower family")


@pytest.fixture
def crops():
    return torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_tower_of_the_family_is_prompted_and_bare_without(family_example, crops):
    model, visual = family_example.model.eval(), family_example.clip.visual
    assert model.vision.kind == "torchvision.VisionTransformer"
    assert model.vision.prompts.tokens.shape == (3, 4, 64)
    with torch.no_grad():
        prompted = model.encode_image(crops)
        with model.disabled():
            bare = model.encode_image(crops)
        assert not torch.equal(prompted, bare)
        model.detach()
        assert torch.equal(visual(crops), bare)


def test_prompts_stand_after_the_class_token_of_every_block(family_example, crops):
    model, visual = family_example.model.eval(), family_example.clip.visual
    lengths = []
    for block in visual.encoder.layers:
        block.self_attention.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    model.encode_image(crops)
    assert lengths == [37 + 4] * 3


def test_stage_one_trains_the_prompts_and_no_weight_of_the_tower(family_example, crops):
    from promptreid import TwoStageSchedule

    model = family_example.model
    first, _ = TwoStageSchedule(model, num_identities=4)
    first.prepare()
    optimizer = first.optimizer()
    weights = {name: value.clone() for name, value in model.clip.state_dict().items()}
    before = model.vision.prompts.tokens.detach().clone()
    images, texts = model.encode_image(crops), model.encode_text(model.tokenizer(["a", "b", "c", "d"]))
    first.losses(images, texts, torch.arange(4))["total"].backward()
    optimizer.step()
    assert not torch.equal(model.vision.prompts.tokens, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.clip.state_dict().items())


def test_tower_is_unknown_without_the_family(family_example):
    from promptreid.errors import UnsupportedTowerError

    family_example.model.detach()
    family_example.VISION_FAMILIES.pop(0)
    with pytest.raises(UnsupportedTowerError, match="VisionTransformer"):
        family_example.PromptedCLIP(family_example.clip)
