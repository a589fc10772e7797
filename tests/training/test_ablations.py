"""Each ablation: which parts train in which stage on which losses, and on which model."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training import ablations
from promptreid.training.ablations import ABLATIONS
from promptreid.training.recipe import Recipe

BOTH, TEXT, IMAGE, NONE = (2, 2), (2, 0), (0, 2), (0, 0)
MATCHING, EVERY = ["contrastive"], ["contrastive", "identity"]
EXPECTED = {
    "two_stages": (BOTH, [(("prompts",), MATCHING), (("encoders",), EVERY)]),
    "direct_fine_tuning": (NONE, [(("encoders",), EVERY)]),
    "direct_after_head_warm_up": (NONE, [((), ["identity"]), (("encoders",), EVERY)]),
    "prompts_only": (BOTH, [(("prompts",), MATCHING)]),
    "joint_one_stage": (BOTH, [(("prompts", "encoders"), EVERY)]),
    "prompts_in_both_stages": (BOTH, [(("prompts",), MATCHING), (("prompts", "encoders"), EVERY)]),
    "stage_two_without_identity": (BOTH, [(("prompts",), MATCHING), (("encoders",), MATCHING)]),
    "text_prompts_only": (TEXT, [(("text_prompts",), MATCHING), (("encoders",), EVERY)]),
    "image_prompts_only": (IMAGE, [(("image_prompts",), MATCHING), (("encoders",), EVERY)]),
    "frozen_random_prompts": (BOTH, [(("encoders",), EVERY)]),
    "norms_and_projections_first": (NONE, [(("norms", "projections"), MATCHING), (("encoders",), EVERY)]),
}


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(num_identities=3, stage_one_epochs=2, stage_two_epochs=4)


def make_model(clip: torch.nn.Module, lengths: tuple[int, int]) -> PromptedCLIP:
    return PromptedCLIP(clip, PromptConfig(text_length=lengths[0], vision_length=lengths[1]))


@pytest.mark.parametrize("name", EXPECTED)
def test_ablation_stages_are_those_of_the_table(clip: torch.nn.Module, recipe: Recipe, name: str) -> None:
    lengths, expected = EXPECTED[name]
    stages = getattr(ablations, name)(make_model(clip, lengths), recipe)
    assert [(stage.trains, list(stage.loss_modules)) for stage in stages] == expected


@pytest.mark.parametrize("name", EXPECTED)
def test_ablation_changes_just_what_its_stages_train(
    clip: torch.nn.Module,
    recipe: Recipe,
    images: torch.Tensor,
    tokens: torch.Tensor,
    person_ids: torch.Tensor,
    name: str,
) -> None:
    lengths, expected = EXPECTED[name]
    model = make_model(clip, lengths)
    for stage, (trains, _) in zip(getattr(ablations, name)(model, recipe), expected, strict=True):
        before = copy.deepcopy(model.state_dict())
        stage.prepare()
        optimizer = stage.optimizer()
        out = model(images, tokens)
        stage.losses(out["image_features"], out["text_features"], person_ids)["total"].backward()
        optimizer.step()
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert bool(changed & {"vision.prompts.tokens"}) == bool({"prompts", "image_prompts"} & set(trains))
        assert bool(changed & {"text.prompts.tokens"}) == bool({"prompts", "text_prompts"} & set(trains))
        assert ("clip.visual.conv1.weight" in changed) == ("encoders" in trains)
        assert ("clip.visual.ln_pre.weight" in changed) == bool({"encoders", "norms"} & set(trains))
        assert ("clip.text_projection" in changed) == bool({"encoders", "projections"} & set(trains))


@pytest.mark.parametrize("name", EXPECTED)
def test_ablation_of_a_model_with_other_prompts_is_refused(clip: torch.nn.Module, recipe: Recipe, name: str) -> None:
    lengths, _ = EXPECTED[name]
    other = make_model(clip, (2 - lengths[0], 2))
    text, image = (2 * length for length in lengths)
    with pytest.raises(ValueError, match=rf"PromptConfig\(text_length={text}, vision_length={image}\)") as caught:
        getattr(ablations, name)(other, recipe)
    assert name in str(caught.value)


@pytest.mark.parametrize("way", ABLATIONS)
def test_ablation_has_stage_one_where_its_settings_are_used(
    clip: torch.nn.Module, recipe: Recipe, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation, used = ABLATIONS[way], []
    adapted = Recipe.domain_adaptation
    monkeypatch.setattr(Recipe, "domain_adaptation", lambda *all, **more: used.append(way) or adapted(*all, **more))
    ablation.stages(PromptedCLIP(clip, ablation.config(PromptConfig())), recipe)
    assert bool(used) == ablation.has_stage_one


def test_head_warm_up_hands_its_head_on(clip: torch.nn.Module, recipe: Recipe) -> None:
    head, direct = ablations.direct_after_head_warm_up(make_model(clip, NONE), recipe)
    assert head.loss_modules["identity"] is direct.loss_modules["identity"]


def test_head_warm_up_without_identity_loss_is_refused(clip: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="identity_weight is 0; set Recipe"):
        ablations.direct_after_head_warm_up(make_model(clip, NONE), Recipe(num_identities=3, identity_weight=0.0))


def test_joint_one_stage_trains_prompts_and_encoders_at_their_own_rates(clip: torch.nn.Module, recipe: Recipe) -> None:
    model = make_model(clip, BOTH)
    (stage,) = ablations.joint_one_stage(model, recipe)
    rates = {id(p): group["lr"] for group in stage.optimizer().param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.prompt_parameters()} == {recipe.stage_one_learning_rate}
    assert rates[id(model.clip.visual.conv1.weight)] == recipe.stage_two_learning_rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_identities": 1}, "at least 2"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"identity_weight": -1.0}, "identity_weight"),
        ({"matching": "triplet"}, "expected one of contrastive, sdm, nitc"),
    ],
)
def test_recipe_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**({"num_identities": 3} | settings))


@pytest.mark.parametrize("name", ABLATIONS)
def test_ways_of_the_table_fit_their_models_and_see_the_data_equally_often(
    clip: torch.nn.Module, recipe: Recipe, name: str
) -> None:
    way = ABLATIONS[name]
    model = PromptedCLIP(clip, way.config(PromptConfig(text_length=2, vision_length=2)))
    own = way.recipe(replace(recipe, stage_one_epochs=2, stage_two_epochs=3))
    stages = way.stages(model, own)
    expected = {"direct_short": 3, "stage_one": 2}.get(name, 5)
    if name in ("text_prompts", "image_prompts", "pd", "norms_stage_one"):
        assert [stage.name for stage in stages] == ["stage_one", "stage_two"]
    assert sum(stage.epochs for stage in stages) == expected
