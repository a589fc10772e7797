"""How deep each parameter is, and the rates that follow; the parts of a model."""

import copy

import pytest
import torch

from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.parameters import LayerDepths, part_parameters
from promptreid.training.stage import Stage


def named_distances(model: PromptedCLIP) -> dict[str, int | None]:
    depths = LayerDepths(model)
    return {name: depths.distance_from_end(parameter) for name, parameter in model.named_parameters()}


def test_layer_depths_follow_the_towers(model: PromptedCLIP) -> None:
    # Three blocks a tower: 4 before them, 3 2 1 in them, 0 after the last.
    distances = named_distances(model)
    for name in ("visual.conv1.weight", "visual.class_embedding", "visual.ln_pre.bias", "token_embedding.weight"):
        assert distances[f"clip.{name}"] == 4, name
    assert distances["clip.positional_embedding"] == 4
    for index in range(3):
        assert distances[f"clip.visual.transformer.resblocks.{index}.attn.in_proj_weight"] == 3 - index
        assert distances[f"clip.transformer.resblocks.{index}.mlp.c_fc.bias"] == 3 - index
    for name in ("visual.ln_post.weight", "visual.proj", "ln_final.bias", "text_projection"):
        assert distances[f"clip.{name}"] == 0, name
    for name in ("clip.logit_scale", "vision.prompts.tokens", "text.prompts.tokens"):
        assert distances[name] is None, name


def test_layer_depths_leave_the_model_as_it_was(model: PromptedCLIP) -> None:
    model.clip.visual.train()
    model.clip.visual.proj.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    asked = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    LayerDepths(model)
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("note" in str(hook) for block in model.modules() for hook in block._forward_pre_hooks.values())


def test_layer_depths_of_a_tower_without_blocks_are_refused(
    model: PromptedCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.vision, "tower", None)
    monkeypatch.setattr(type(model.vision), "kind", "timm.convnext")
    with pytest.raises(ValueError, match=r"timm\.convnext is not a sequence of Transformer blocks"):
        LayerDepths(model)


def test_stage_layer_decay_multiplies_the_rate_block_by_block(model: PromptedCLIP) -> None:
    stage = Stage(
        "test",
        model,
        trains=["encoders", "prompts"],
        losses={"contrastive": ContrastiveLoss()},
        learning_rate=1.0,
        prompt_learning_rate=3.0,
        layer_decay=0.5,
    )
    rates = {id(p): group["lr"] for group in stage.optimizer().param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}
    assert named["clip.visual.proj"] == named["clip.ln_final.weight"] == 1.0
    assert named["clip.visual.transformer.resblocks.2.ln_1.weight"] == 0.5
    assert named["clip.transformer.resblocks.0.ln_1.weight"] == 0.125
    assert named["clip.visual.conv1.weight"] == named["clip.token_embedding.weight"] == 0.0625
    assert named["vision.prompts.tokens"] == 3.0
    assert len(stage.optimizer().param_groups) <= 2 * 5 + 1


def test_part_norms_and_projections_are_few_and_do_not_overlap(model: PromptedCLIP) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    norms = {names[id(parameter)] for parameter in part_parameters(model, "norms")}
    projections = {names[id(parameter)] for parameter in part_parameters(model, "projections")}
    assert projections == {"clip.visual.proj", "clip.text_projection"}
    assert norms == {name for name in names.values() if ".ln_" in name}
