"""A stage in a plain loop: only what should train changes, at the rates it says."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from promptreid.losses.contrastive import ContrastiveLoss, SDMLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.self_consistency import SelfConsistencyLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.averaging import GaussianAverage
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.stage import Stage, rate_factor
from promptreid.training.stage_losses import Losses

PROMPTS = {"vision.prompts.tokens", "text.prompts.tokens"}


def make_stage(model: PromptedCLIP, **settings: Any) -> Stage:
    return Stage("test", model, **({"trains": ["prompts"], "losses": {"contrastive": ContrastiveLoss()}} | settings))


def train(stage: Stage, images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor, *, steps: int) -> None:
    """The plain loop of the documentation."""
    stage.prepare()
    optimizer = stage.optimizer()
    scheduler = stage.scheduler(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        out = stage.model(images, tokens)
        stage.losses(out["image_features"], out["text_features"], person_ids)["total"].backward()
        optimizer.step()
        scheduler.step()


class Needy(ContrastiveLoss):
    def __init__(self, needs: Any) -> None:
        super().__init__()
        self.needs = needs


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("trains", "expected"),
    [
        (["prompts"], PROMPTS),
        (["image_prompts"], {"vision.prompts.tokens"}),
        (["text_prompts"], {"text.prompts.tokens"}),
    ],
)
def test_stage_training_prompts_leaves_every_other_byte_as_it_was(
    model: PromptedCLIP,
    images: torch.Tensor,
    tokens: torch.Tensor,
    person_ids: torch.Tensor,
    trains: list[str],
    expected: set[str],
) -> None:
    before = copy.deepcopy(model.state_dict())
    train(make_stage(model, trains=trains), images, tokens, person_ids, steps=3)
    assert changed(before, model.state_dict()) == expected
    assert all(parameter.grad is None for parameter in model.encoder_parameters())


def test_stage_training_encoders_changes_all_of_them_and_no_prompt(
    model: PromptedCLIP, images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor
) -> None:
    stage = make_stage(
        model,
        trains=["encoders"],
        losses={"contrastive": ContrastiveLoss(), "identity": CrossModalIDLoss(3, 32)},
        weight_decay=0.1,
    )
    before, head = copy.deepcopy(model.state_dict()), copy.deepcopy(stage.loss_modules.state_dict())
    train(stage, images, tokens, person_ids, steps=3)
    frozen = PROMPTS | {"clip.logit_scale", "clip.attn_mask"}
    assert changed(before, model.state_dict()) == set(before) - frozen
    assert changed(head, stage.loss_modules.state_dict()) == set(head)
    assert all(parameter.grad is None for parameter in model.prompt_parameters())


def test_stage_prepare_sets_gradients_and_modes_of_just_what_trains(model: PromptedCLIP) -> None:
    model.train().requires_grad_(True)
    make_stage(model).prepare()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == PROMPTS
    assert not any(module.training for module in model.clip.modules())
    assert model.vision.prompts.training
    make_stage(model, trains=["encoders"]).prepare()
    assert not any(parameter.requires_grad for parameter in model.prompt_parameters())
    assert not model.clip.logit_scale.requires_grad
    assert model.clip.visual.training
    assert not model.vision.prompts.training


def test_stage_gradients_of_encoders_reach_every_trainable_parameter(
    model: PromptedCLIP, images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor
) -> None:
    # A parameter without a gradient is what DistributedDataParallel refuses.
    stage = make_stage(model, trains=["encoders"])
    stage.prepare()
    out = model(images, tokens)
    stage.losses(out["image_features"], out["text_features"], person_ids)["total"].backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert missing == []


def test_stage_losses_total_is_the_weighted_sum(model: PromptedCLIP, person_ids: torch.Tensor) -> None:
    stage = make_stage(
        model,
        losses={"contrastive": ContrastiveLoss(), "identity": CrossModalIDLoss(3, 32)},
        weights={"identity": 0.25},
    )
    losses = stage.losses(torch.randn(5, 32), torch.randn(5, 32), person_ids)
    assert set(losses) == {"contrastive", "identity", "total"}
    torch.testing.assert_close(losses["total"], losses["contrastive"] + 0.25 * losses["identity"])


def test_stage_optimizer_splits_decay_and_raises_new_modules_rate(model: PromptedCLIP) -> None:
    head = CrossModalIDLoss(3, 32)
    stage = make_stage(model, trains=["encoders"], losses={"identity": head}, learning_rate=1e-3, weight_decay=0.1)
    groups = stage.optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
        (5e-3, 0.1),
        (5e-3, 0.0),
    ]
    assert groups[2]["params"] == [head.classifier.weight]
    assert groups[3]["params"] == [head.classifier.bias]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    assert all(parameter.ndim <= 1 for parameter in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(stage.parameters())


def test_stage_optimizer_is_the_algorithm_asked_for(model: PromptedCLIP) -> None:
    stage = make_stage(model, algorithm="adam", betas=(0.5, 0.9), epsilon=1e-3)
    optimizer = stage.optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.5, 0.9)
    assert optimizer.defaults["eps"] == 1e-3
    assert type(make_stage(model).optimizer()) is torch.optim.AdamW
    assert make_stage(model).optimizer(fused=True).param_groups[0]["fused"]
    assert optimizer.param_groups[0]["fused"] is None
    plain = make_stage(model, algorithm="sgd", betas=(0.8, 0.9), learning_rate=0.1, weight_decay=0.2).optimizer()
    assert type(plain) is torch.optim.SGD
    assert [(group["momentum"], group["lr"], group["nesterov"]) for group in plain.param_groups] == [(0.8, 0.1, False)]


@pytest.mark.parametrize("trains", ["prompts", "encoders", "norms"])
def test_stage_frozen_batch_norm_keeps_its_statistics(
    model: PromptedCLIP, images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor, trains: str
) -> None:
    norm = torch.nn.BatchNorm2d(32)
    model.clip.visual.conv1 = torch.nn.Sequential(model.clip.visual.conv1, norm)
    before = copy.deepcopy(norm.state_dict())
    train(make_stage(model, trains=[trains]), images, tokens, person_ids, steps=2)
    kept = all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert kept == (trains == "prompts")


def test_stage_frozen_dropout_drops_nothing(model: PromptedCLIP) -> None:
    dropout = model.clip.visual.patch_dropout = torch.nn.Dropout(0.5)
    for trains in ("prompts", "norms", "projections"):
        make_stage(model, trains=[trains]).prepare()
        assert not dropout.training
    make_stage(model, trains=["encoders"]).prepare()
    assert dropout.training


def test_rate_factor_follows_warmup_then_cosine() -> None:
    # 4 warm-up steps: 0.1 + 0.9 * 2/4 = 0.55 at step 2; half-way down the cosine, at 4 + 8/2, (1 + cos 90°)/2 = 0.5.
    values = [rate_factor(step, total=12, warmup=4) for step in (0, 2, 4, 8, 12)]
    assert values == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.0])
    assert rate_factor(0, total=12, warmup=0) == 1.0
    assert rate_factor(99, total=12, warmup=4) == pytest.approx(0.0)


def test_stage_scheduler_sets_the_rate_of_each_group_by_step(model: PromptedCLIP) -> None:
    stage = make_stage(model, epochs=2, learning_rate=1.0, warmup_epochs=1)
    optimizer = stage.optimizer()
    scheduler = stage.scheduler(optimizer, 2)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trains": []}, "nothing to train"),
        ({"trains": ["prompt"]}, r"stage 'test': trains \['prompt'\], expected some of .* or names"),
        ({"trains": "prompts"}, r"trains \['prompts'\], expected some of .* in a list"),
        ({"trains": lambda name, _: "lora_" in name}, "chooses none of the model's .* vision.prompts.tokens"),
        ({"trains": ["clip.logit_scale"]}, "trains clip.logit_scale, but no feature is computed from there"),
        ({"losses": {}}, "expected at least one"),
        ({"losses": {"total": ContrastiveLoss()}}, "the name of their sum"),
        ({"weights": {"contrastve": 1.0}}, "weights for"),
        ({"weights": {"contrastive": -1.0}}, "weight of contrastive of stage 'test' is -1.0, expected a number of at"),
        ({"weights": {"contrastive": 0.0}}, r"stage 'test' has the weights \{'contrastive': 0\.0\}, .* one above 0"),
        (
            {"losses": {"a": ContrastiveLoss(), "b": SDMLoss()}, "weights": {"a": 0, "b": -0.0}},
            r"stage 'test' has the weights \{'a': 0\.0, 'b': -0\.0\}, expected at least one above 0",
        ),
        ({"epochs": 0}, "expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate of stage 'test' is 0.0, expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"warmup_epochs": 1}, "less than its 1 epochs"),
        ({"warmup_epochs": -1}, "warmup_epochs of stage 'test' is -1.0, expected a number of at least 0"),
        ({"algorithm": "lion"}, "algorithm of stage 'test' is 'lion', expected one of adamw, adam, sgd"),
        ({"layer_decay": 1.5}, "layer_decay of at most 1"),
        ({"layer_decay": 0.0}, "layer_decay of stage 'test' is 0.0, expected a number above 0"),
        ({"betas": (0.9, 1.0)}, "betas below 1"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"prompt_learning_rate": -1.0}, "prompt_learning_rate"),
        (
            {"trains": ["norms"], "losses": {"held": SelfConsistencyLoss()}},
            "the loss 'held' of stage 'test' needs frozen features, but the encoders train",
        ),
        ({"losses": {"own": Needy("frozen")}}, "needs='frozen', expected a tuple of some of frozen, batch"),
        ({"losses": {"own": Needy(("teacher",))}}, "expected a tuple of some of frozen, batch"),
    ],
)
def test_stage_wrong_setting_is_refused(model: PromptedCLIP, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_stage(model, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1.5}, "epochs of stage 'test' is 1.5, expected a whole number of at least 1"),
        ({"epochs": 2.0}, "epochs of stage 'test' is 2.0, expected a whole number of at least 1"),
        ({"learning_rate": "1e-4"}, "learning_rate of stage 'test' is '1e-4', expected a number"),
        ({"weights": {"contrastive": None}}, "weight of contrastive of stage 'test' is None, expected a number"),
        ({"max_norm": "1"}, "max_norm of stage 'test' is '1', expected a number"),
        ({"betas": 0.9}, "betas of stage 'test' is 0.9, expected two numbers, such as"),
        ({"betas": (0.9,)}, r"betas of stage 'test' is \(0.9,\), expected two numbers"),
        ({"betas": (0.9, "0.99")}, "betas of stage 'test' is '0.99', expected a number"),
    ],
)
def test_stage_setting_that_is_no_number_is_refused(
    model: PromptedCLIP, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        make_stage(model, **settings)


def test_stage_makes_numbers_of_numpy_and_tensors_plain(model: PromptedCLIP) -> None:
    given: dict[str, Any] = {
        "epochs": np.int64(3), "learning_rate": np.float32(0.5), "weight_decay": torch.tensor(0.25), "max_norm": 2,
        "warmup_epochs": np.int32(1), "weights": {"contrastive": np.float64(0.5)}, "betas": np.array([0.5, 0.25]),
        "average": GaussianAverage(np.float32(0.5), torch.tensor(0.25)),
    }  # fmt: skip
    stage = make_stage(model, **given)
    stage.losses.weights["contrastive"] = np.float32(0.5)  # pyright: ignore[reportArgumentType]
    settings = json.loads(json.dumps(stage.settings()))
    plain = {
        "epochs": 3, "learning_rate": 0.5, "prompt_learning_rate": 0.5, "weight_decay": 0.25, "max_norm": 2.0,
        "warmup_epochs": 1.0, "weights": {"contrastive": 0.5}, "betas": [0.5, 0.25],
        "average": {"kind": "GaussianAverage", "mean": 0.5, "std": 0.25},
    }  # fmt: skip
    assert {name: settings[name] for name in plain} == plain
    assert type(stage.epochs) is int


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "float"), (None, "NoneType"), (torch.ones(3), r"a tensor \(3,\)"), (torch.ones(1), r"a tensor \(1,\)")],
)
def test_loss_that_returns_no_single_number_is_named(value: Any, said: str) -> None:
    losses = Losses({"own": lambda images, texts, person_ids: value})
    words = rf"the loss 'own' returned {said}, expected a tensor \(\), such as a mean over the batch"
    with pytest.raises(TypeError, match=words):
        losses(torch.eye(2), torch.eye(2), torch.arange(2))


def test_stage_gives_frozen_features_to_losses_that_need_them_and_to_no_other(
    model: PromptedCLIP, images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor
) -> None:
    stage = make_stage(model, losses={"plain": ContrastiveLoss(), "held": SelfConsistencyLoss(image_weight=2.0)})
    assert stage.losses.needs == {"frozen"}
    stage.prepare()
    frozen = stage.frozen_features(images, tokens)
    with model.disabled(), torch.no_grad():
        bare = model(images, tokens)
    assert torch.equal(frozen.image_features, bare["image_features"])
    assert torch.equal(frozen.text_features, bare["text_features"])
    assert not frozen.text_features.requires_grad
    out = model(images, tokens)
    features = out["image_features"], out["text_features"]
    found = stage.losses(*features, person_ids, frozen=frozen)
    assert torch.equal(found["held"], SelfConsistencyLoss(image_weight=2.0)(*features, frozen=frozen))
    with pytest.raises(ValueError, match=r"needs frozen; call stage.losses\(…, frozen=stage.frozen_features"):
        stage.losses(*features, person_ids)


def test_stage_training_prompts_of_length_zero_is_refused(clip: torch.nn.Module) -> None:
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0))
    with pytest.raises(ValueError, match="give prompts a length of at least 1"):
        make_stage(model)


def test_stage_training_the_head_alone_is_allowed(model: PromptedCLIP) -> None:
    stage = make_stage(model, trains=[], losses={"identity": CrossModalIDLoss(3, 32)})
    stage.prepare()
    assert len(stage.parameters()) == 2
    assert not any(parameter.requires_grad for parameter in model.parameters())


NAMED = ("clip.visual.conv1.weight", "clip.ln_final.bias", "text.prompts.tokens")


@pytest.mark.parametrize("trains", [NAMED, lambda name, _: name in NAMED, ["text_prompts", *NAMED[:2]]])
def test_stage_training_named_parameters_changes_those_alone(
    model: PromptedCLIP, images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor, trains: Any
) -> None:
    stage = make_stage(model, trains=trains, learning_rate=1e-2)
    before = copy.deepcopy(model.state_dict())
    train(stage, images, tokens, person_ids, steps=2)
    assert changed(before, model.state_dict()) == set(NAMED)
    assert stage.trains_encoders
    assert set(stage.settings()["trains"]) == {*(trains if isinstance(trains, (list, tuple)) else NAMED)}
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in NAMED)


def test_stage_function_is_given_parameters_and_leaves_out_what_no_feature_needs(model: PromptedCLIP) -> None:
    stage = make_stage(model, trains=lambda name, parameter: name.startswith("clip.") and parameter.ndim <= 1)
    assert "clip.logit_scale" not in stage.trains
    assert "clip.ln_final.weight" in stage.trains
    assert not make_stage(model, trains=lambda name, _: name == "vision.prompts.tokens").trains_encoders


def test_stage_making_one_of_named_parameters_leaves_the_model_as_it_was(model: PromptedCLIP) -> None:
    model.requires_grad_(False).train()
    model.clip.visual.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    make_stage(model, trains=["clip.visual.conv1.weight"])
    assert [module.training for module in model.modules()] == modes
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not changed(before, model.state_dict())


def test_stage_named_parameters_put_their_own_module_alone_into_train_mode(model: PromptedCLIP) -> None:
    dropout = model.clip.visual.patch_dropout = torch.nn.Dropout(0.5)
    make_stage(model, trains=["clip.visual.class_embedding", "clip.visual.ln_pre.weight"]).prepare()
    assert model.clip.visual.ln_pre.training
    assert not dropout.training
    assert not model.clip.visual.transformer.training


def test_stage_takes_a_loss_of_your_own_as_a_dictionary_does(model: PromptedCLIP) -> None:
    schedule = TwoStageSchedule(model, num_identities=3)
    schedule.stage_two.losses["mine"] = lambda images, texts, person_ids: (images - texts).square().mean()
    schedule.stage_two.weights["mine"] = 0.5
    images, texts, person_ids = torch.randn(4, 32), torch.randn(4, 32), torch.tensor([0, 1, 2, 0])
    found = schedule.stage_two.losses(images, texts, person_ids)
    assert list(found) == ["contrastive", "identity", "mine", "total"]
    torch.testing.assert_close(found["mine"], (images - texts).square().mean())
    torch.testing.assert_close(found["total"], found["contrastive"] + found["identity"] + 0.5 * found["mine"])
    # What a run is compared by when it is resumed, so other words for the same would refuse every run begun before.
    assert schedule.stage_two.settings()["losses"]["mine"].startswith("_FunctionLoss(")
    assert schedule.stage_two.loss_settings["mine"]["class"] == "_FunctionLoss"
    del schedule.stage_two.losses["mine"]
    assert list(schedule.stage_two.losses(images, texts, person_ids)) == ["contrastive", "identity", "total"]
    with pytest.raises(TypeError, match="the loss 'mine' is int, expected a module or a function"):
        schedule.stage_two.losses["mine"] = 3  # type: ignore[assignment]
    with pytest.raises(ValueError, match="the name of their sum"):
        schedule.stage_two.losses["total"] = torch.nn.Identity()
    with pytest.raises(LookupError, match="this schedule has no stage_one: stage_one_epochs is 0"):
        _ = TwoStageSchedule(model, num_identities=3, stage_one_epochs=0).stage_one


def test_stage_loss_added_later_that_needs_frozen_features_is_refused_where_encoders_train(model: PromptedCLIP) -> None:
    stage = make_stage(model, trains=["encoders"])
    stage.losses["held"] = SelfConsistencyLoss()
    with pytest.raises(ValueError, match="the loss 'held' of stage 'test' needs frozen features"):
        stage.prepare()


def test_stage_function_may_need_the_batch(model: PromptedCLIP) -> None:
    def brightness(images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor, *, batch: Any) -> torch.Tensor:
        return batch["images"].mean()

    brightness.needs = ("batch",)  # type: ignore[attr-defined]
    stage = make_stage(model, losses={"brightness": brightness})
    found = stage.losses(torch.ones(2, 3), torch.ones(2, 3), torch.arange(2), batch={"images": torch.full((2,), 4.0)})
    assert found["brightness"] == 4
