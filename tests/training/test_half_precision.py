"""bf16 on the CPU, and fp16 with its scaler as on a GPU: accelerate itself refuses fp16 here."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training import trainer as module
from promptreid.training.processes import make_accelerator
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage


@pytest.fixture
def make_fp16(make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a trainer whose accelerator computes in float16 and scales the loss."""

    def build(scaler: dict[str, Any] | None = None, **settings: Any) -> Any:
        def accelerator(*arguments: Any, **others: Any) -> Any:
            made = make_accelerator("cpu", "no", **others)
            made.scaler, made.native_amp = torch.amp.GradScaler("cpu", **(scaler or {})), True
            made.state._mixed_precision = "fp16"
            return made

        monkeypatch.setattr(module, "make_accelerator", accelerator)
        return make(mixed_precision="fp16", **settings)

    return build


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]


def test_trainer_bf16_trains_with_float32_losses(make: Any, model: PromptedCLIP) -> None:
    history = make(mixed_precision="bf16").fit()
    assert history[-1]["losses"]["total"] > 0
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_trainers_of_different_precisions_take_turns_in_one_process(
    make: Any, model: PromptedCLIP, tmp_path: Path, chunk_size: int | None
) -> None:
    own = Accelerator(cpu=True)
    before = own.mixed_precision
    settings = {"chunk_size": chunk_size, "steps_per_epoch": 1}
    precisions = ("no", "bf16", "no", "bf16")
    trainers = [
        make(output_dir=tmp_path / f"{index}", mixed_precision=precision, **settings)
        for index, precision in enumerate(precisions)
    ]
    assert own.mixed_precision == before
    seen: list[torch.dtype] = []
    hook = model.clip.transformer.resblocks[0].mlp.c_fc.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    for trainer, precision in reversed([*zip(trainers, precisions, strict=True)]):
        seen.clear()
        trainer.fit()
        assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert own.mixed_precision == before
    hook.remove()


def test_trainer_inside_a_callback_of_another_leaves_that_one_its_precision(make: Any, tmp_path: Path) -> None:
    inner = make(output_dir=tmp_path / "inner", mixed_precision="bf16", steps_per_epoch=1)
    seen: list[str] = []

    def train_another(entry: dict[str, Any], model: PromptedCLIP) -> None:
        make(output_dir=tmp_path / "made", mixed_precision="bf16")
        seen.append(outer._accelerator.mixed_precision)

    outer = make(output_dir=tmp_path / "outer", steps_per_epoch=1, on_epoch_end=train_another)
    outer.fit()
    assert seen == ["no"] * 4
    inner.fit()


def test_trainer_of_another_precision_than_sharded_weights_is_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make()._accelerator.mixed_precision
    monkeypatch.setitem(PartialState().__dict__, "distributed_type", DistributedType.FSDP)
    other = "bf16" if before == "no" else "no"
    with pytest.raises(ValueError, match=rf"mixed_precision is '{other}', but .*FSDP.* '{before}'.* new process"):
        make(mixed_precision=other)


@pytest.mark.parametrize("chunk_size", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_trainer_fp16_takes_nearly_the_steps_of_float32(
    make: Any, make_fp16: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path, chunk_size: int | None
) -> None:
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    plain = make(output_dir=tmp_path / "plain").fit()
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    seen: list[torch.dtype] = []
    hook = model.clip.transformer.resblocks[0].mlp.c_fc.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    half = make_fp16({"init_scale": 64.0}, chunk_size=chunk_size).fit()
    hook.remove()
    assert set(seen) == {torch.float16}
    for ours, theirs in zip(half, plain, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=0.02)
    # Unscaled before they are clipped and logged: the gradient is as long as in float32.
    with_plain = [json.loads(line) for line in (tmp_path / "plain" / "steps.jsonl").read_text().splitlines()]
    for ours, theirs in zip(steps(tmp_path), with_plain, strict=True):
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_trainer_fp16_overflow_skips_the_step_and_its_learning_rate(
    make_fp16: Any, model: PromptedCLIP, tmp_path: Path
) -> None:
    before = model.state_dict()["text.prompts.tokens"].clone()
    trainer = make_fp16({"init_scale": 2.0**36}, evaluate=lambda model: {"x": 0.0})
    trainer.fit()
    taken = [entry["gradient_norm"] is not None for entry in steps(tmp_path)]
    assert not any(taken)  # every one of the eight steps overflows, and halves the scale
    assert trainer._accelerator.scaler.get_scale() == 2.0**28
    assert torch.equal(model.state_dict()["text.prompts.tokens"], before)
    rates = [entry["learning_rate"] for entry in steps(tmp_path)]
    assert rates == [1e-2] * 4 + [1e-3] * 4


def test_trainer_fp16_that_overflows_at_every_scale_is_stopped(make_fp16: Any, model: PromptedCLIP) -> None:
    class Spiky(torch.nn.Module):
        def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
            return (images - images).abs().sqrt().sum()  # 0, with a gradient that is not a number

    stage = Stage("spiky", model, trains=["prompts"], losses={"spiky": Spiky()}, epochs=2)
    with pytest.raises(FloatingPointError, match=r"step 2 .*overflows in fp16 .* checkpoint is .*step-000000002"):
        make_fp16({"init_scale": 2.0**-12}, stages=[stage]).fit()


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)])
def test_trainer_fp16_interrupted_and_resumed_ends_with_the_same_bits(
    make_fp16: Any,
    model: PromptedCLIP,
    schedule: TwoStageSchedule,
    tmp_path: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(Exception):
        pass

    def fit(folder: str) -> dict[str, Any]:
        # Grows at every second step, so that a scale that is not restored shows.
        scaler = {"init_scale": 64.0, "growth_interval": 2}
        trainer = make_fp16(scaler, output_dir=tmp_path / folder, checkpoint_every_steps=1)
        trainer.fit()
        return trainer._accelerator.scaler.state_dict()

    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    scale = fit("whole")
    assert scale["scale"] == 64.0 * 2**4
    whole = copy.deepcopy(model.state_dict())
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    calls = 0

    def stopping(self: RunningStage, *arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise Killed
        return step(self, *arguments, **settings)

    step = RunningStage.step
    with monkeypatch.context() as patch:
        patch.setattr(RunningStage, "step", stopping)
        with pytest.raises(Killed):
            fit("interrupted")
    assert fit("interrupted") == scale
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_trainer_fp16_after_a_step_that_failed_ends_with_the_bits_of_one_that_did_not(
    make_fp16: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer(folder: str) -> Any:
        return make_fp16({"init_scale": 64.0, "growth_interval": 2}, output_dir=tmp_path / folder)

    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    whole = trainer("whole")
    whole.fit()
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])

    values = iter([1.0, 1.0, math.nan])  # found in step 2 after its gradients are unscaled
    forward = ContrastiveLoss.forward
    failed = trainer("failed")
    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveLoss, "forward", lambda *given: next(values) * forward(*given))
        with pytest.raises(FloatingPointError, match=r"step 2 .* nan"):
            failed.fit()
    failed.fit()
    assert failed._accelerator.scaler.state_dict() == whole._accelerator.scaler.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
