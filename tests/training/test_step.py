"""Gradient caching against the plain step; equality in two processes is in `test_processes.py`."""

import copy
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.self_consistency import SelfConsistencyLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.processes import every_batch_a_step, make_accelerator
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage


@pytest.fixture
def batch(images: torch.Tensor, tokens: torch.Tensor, person_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"images": images, "tokens": tokens, "person_ids": person_ids}


def gradients(stage: Stage, batch: Any, *, chunk_size: int | None) -> dict[str, torch.Tensor]:
    running = RunningStage(stage, make_accelerator("cpu", "no"), steps_per_epoch=1, chunk_size=chunk_size)
    running.optimizer.zero_grad()
    losses = running.backward(batch)
    named = {**dict(stage.model.named_parameters()), **dict(stage.loss_modules.named_parameters())}
    found = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
    return found | {name: value.detach() for name, value in losses.items()}


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
@pytest.mark.parametrize("trains", [["prompts"], ["encoders"], ["text_prompts"], ["prompts", "encoders"], []])
def test_gradient_cache_gives_losses_and_gradients_of_the_plain_step(
    model: PromptedCLIP, batch: Any, trains: list[Any], chunk_size: int
) -> None:
    model.double()
    batch["images"] = batch["images"].double()
    losses = {"contrastive": ContrastiveLoss(0.1), "identity": CrossModalIDLoss(3, 32).double()}
    stage = Stage("test", model, trains=trains, losses=losses)
    plain = gradients(stage, batch, chunk_size=None)
    cached = gradients(stage, batch, chunk_size=chunk_size)
    assert cached.keys() == plain.keys()
    assert "contrastive" in plain
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_running_stage_fuses_the_step_unless_a_scaler_may_skip_it(model: PromptedCLIP) -> None:
    accelerator = make_accelerator("cpu", "no")
    stage = Stage("test", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()})
    assert RunningStage(stage, accelerator, steps_per_epoch=1).optimizer.param_groups[0]["fused"]
    accelerator.scaler = torch.amp.GradScaler("cpu")
    assert not RunningStage(stage, accelerator, steps_per_epoch=1).optimizer.param_groups[0]["fused"]


def test_gradient_cache_draws_the_same_dropout_in_both_passes(model: PromptedCLIP, batch: Any) -> None:
    model.clip.visual.patch_dropout = torch.nn.Dropout(0.5)
    stage = Stage("test", model, trains=["encoders"], losses={"contrastive": ContrastiveLoss(0.1)})
    seen = []
    stage.prepare()
    model.clip.visual.register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    running = RunningStage(stage, make_accelerator("cpu", "no"), steps_per_epoch=1, chunk_size=2)
    running.backward(batch)
    assert len(seen) == 6
    assert all(torch.equal(first, second) for first, second in zip(seen[:3], seen[3:], strict=True))
    assert not torch.equal(seen[0], seen[1])
    drawn = torch.rand(1)
    assert not torch.equal(drawn, torch.rand(1))


def test_gradient_cache_keeps_no_graph_of_more_than_a_chunk(model: PromptedCLIP, batch: Any) -> None:
    stage = Stage("test", model, trains=["encoders"], losses={"contrastive": ContrastiveLoss(0.1)})
    sizes = []
    model.clip.visual.register_forward_hook(
        lambda module, args, output: sizes.append((len(output), output.requires_grad))
    )
    running = RunningStage(stage, make_accelerator("cpu", "no"), steps_per_epoch=1, chunk_size=2)
    running.backward(batch)
    assert sizes == [(2, False), (2, False), (1, False), (2, True), (2, True), (1, True)]


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_gradient_cache_gives_the_plain_step_with_frozen_features(
    model: PromptedCLIP, batch: Any, chunk_size: int
) -> None:
    model.double()
    batch["images"] = batch["images"].double()
    losses = {"contrastive": ContrastiveLoss(0.1), "self_consistency": SelfConsistencyLoss(temperature=0.1)}
    stage = Stage("test", model, trains=["prompts"], losses=losses)
    plain = gradients(stage, batch, chunk_size=None)
    cached = gradients(stage, batch, chunk_size=chunk_size)
    assert plain["self_consistency"] > 0
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-10, atol=1e-12, msg=name)


class Teacher(torch.nn.Module):
    """Features near those of another model, which encodes the same batch and is no part of the stage."""

    needs = ("batch",)

    def __init__(self, teacher: torch.nn.Module) -> None:
        super().__init__()
        self.teacher = (teacher,)  # in a tuple, so that it neither trains nor is kept in checkpoints

    def forward(self, images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor, *, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher[0].encode_image(batch["images"])
        return (images - wanted).square().mean() + 0 * batch["views"].sum()


def test_loss_that_needs_the_batch_gets_it_as_it_was_loaded(model: PromptedCLIP, batch: Any, clip: Any) -> None:
    teacher = copy.deepcopy(model.detach())
    prompted = PromptedCLIP(model.clip, model.config)
    stage = Stage("test", prompted, trains=["prompts"], losses={"teacher": Teacher(teacher)})
    batch["views"] = batch["images"] + 1  # whatever else the items hold
    found = gradients(stage, batch, chunk_size=None)
    with torch.no_grad():
        wanted = (prompted.encode_image(batch["images"]) - teacher.encode_image(batch["images"])).square().mean()
    torch.testing.assert_close(found["teacher"], wanted)
    assert found["vision.prompts.tokens"].abs().sum() > 0
    assert not list(stage.loss_modules.parameters())


def left(stage: Stage) -> list[str]:
    named = (*stage.model.named_parameters(), *stage.losses.named_parameters())
    return [name for name, parameter in named if parameter.grad is not None]


@pytest.mark.parametrize("stale", [10.0, math.nan])
def test_running_stage_begins_without_the_gradients_that_others_left(model: PromptedCLIP, stale: float) -> None:
    losses = {"contrastive": ContrastiveLoss(), "identity": CrossModalIDLoss(3, 32)}
    stage = Stage("test", model, trains=["prompts"], losses=losses)
    for parameter in (*model.parameters(), *stage.losses.parameters()):
        parameter.requires_grad_(True).grad = torch.full_like(parameter, stale)
    RunningStage(stage, make_accelerator("cpu", "no"), steps_per_epoch=1)
    assert not left(stage)


@pytest.mark.parametrize("fails", ["backward", "gradient", "optimizer"])
def test_running_stage_step_that_fails_leaves_no_gradients(
    model: PromptedCLIP, batch: Any, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite_slope(images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return (images - images.detach()).abs().sum().sqrt()  # 0, with a gradient that is NaN

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    losses = {"contrastive": ContrastiveLoss()} | ({"own": infinite_slope} if fails == "gradient" else {})
    stage = Stage("test", model, trains=["prompts"], losses=losses)
    running = RunningStage(stage, make_accelerator("cpu", "no"), steps_per_epoch=1)
    if fails == "backward":
        next(iter(stage.parameters())).register_post_accumulate_grad_hook(interrupt)
    if fails == "optimizer":
        monkeypatch.setattr(running.optimizer, "step", interrupt)
    with pytest.raises(FloatingPointError if fails == "gradient" else KeyboardInterrupt):
        running.step(batch, where="step 0", last_checkpoint=None)
    assert not left(stage)


@pytest.mark.parametrize("asked", ["environment", "accelerator"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_every_batch_is_a_step_whatever_accelerate_is_asked_for(
    model: PromptedCLIP, batch: Any, asked: str, chunk_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("test", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()})
    expected = gradients(stage, batch, chunk_size=chunk_size)
    accelerator = make_accelerator("cpu", "no")
    if asked == "environment":
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")  # as `accelerate launch` sets it
    else:
        Accelerator(cpu=True, gradient_accumulation_steps=4)  # which shares this number with all others
        monkeypatch.setitem(globals(), "make_accelerator", lambda *_: accelerator)
    try:
        with every_batch_a_step(accelerator):
            found = gradients(stage, batch, chunk_size=chunk_size)
    finally:
        accelerator.gradient_accumulation_steps = 1
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_running_stage_in_a_loop_of_ones_own_leaves_the_accelerator_as_it_was_asked(
    model: PromptedCLIP,
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    try:
        stage = Stage("test", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()})
        RunningStage(stage, accelerator, steps_per_epoch=4)
        assert accelerator.gradient_accumulation_steps == 2
    finally:
        accelerator.gradient_accumulation_steps = 1
