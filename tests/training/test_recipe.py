"""The two stages of Prompt Decoupling and their numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from promptreid.losses.contrastive import SDMLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.recipe import Recipe, TwoStageSchedule


def test_two_stage_schedule_default_is_domain_then_task_adaptation(model: PromptedCLIP) -> None:
    schedule = TwoStageSchedule(model, num_identities=3, stage_one_epochs=2, stage_two_epochs=4, identity_weight=0.5)
    assert isinstance(schedule, Sequence)
    assert [stage.name for stage in schedule] == ["stage_one", "stage_two"]
    assert [stage.trains for stage in schedule] == [("prompts",), ("encoders",)]
    assert [list(stage.loss_modules) for stage in schedule] == [["contrastive"], ["contrastive", "identity"]]
    assert [stage.epochs for stage in schedule] == [2, 4]
    assert schedule[1].weights == {"contrastive": 1.0, "identity": 0.5}
    assert schedule[1].loss_modules["identity"].classifier.weight.shape == (3, model.embed_dim)
    assert schedule[1:] == [schedule[1]]


def test_two_stage_schedule_takes_a_recipe_and_options_replace_its_numbers(model: PromptedCLIP) -> None:
    recipe = Recipe(num_identities=3, stage_one_epochs=2, matching="sdm")
    schedule = TwoStageSchedule(model, recipe, stage_two_epochs=4)
    assert [stage.epochs for stage in schedule] == [2, 4]
    assert list(schedule[0].loss_modules) == ["sdm"]
    with pytest.raises(TypeError, match="stage_three_epochs"):
        TwoStageSchedule(model, recipe, stage_three_epochs=1)


def test_two_stage_schedule_of_unknown_persons_says_what_to_give(model: PromptedCLIP) -> None:
    with pytest.raises(ValueError, match="the identity loss needs num_identities"):
        TwoStageSchedule(model)
    assert len(TwoStageSchedule(model, identity_weight=0)) == 2


def test_recipe_with_stages_changes_epochs_and_rates_alone() -> None:
    changed = Recipe(temperature=0.1).with_stages(epochs=[1, 0], learning_rates=(0.1, 0.2))
    assert changed == Recipe(
        temperature=0.1,
        stage_one_epochs=1,
        stage_two_epochs=0,
        stage_one_learning_rate=0.1,
        stage_two_learning_rate=0.2,
    )
    assert changed.with_stages() == changed


def test_two_stage_schedule_identity_head_stays_out_of_the_model(model: PromptedCLIP) -> None:
    before = set(model.state_dict())
    TwoStageSchedule(model, num_identities=3)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"stage_one_epochs": 0}, ["stage_two"]),
        ({"stage_two_epochs": 0}, ["stage_one"]),
    ],
)
def test_two_stage_schedule_zero_epochs_leaves_a_stage_out(
    model: PromptedCLIP, settings: dict[str, Any], names: list[str]
) -> None:
    assert [stage.name for stage in TwoStageSchedule(model, num_identities=3, **settings)] == names


def test_two_stage_schedule_zero_identity_weight_leaves_the_loss_out(model: PromptedCLIP) -> None:
    schedule = TwoStageSchedule(model, num_identities=3, identity_weight=0)
    assert list(schedule[1].loss_modules) == ["contrastive"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_one_epochs": 0, "stage_two_epochs": 0}, "nothing to train"),
        ({"stage_one_epochs": -1}, "stage_one_epochs is -1, expected at least 0"),
        ({"num_identities": 1}, "at least 2"),
        ({"temperature": 0.0}, "temperature"),
        ({"identity_weight": -1.0}, "identity_weight is -1.0"),
        ({"self_consistency": -1.0}, "self_consistency is -1.0"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"algorithm": "lion"}, "algorithm of stage 'stage_one' is 'lion'"),
    ],
)
def test_two_stage_schedule_wrong_setting_is_refused(
    model: PromptedCLIP, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TwoStageSchedule(model, **({"num_identities": 3} | settings))


@pytest.mark.parametrize("name", ["num_identities", "stage_one_epochs", "stage_two_epochs"])
def test_recipe_number_that_is_not_whole_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} is 2.0, expected a whole number"):
        Recipe(**{name: 2.0})
    given: dict[str, Any] = {name: np.int64(2)}
    assert type(getattr(Recipe(**given), name)) is int


@pytest.mark.parametrize(
    "name", ["stage_one_learning_rate", "temperature", "identity_weight", "weight_decay", "epsilon"]
)
def test_recipe_setting_that_is_no_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} is 'fast', expected a number"):
        Recipe(**{name: "fast"})
    for value, kind in ((np.float64(0.5), float), (1, int), (np.int64(1), int), (torch.tensor(1), int)):
        given: dict[str, Any] = {name: value}
        assert type(getattr(Recipe(**given), name)) is kind


def test_recipe_clipping_and_betas_that_are_no_numbers_are_refused_by_name() -> None:
    given: dict[str, Any]
    for given, words in (({"max_norm": "fast"}, "max_norm is 'fast'"), ({"betas": ("a", 1)}, "betas is 'a'")):
        with pytest.raises(TypeError, match=rf"{words}, expected a number"):
            Recipe(**given)
    for betas in (None, 0.9, (0.9,), np.array([0.9])):
        given = {"betas": betas}
        with pytest.raises(TypeError, match=r"betas is .*, expected two numbers"):
            Recipe(**given)
    given = {"max_norm": np.float32(1), "betas": [np.float32(0.5), 0.999]}
    recipe = Recipe(**given)
    assert (type(recipe.max_norm), recipe.betas) == (float, (0.5, 0.999))
    for betas in (np.array([0.5, 0.75]), torch.tensor([0.5, 0.75])):
        given = {"betas": betas}
        assert Recipe(**given).betas == (0.5, 0.75)


def test_recipe_regularises_stage_one_as_promptsrc_and_leaves_stage_two(model: PromptedCLIP) -> None:
    recipe = Recipe(num_identities=3, self_consistency=0.5, average_prompts=True, temperature=0.05)
    one, two = TwoStageSchedule(model, recipe)
    assert list(one.loss_modules) == ["contrastive", "self_consistency"]
    assert one.weights == {"contrastive": 1.0, "self_consistency": 0.5}
    assert one.loss_modules["self_consistency"].temperature == 0.05
    assert one.average is not None
    assert (two.average, list(two.loss_modules)) == (None, ["contrastive", "identity"])
    plain = Recipe().domain_adaptation(model)
    assert (plain.average, list(plain.loss_modules)) == (None, ["contrastive"])


def test_two_stage_schedule_bare_towers_cannot_have_stage_one(clip: torch.nn.Module) -> None:
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0))
    with pytest.raises(ValueError, match="nothing to train"):
        TwoStageSchedule(model, num_identities=3)
    assert len(TwoStageSchedule(model, num_identities=3, stage_one_epochs=0)) == 1


def test_recipe_optimizer_and_clipping_reach_every_stage(model: PromptedCLIP) -> None:
    recipe = Recipe(num_identities=3, algorithm="adam", betas=(0.9, 0.98), epsilon=1e-3, max_norm=None)
    for stage in TwoStageSchedule(model, recipe):
        assert (stage.algorithm, stage.betas, stage.epsilon, stage.max_norm) == ("adam", (0.9, 0.98), 1e-3, None)
    own = recipe.stage("own", model, epochs=2, trains=["prompts"], losses={"sdm": SDMLoss()}, max_norm=2.0)
    assert (own.max_norm, own.algorithm) == (2.0, "adam")


def test_recipe_matching_nitc_has_soft_labels_and_takes_the_temperature(model: PromptedCLIP) -> None:
    recipe = Recipe(num_identities=3, matching="nitc", temperature=0.07, learnable_temperature=True)
    loss = TwoStageSchedule(model, recipe)[0].loss_modules["nitc"]
    assert (loss.temperature.value, loss.soft_labels, len(list(loss.parameters()))) == (0.07, 0.5, 1)
