"""The training loop on a tiny model: what it changes, what it writes, what it refuses."""

import copy
import json
import math
import pickle
import re
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from promptreid.errors import CheckpointError, MissingExtraError
from promptreid.evaluation.metrics import compute_metrics
from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training import run_checkpoints
from promptreid.training.averaging import GaussianAverage
from promptreid.training.callbacks import read_scores, scores_of
from promptreid.training.checkpoint import list_checkpoints
from promptreid.training.recipe import Recipe, TwoStageSchedule
from promptreid.training.stage import Stage
from promptreid.training.stage_losses import Losses, may_change_themselves
from promptreid.training.step import RunningStage
from promptreid.training.trainer import Trainer

PROMPTS = ["vision.prompts.tokens", "text.prompts.tokens"]


def test_trainer_two_stages_freeze_what_they_should(make: Any, model: PromptedCLIP) -> None:
    states = [copy.deepcopy(model.state_dict())]
    make(evaluate=lambda model: states.append(copy.deepcopy(model.state_dict())) or {}).fit()
    assert len(states) == 3
    for name in states[0]:
        first, second, third = (state[name] for state in states)
        assert torch.equal(first, second) == (name not in PROMPTS), name
        if name in (*PROMPTS, "clip.logit_scale"):
            assert torch.equal(second, third), name
    assert not torch.equal(states[1]["clip.visual.proj"], states[2]["clip.visual.proj"])


def test_trainer_history_and_log_hold_an_entry_an_epoch(make: Any, tmp_path: Path) -> None:
    history = make(evaluate=lambda _: {"rank1": 0.5}).fit()
    assert [(entry["stage"], entry["epoch"], entry["step"]) for entry in history] == [
        ("stage_one", 1, 2),
        ("stage_one", 2, 4),
        ("stage_two", 1, 6),
        ("stage_two", 2, 8),
    ]
    assert [set(entry["losses"]) for entry in history][1:3] == [
        {"contrastive", "total"},
        {"contrastive", "identity", "total"},
    ]
    assert ["scores" in entry for entry in history] == [False, True, False, True]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


def test_trainer_overfits_32_pairs_to_rank1_of_one(make: Any, model: PromptedCLIP, pairs: Any) -> None:
    pairs = type(pairs)(32, persons=16)
    schedule = TwoStageSchedule(
        model,
        num_identities=16,
        stage_one_epochs=2,
        stage_two_epochs=40,
        stage_two_learning_rate=3e-3,
        temperature=0.1,
    )

    def rank1() -> float:
        with torch.no_grad():
            images = model.encode_image(pairs.images, normalize=True)
            texts = model.encode_text(pairs.tokens, normalize=True)
        ids = pairs.person_ids
        return float((ids[(texts @ images.T).argmax(dim=1)] == ids).float().mean())

    assert rank1() < 0.3
    make(stages=schedule, train_data=pairs, batch_size=16).fit()
    assert rank1() == 1.0


def test_trainer_same_seed_gives_the_same_bits_whatever_the_workers(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path
) -> None:
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    make().fit()
    first = copy.deepcopy(model.state_dict())
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    torch.rand(17)
    make(output_dir=tmp_path / "again", num_workers=1).fit()
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_trainer_evaluation_that_draws_numbers_changes_nothing(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path
) -> None:
    model.clip.visual.patch_dropout = torch.nn.Dropout(0.2)  # so that going back to train mode matters
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    make().fit()
    first, after = copy.deepcopy(model.state_dict()), torch.rand(1)
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    make(output_dir=tmp_path / "again", evaluate=lambda _: {"x": torch.rand(3).sum()}, evaluate_every_epoch=True).fit()
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.rand(1), after)


def test_trainer_finished_run_started_again_trains_no_more(make: Any, model: PromptedCLIP) -> None:
    history = make().fit()
    state = copy.deepcopy(model.state_dict())
    again = make()
    torch.nn.init.normal_(model.clip.visual.proj)
    assert again.fit() == history
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_seconds(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


class Killed(Exception):
    pass


@contextmanager
def stopped_at(trainer: Trainer, stop: int) -> Generator[None, None, None]:
    """Interrupt the run when it is about to do step `stop`."""
    step = RunningStage.step

    def stopping(self: RunningStage, *args: Any, **settings: Any) -> Any:
        if trainer.position.step == stop:
            raise Killed
        return step(self, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningStage, "step", stopping)
        yield


@pytest.mark.parametrize(
    "stops", [*(pytest.param(stops, marks=pytest.mark.slow) for stops in ([1], [2], [3, 5])), [4, 6, 7]]
)
def test_trainer_interrupted_and_resumed_ends_with_the_same_bits(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, stops: list[int], tmp_path: Path
) -> None:
    def settings(folder: str) -> dict[str, Any]:
        return {
            "output_dir": tmp_path / folder,
            "evaluate": lambda model: {"mAP": float(model.clip.visual.proj.sum())},
            "best_metric": "mAP",
            "checkpoint_every_steps": 1,
        }

    model.clip.visual.patch_dropout = torch.nn.Dropout(0.2)  # so that the generators' states matter
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    whole = make(**settings("whole"))
    whole.fit()
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    for stop in stops:
        trainer = make(**settings("interrupted"))
        with stopped_at(trainer, stop), pytest.raises(Killed):
            trainer.fit()
        torch.rand(3)
    trainer = make(**settings("interrupted"))
    trainer.fit()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert without_seconds(trainer.history) == without_seconds(whole.history)
    for name in ("log.jsonl", "steps.jsonl"):
        lines = [read_lines(tmp_path / folder / name) for folder in ("whole", "interrupted")]
        assert without_seconds(lines[0]) == without_seconds(lines[1])
    assert trainer.best["scores"] == whole.best["scores"]


def test_trainer_resumed_from_before_steps_were_fused_ends_as_it_would_have(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    optimizer = Stage.optimizer
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "optimizer", lambda self, *, fused=False: optimizer(self))
        make(output_dir=tmp_path / "whole").fit()
        expected = copy.deepcopy(model.state_dict())
        model.load_state_dict(start[0])
        schedule[1].loss_modules.load_state_dict(start[1])
        trainer = make(output_dir=tmp_path / "interrupted", checkpoint_every_steps=1)
        with stopped_at(trainer, 6), pytest.raises(Killed):
            trainer.fit()
    make(output_dir=tmp_path / "interrupted", checkpoint_every_steps=1).fit()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_trainer_stages_end_with_their_best_weights(make: Any, model: PromptedCLIP) -> None:
    scores, states = iter([0.9, 0.2, 0.5, 0.5]), []

    def evaluate(model: PromptedCLIP) -> dict[str, float]:
        states.append(copy.deepcopy(model.state_dict()))
        return {"mAP": next(scores)}

    trainer = make(evaluate=evaluate, evaluate_every_epoch=True, best_metric="mAP")
    history = trainer.fit()
    # Stage 1 ends with epoch 1: the prompts stage 2 saw, in both its epochs, are those of epoch 1.
    assert not torch.equal(states[1][PROMPTS[0]], states[0][PROMPTS[0]])
    assert torch.equal(states[2][PROMPTS[0]], states[0][PROMPTS[0]])
    # Stage 2 ends with the first of equals.
    assert trainer.best["step"] == 6
    assert all(torch.equal(value, states[2][name]) for name, value in model.state_dict().items())
    assert [entry.get("chosen") for entry in history] == [
        None,
        {"rule": "highest mAP", "epoch": 1, "step": 2, "mAP": 0.9},
        None,
        {"rule": "highest mAP", "epoch": 1, "step": 6, "mAP": 0.5},
    ]
    torch.nn.init.zeros_(model.clip.visual.proj)
    trainer.load_best()
    assert all(torch.equal(value, states[2][name]) for name, value in model.state_dict().items())


def test_trainer_on_epoch_end_gets_each_entry_and_the_model_it_is_of(make: Any, model: PromptedCLIP) -> None:
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def note(entry: dict[str, Any], model: PromptedCLIP) -> str:
        assert not model.training
        assert not torch.is_grad_enabled()
        calls.append((entry, model.state_dict()[PROMPTS[0]].clone()))
        return "ignored"

    scores = iter([0.9, 0.2, 0.5, 0.6])
    history = make(
        on_epoch_end=note, evaluate=lambda _: {"mAP": next(scores)}, evaluate_every_epoch=True, best_metric="mAP"
    ).fit()
    assert [entry for entry, _ in calls] == history
    # After the last epoch of stage 1 the model holds the weights of the epoch that was chosen, which was the first.
    assert torch.equal(calls[0][1], calls[1][1])


@pytest.mark.parametrize("stop", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_trainer_on_epoch_end_cannot_change_the_run_nor_how_it_resumes(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path, stop: int
) -> None:
    def meddle(entry: dict[str, Any], model: PromptedCLIP) -> None:
        entry.clear()
        model.train()
        torch.manual_seed(0)
        torch.rand(3)

    model.clip.visual.patch_dropout = torch.nn.Dropout(0.2)  # so that modes and generators matter
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    expected = without_seconds(make(output_dir=tmp_path / "alone").fit())
    bits = copy.deepcopy(model.state_dict())
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    trainer = make(on_epoch_end=meddle)
    with stopped_at(trainer, stop), pytest.raises(Killed):
        trainer.fit()
    assert without_seconds(make(on_epoch_end=meddle).fit()) == expected
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())


class CentreLoss(torch.nn.Module):
    """A loss from outside the package, with a parameter of its own: a centre for each person."""

    def __init__(self, num_identities: int, embed_dim: int) -> None:
        super().__init__()
        self.centres = torch.nn.Parameter(torch.randn(num_identities, embed_dim))

    def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        centres = self.centres[person_ids]
        return ((images - centres).square() + (texts - centres).square()).mean()


def test_trainer_trains_a_foreign_loss_and_resumes_it_with_the_same_bits(
    make: Any, model: PromptedCLIP, tmp_path: Path
) -> None:
    recipe = Recipe(num_identities=5, stage_one_epochs=1, stage_two_epochs=2)
    centre = CentreLoss(5, model.embed_dim)
    stages = [recipe.domain_adaptation(model), recipe.task_adaptation(model, losses={"centre": centre})]
    modules = torch.nn.ModuleList([model, *(stage.loss_modules for stage in stages)])
    start = copy.deepcopy(modules.state_dict())
    history = make(stages=stages, output_dir=tmp_path / "whole").fit()
    expected = copy.deepcopy(modules.state_dict())
    assert set(history[-1]["losses"]) == {"contrastive", "centre", "identity", "total"}
    assert not torch.equal(expected["2.centre.centres"], start["2.centre.centres"])
    modules.load_state_dict(start)
    trainer = make(stages=stages)
    with stopped_at(trainer, 5), pytest.raises(Killed):
        trainer.fit()
    torch.nn.init.zeros_(centre.centres)
    make(stages=stages).fit()
    assert all(torch.equal(value, expected[name]) for name, value in modules.state_dict().items())


def test_trainer_without_validation_ends_with_the_last_epoch_and_says_so(make: Any, model: PromptedCLIP) -> None:
    states: list[Any] = []
    history = make(evaluate=lambda model: states.append(copy.deepcopy(model.state_dict())) or {}).fit()
    assert all(torch.equal(value, states[1][name]) for name, value in model.state_dict().items())
    assert [entry["chosen"] for entry in history if "chosen" in entry] == [
        {"rule": "last epoch", "epoch": 2, "step": 4},
        {"rule": "last epoch", "epoch": 2, "step": 8},
    ]


def test_trainer_says_which_weights_a_stage_ends_with(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="promptreid.training"):
        make().fit()
    assert caplog.messages[0] == "stage one ends with the weights of epoch 2 (last epoch)"


def test_trainer_score_not_a_number_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="evaluate returned mAP=nan"):
        make(evaluate=lambda _: {"mAP": math.nan}, best_metric="mAP").fit()


def read_strictly(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON as other programs read it, without numbers that it does not have."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path.name} holds {name}, which is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def pickled(value: Any) -> Any:
    """As the first process's value arrives in a launched run, of one process too."""
    return pickle.loads(pickle.dumps(value))


def test_trainer_launched_resumes_with_a_side_score_that_is_not_a_number(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_checkpoints, "first_rank", pickled)
    scored: dict[str, Any] = {
        "evaluate": lambda _: {"mAP": 0.5, "side": math.nan, "most": math.inf},
        "evaluate_every_epoch": True,
        "best_metric": "mAP",
    }

    def stop(entry: Any, _: Any) -> None:
        if entry["epoch"] == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make(**scored, on_epoch_end=stop).fit()
    history = make(**scored).fit()
    assert len(history) == 4
    assert all(math.isnan(entry["scores"]["side"]) for entry in history)
    for entry in read_strictly(tmp_path / "run" / "log.jsonl"):
        assert entry["scores"] == {"mAP": 0.5, "side": None, "most": None}


def test_trainer_checkpoint_of_other_content_than_the_first_process_has_is_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().fit()
    monkeypatch.setattr(run_checkpoints, "first_rank", lambda found: (*found[:2], "another"))
    with pytest.raises(CheckpointError, match="is another checkpoint here than in the first process; give an output_d"):
        make()


def test_trainer_best_metric_not_returned_is_refused(make: Any) -> None:
    words = (
        r"best_metric is 'map', but evaluate returned \['mAP', 'rank1'\]; set best_metric to one .*did you mean 'mAP'\?"
    )
    with pytest.raises(ValueError, match=words):
        make(evaluate=lambda _: {"rank1": 1.0, "mAP": 1.0}, best_metric="map").fit()


def test_trainer_load_best_without_scores_is_refused(make: Any) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        make().load_best()


class Endless(torch.nn.Module):
    """A loss that is infinite at once, with gradients that are not finite either."""

    def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        return images.sum() * math.inf


def test_trainer_non_finite_loss_stops_with_step_and_leaves_the_weights_before_it(
    make: Any, model: PromptedCLIP
) -> None:
    stage = Stage("endless", model, trains=["prompts"], losses={"endless": Endless()})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match=r"step 0 \(stage endless, epoch 1, batch 1\).*no checkpoint yet"):
        make(stages=[stage]).fit()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_trainer_images_that_are_not_numbers_leave_the_weights_before_them(
    make: Any, broken_pairs: Any, model: PromptedCLIP
) -> None:
    with pytest.raises(ValueError, match=r"not numbers \(NaN\)"):
        make(train_data=broken_pairs, batch_size=5).fit()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_trainer_gradient_not_finite_is_noticed_without_clipping(make: Any, model: PromptedCLIP) -> None:
    class Spiky(torch.nn.Module):
        def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
            return (images - images).abs().sqrt().sum()  # 0, with a gradient that is not a number

    stage = Stage("spiky", model, trains=["prompts"], losses={"spiky": Spiky()}, max_norm=None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="'gradient norm': nan"):
        make(stages=[stage]).fit()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_trainer_non_finite_loss_names_the_last_good_checkpoint(make: Any, model: PromptedCLIP) -> None:
    class Late(torch.nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return images.sum() * (math.inf if self.calls == 4 else 1)

    stage = Stage("late", model, trains=["prompts"], losses={"late": Late()}, epochs=3)
    with pytest.raises(FloatingPointError, match=r"step 3 .*the last good checkpoint is .*step-000000002"):
        make(stages=[stage]).fit()


@pytest.mark.parametrize("epoch", [1, 2])
def test_trainer_whose_steps_leave_no_finite_features_names_them_and_keeps_no_such_epoch(
    make: Any, model: PromptedCLIP, tmp_path: Path, epoch: int
) -> None:
    def evaluate(model: PromptedCLIP) -> dict[str, float]:
        nonlocal epoch
        epoch -= 1
        features = torch.ones(4, 8) if epoch else torch.full((4, 8), math.nan)
        return compute_metrics(features, features, torch.arange(4), torch.arange(4)).as_dict()

    stage = Stage("wild", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()}, epochs=3)
    trainer = make(stages=[stage], evaluate=evaluate, evaluate_every_epoch=True)
    last = {1: "there is no checkpoint yet", 2: r"the last checkpoint is .*step-000000002"}[epoch]
    words = rf"step {2 * epoch - 1} \(stage wild, epoch {epoch}\) left a model .*4 of 4 query_features hold NaN.*{last}"
    with pytest.raises(FloatingPointError, match=rf"{words}\. Lower the learning rate.*fp16, in another output_dir$"):
        trainer.fit()
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == (trainer.last_checkpoint is not None)


def test_trainer_keeps_as_many_checkpoints_as_asked(make: Any, tmp_path: Path) -> None:
    trainer = make(checkpoint_every_steps=1, keep_checkpoints=3)
    with stopped_at(trainer, 7), pytest.raises(Killed):
        trainer.fit()
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-00000000{step}" for step in (5, 6, 7)]


def test_trainer_logs_a_line_a_step(make: Any, tmp_path: Path) -> None:
    make().fit()
    entries = read_lines(tmp_path / "run" / "steps.jsonl")
    assert [entry["step"] for entry in entries] == list(range(1, 9))
    assert set(entries[-1]["losses"]) == {"contrastive", "identity", "total"}
    # Half a cosine over four steps of stage 1, no warm-up in so short a stage: cos 0, 45, 90, 135 degrees.
    rates = [entry["learning_rate"] for entry in entries[:4]]
    assert rates == pytest.approx([1e-2, 0.853553e-2, 0.5e-2, 0.146447e-2], rel=1e-5)
    assert all(entry["gradient_norm"] > 0 for entry in entries)


@pytest.mark.parametrize(
    "settings",
    [
        {"chunk_size": 3},
        {"gradient_checkpointing": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        pytest.param({"gradient_checkpointing": True, "chunk_size": 1}, marks=pytest.mark.slow),
    ],
)
def test_trainer_ways_to_save_memory_or_time_train_the_same(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path, settings: dict[str, Any]
) -> None:
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    plain = make().fit()
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    other = make(output_dir=tmp_path / "other", **settings).fit()
    for ours, theirs in zip(other, plain, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    assert not model.clip.transformer.grad_checkpointing


def test_trainer_gradient_checkpointing_computes_blocks_again(make: Any, model: PromptedCLIP, tmp_path: Path) -> None:
    calls: list[int] = []
    model.clip.transformer.resblocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    make().fit()
    plain = len(calls)
    make(output_dir=tmp_path / "again", gradient_checkpointing=True).fit()
    assert len(calls) - plain == 2 * plain


def test_trainer_prints_a_line_an_epoch_and_which_one_it_kept(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scores = iter([0.2, 0.1, 0.25, 0.25])
    settings = {"evaluate": lambda _: {"mAP": next(scores)}, "evaluate_every_epoch": True, "best_metric": "mAP"}
    trainer = make(progress=True, **settings)
    trainer.baseline, trainer.on_validation = {"mAP": 0.15}, True
    trainer.fit()
    announced, *lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"checkpoints take up to \d\.\d MB during training and [\d.]+ kB afterwards", announced)
    assert max(map(len, lines)) <= 80
    shown = [re.sub(r"loss [\d.]+  [\d:]+ left", "…", each) for each in lines]
    assert shown == [
        "stage one (domain adaptation) trains the prompts: 2 epochs of 2 steps",
        "stage one 1/2  val mAP 20.00 (+5.00) best  …",
        "stage one 2/2  val mAP 10.00 (-10.00)       …",
        "stage one: kept epoch 1 of 2, the highest validation mAP, 20.00",
        "stage two (task adaptation) trains the encoders: 2 epochs of 2 steps",
        "stage two 1/2  val mAP 25.00 (+5.00) best  …",
        "stage two 2/2  val mAP 25.00 (+0.00)       …",
        "stage two: kept epoch 1 of 2, the highest validation mAP, 25.00",
    ]


def test_trainer_shows_a_bar_on_a_terminal_alone(
    make: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptreid.training.display.bars_can_move", lambda: True)
    make(progress=True).fit()
    shown = capsys.readouterr().err
    assert "stage one 1/2" in shown
    assert re.search(r"stage two 2/2 +0%\|.*\| 0/2", shown)
    assert max(len(part) for part in re.split(r"[\r\n]", shown)) <= 80


def test_trainer_that_ended_leaves_its_last_checkpoint_alone_and_loads_the_best_from_it(
    make: Any, tmp_path: Path
) -> None:
    scores = iter([0.2, 0.1, 0.25, 0.2])
    settings = {"evaluate": lambda _: {"mAP": next(scores)}, "evaluate_every_epoch": True, "best_metric": "mAP"}
    make(**settings).fit()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000008"]
    assert not list((tmp_path / "run").glob("best*"))
    again = make(**settings)
    again.load_best()
    best = {name: value.clone() for name, value in again.model.state_dict().items()}
    again.fit()
    assert all(torch.equal(best[name], value) for name, value in again.model.state_dict().items())


def test_trainer_that_would_fill_the_disk_is_refused_before_it_begins(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"checkpoints need up to \d.* MB, but only 1\.0 kB are free"):
        make().fit()
    assert not list((tmp_path / "run").glob("checkpoints"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 11}, "give at most 10"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"stages": []}, "at least one Stage"),
        ({"seed": -1}, "seed is -1"),
        ({"best_metric": "mAP"}, "needs evaluate"),
        ({"checkpoint_every_steps": 0}, "expected at least 1"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"device": "cuda:99"}, "torch sees"),
        ({"chunk_size": 0}, "chunk_size is 0, expected at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"train_data": [{}] * 10}, "items of train_data lack images, tokens, person_ids"),
        ({"trackers": ["tensorbored"]}, "trackers has 'tensorbored', expected some of"),
    ],
)
def test_trainer_wrong_setting_is_refused(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    "name",
    [
        "seed", "batch_size", "num_workers", "steps_per_epoch", "chunk_size", "checkpoint_every_steps",
        "keep_checkpoints",
    ],
)  # fmt: skip
def test_trainer_number_that_is_not_whole_is_refused_by_name(make: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is 4.0, expected a whole number of at least"):
        make(**{name: 4.0})


def test_trainer_takes_numbers_of_numpy_and_tensors(make: Any, model: PromptedCLIP, tmp_path: Path) -> None:
    def run(kind: Any, rate: Any, folder: str) -> list[dict[str, Any]]:
        stages = TwoStageSchedule(
            model, num_identities=kind(5), stage_one_epochs=kind(1), stage_two_epochs=kind(1),
            stage_one_learning_rate=rate(0.5), stage_two_learning_rate=rate(0.25),
        )  # fmt: skip
        numbers = {"seed": 1, "batch_size": 4, "num_workers": 0, "steps_per_epoch": 1, "keep_checkpoints": 1}
        given = {name: kind(number) for name, number in numbers.items()}
        return make(stages=stages, output_dir=tmp_path / folder, **given).fit()

    assert len(run(np.int64, np.float32, "numpy")) == len(run(torch.tensor, torch.tensor, "tensors")) == 2
    run(int, float, "numpy")  # it is the same run


@pytest.mark.parametrize("seed", [2**45, 1764311334000000000, 2**64 - 1, 2**70])
def test_trainer_takes_a_seed_of_any_size(make: Any, seed: int) -> None:
    assert make(seed=seed, steps_per_epoch=1).fit()


def test_trainer_takes_a_single_stage(make: Any, model: PromptedCLIP, schedule: TwoStageSchedule) -> None:
    assert make(stages=schedule.stage_one).stages == [schedule.stage_one]
    assert make(stages=iter(schedule)).stages == list(schedule)


@pytest.mark.parametrize("stages", [None, 3, ["stage_one"], Recipe()])
def test_trainer_stages_of_another_kind_are_refused(make: Any, stages: Any) -> None:
    with pytest.raises(
        TypeError, match=r"stages is or holds \w+, expected a Stage or several, such as a TwoStageSchedule"
    ):
        make(stages=stages)


def test_trainer_stage_of_another_model_is_refused(make: Any, model: PromptedCLIP) -> None:
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match="made for the model given here"):
        make(stages=TwoStageSchedule(other, num_identities=5))


def test_trainer_folder_of_another_run_is_refused(make: Any, model: PromptedCLIP) -> None:
    make().fit()
    with pytest.raises(CheckpointError, match=r"step-000000008 belongs to another run: batch_size was 4, is 5"):
        make(batch_size=5)
    with pytest.raises(CheckpointError, match=r"stages\.0\.epochs was 2, is 30"):
        make(stages=TwoStageSchedule(model, num_identities=5))
    with pytest.raises(CheckpointError, match="holds a run already"):
        make(resume=False)


def as_version_one(folder: Path) -> None:
    """Let a run's checkpoints be as 0.1.0 wrote them: without digest and identity."""
    for path in folder.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        state = {name: value for name, value in state.items() if name not in ("digest", "identity", "encoders")}
        path.write_text(json.dumps(state | {"version": 1}))


def test_trainer_checkpoint_of_another_model_is_refused(make: Any, model: PromptedCLIP, tmp_path: Path) -> None:
    from promptreid.prompts.config import PromptConfig

    make().fit()
    other = PromptedCLIP(copy.deepcopy(model).detach(), PromptConfig(text_length=3, vision_length=2))
    schedule = TwoStageSchedule(
        other,
        num_identities=5,
        stage_one_epochs=2,
        stage_two_epochs=2,
        stage_one_learning_rate=1e-2,
        stage_two_learning_rate=1e-3,
    )
    with pytest.raises(CheckpointError, match=r"another run: .*; prompts\.text_length was 2, is 3\. Use the earlier"):
        make(model=other, stages=schedule)
    as_version_one(tmp_path / "run")  # which did not keep the prompts' setup
    with pytest.raises(
        CheckpointError,
        match=r"step-000000008: it belongs to another model: text\.prompts\.tokens was 'of shape \(\d, 2, 24\)', is",
    ):
        make(model=other, stages=schedule).fit()


def test_trainer_truncated_checkpoint_is_refused_and_the_one_before_is_named(make: Any, tmp_path: Path) -> None:
    trainer = make()
    with stopped_at(trainer, 7), pytest.raises(Killed):
        trainer.fit()
    path = tmp_path / "run" / "checkpoints" / "step-000000006" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"step-000000006: .*truncated.*delete it to resume from step-000000004"):
        make().fit()


class FailsOnce:
    """An evaluation that fails at one of its calls, counted from 1 over all runs."""

    def __init__(self, call: int | None = None) -> None:
        self.call, self.calls = call, 0

    def settings(self) -> dict[str, int]:
        return {"version": 1}

    def __call__(self, model: PromptedCLIP) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.call:
            raise Killed
        return {"mAP": float(model.clip.visual.proj.sum() + model.state_dict()[PROMPTS[0]].sum())}


@pytest.mark.parametrize("again", ["the same trainer", "a new one"])
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize(
    "call", [1, pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_trainer_whose_evaluation_fails_keeps_the_epoch(
    make: Any,
    model: PromptedCLIP,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    call: int,
    averaged: bool,
    again: str,
) -> None:
    model.clip.visual.patch_dropout = torch.nn.Dropout(0.2)  # so that the generators' states matter
    start = copy.deepcopy(model.state_dict())

    def build(folder: str, evaluate: FailsOnce) -> Trainer:
        average = GaussianAverage(mean=0.9, std=0.5) if averaged else None
        settings = {
            "losses": {"contrastive": ContrastiveLoss()},
            "epochs": 2,
            "learning_rate": 1e-2,
            "average": average,
        }
        stages = [Stage(f"train {part}", model, trains=[part], **settings) for part in ("prompts", "encoders")]
        return make(
            stages=stages, output_dir=tmp_path / folder, evaluate=evaluate, evaluate_every_epoch=True, best_metric="mAP"
        )

    whole = build("whole", FailsOnce())
    whole.fit()
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(start)
    evaluate = FailsOnce(call)
    trainer = build("failed", evaluate)
    with pytest.raises(Killed):
        trainer.fit()
    assert trainer.last_checkpoint.name == f"step-{2 * call:09d}"
    assert f"the epoch is kept in {trainer.last_checkpoint}" in caplog.text
    if again == "a new one":
        trainer = build("failed", evaluate)
    trainer.fit()
    assert evaluate.calls == 5  # four epochs, and the one that failed
    assert without_seconds(trainer.history) == without_seconds(whole.history)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    lines = [read_lines(tmp_path / folder / "steps.jsonl") for folder in ("whole", "failed")]
    assert without_seconds(lines[0]) == without_seconds(lines[1])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            None,
            r"evaluate returned None, expected a dictionary of numbers by name, such as .*text_to_image\.as_dict\(\)",
        ),
        ([0.5], "evaluate returned a list, expected a dictionary of numbers by name"),
        (dict, "evaluate returned a type, expected a dictionary of numbers by name"),
        (
            {"mAP": 0.5, "image_to_text": {"mAP": 0.4}},
            r"evaluate returned a dict under 'image_to_text', expected a dict.*",
        ),
        ({"mAP": None}, r"evaluate returned None under 'mAP', expected a dictionary"),
        ({"mAP": torch.zeros(2)}, r"evaluate returned a Tensor under 'mAP', expected a dictionary"),
    ],
)
def test_trainer_scores_that_are_not_numbers_by_name_are_refused(make: Any, found: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(evaluate=lambda _: found, best_metric="mAP").fit()


@pytest.mark.parametrize(("processes", "kept"), [(1, ["once"]), (2, [])])
def test_scores_that_fail_in_one_of_several_processes_wait_for_none(
    model: PromptedCLIP, processes: int, kept: list[str]
) -> None:
    found: list[str] = []
    settings = {"best_metric": None, "keep_epoch": lambda: found.append("once"), "processes": processes}
    with pytest.raises(StopIteration):
        scores_of(lambda _: next(iter(())), model, **settings)
    assert found == kept
    with pytest.raises(TypeError, match="evaluate returned None"):  # which every process returned
        scores_of(lambda _: None, model, **settings)
    assert found == [*kept, "once"]


@pytest.mark.parametrize(
    ("found", "metric"), [(None, "mAP"), ({"map": 0.5}, "mAP"), ({"mAP": math.nan}, "mAP"), ({"rank1": 0.5}, "mAP")]
)
def test_trainer_whose_first_scores_were_refused_resumes_with_mended_ones(make: Any, found: Any, metric: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        make(evaluate=lambda _: found, evaluate_every_epoch=True, best_metric=metric).fit()
    mended = make(evaluate=lambda _: {"rank1": 0.5}, evaluate_every_epoch=True, best_metric="rank1")
    with stopped_at(mended, 3), pytest.raises(Killed):
        mended.fit()
    assert [entry["scores"] for entry in mended.history] == [{"rank1": 0.5}]
    with pytest.raises(CheckpointError, match=r"belongs to another run: .*evaluate_function"):
        make(evaluate=lambda _: {"rank1": 0.25}, evaluate_every_epoch=True, best_metric="rank1")


class Items:
    """Has `items` as a pandas Series has, and is no mapping."""

    def items(self) -> list[tuple[str, float]]:
        return [("mAP", 0.5)]


def test_scores_of_anything_with_items_are_taken() -> None:
    assert read_scores(Items()) == {"mAP": 0.5}


def test_trainer_labels_made_after_the_first_stage_are_taken(make: Any, model: PromptedCLIP, pairs: Any) -> None:
    items = [pairs[index] for index in range(len(pairs))]  # which do not say their persons beforehand

    def cluster(entry: Any, _: Any) -> None:
        if entry["stage"] == "stage_one":
            items[:] = [{**item, "person_ids": item["person_ids"] % 3} for item in items]

    stages = TwoStageSchedule(model, num_identities=3, stage_one_epochs=1, stage_two_epochs=1)
    assert len(make(train_data=items, stages=stages, on_epoch_end=cluster).fit()) == 2


def test_trainer_that_failed_before_its_first_checkpoint_does_not_train_on(make: Any, model: PromptedCLIP) -> None:
    trainer = make()
    with stopped_at(trainer, 1), pytest.raises(Killed):
        trainer.fit()
    partly = copy.deepcopy(model.state_dict())
    message = r"an earlier fit of this trainer failed after 1 step, .* make the model, its stages and the trainer again"
    with pytest.raises(CheckpointError, match=message):
        trainer.fit()
    assert all(torch.equal(value, partly[name]) for name, value in model.state_dict().items())
    assert make().fit()  # as any trained model may be trained


class Counting(ContrastiveLoss):
    """A loss of somebody's own, that may have counted its forward passes anywhere."""


class Recalling(ContrastiveLoss):
    """Counts its forward passes in a buffer, as one of ours could."""

    __module__ = ContrastiveLoss.__module__

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return super().forward(*arguments)


class WithFunction(torch.nn.Module):
    """Somebody's loss that keeps a function of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.function = torch.nn.functional.mse_loss

    def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        return self.function(images, texts)


def function() -> Any:
    return lambda images, texts, person_ids: (images - texts).square().mean()


def hooked() -> Any:
    loss = ContrastiveLoss()
    loss.register_forward_hook(lambda *_: None)
    return loss


@pytest.mark.parametrize(
    ("loss", "moves"),
    [
        (ContrastiveLoss, False),
        *((each, True) for each in (Recalling, Counting, WithFunction, function, hooked)),
    ],
)
def test_trainer_whose_first_step_failed_trains_on_where_nothing_can_have_moved(
    make: Any, model: PromptedCLIP, loss: Any, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(stages=Stage("x", model, trains=["prompts"], losses={"m": loss()}, epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", Mock(side_effect=torch.OutOfMemoryError))
        with pytest.raises(torch.OutOfMemoryError):
            trainer.fit()
    if moves:
        with pytest.raises(CheckpointError, match="failed after 0 steps"):
            trainer.fit()
    else:
        assert len(trainer.fit()) == 1


def test_losses_compiled_by_torchscript_may_change_themselves() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript, for which newer versions of torch have others
        loss = torch.jit.trace(WithFunction(), (torch.ones(2, 3), torch.zeros(2, 3), torch.arange(2)))
    assert may_change_themselves(Losses({"m": loss}))


def parametrized(loss: torch.nn.Module) -> torch.nn.Module:
    loss.scale = torch.nn.Parameter(torch.ones(2))
    torch.nn.utils.parametrize.register_parametrization(loss, "scale", torch.nn.Identity())
    return loss


def with_another_forward(loss: torch.nn.Module) -> torch.nn.Module:
    loss.forward = lambda images, texts, ids: images.sum()
    return loss


def hooked_in_backward(loss: torch.nn.Module) -> torch.nn.Module:
    loss.register_full_backward_hook(lambda *_: None)
    return loss


def compiled(loss: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(loss, backend="eager")


def triplets() -> torch.nn.Module:
    return torch.nn.TripletMarginWithDistanceLoss(distance_function=torch.nn.functional.pairwise_distance)


@pytest.mark.parametrize("make_loss", [ContrastiveLoss, lambda: CrossModalIDLoss(3, 8), triplets])
@pytest.mark.parametrize("change", [lambda loss: loss, parametrized, compiled])
def test_losses_of_ours_and_of_torch_change_nothing(make_loss: Any, change: Any) -> None:
    assert not may_change_themselves(Losses({"m": change(make_loss())}))


@pytest.mark.parametrize(
    "loss",
    [
        *(lambda change=change: change(Counting()) for change in (parametrized, compiled)),
        *(lambda change=change: change(ContrastiveLoss()) for change in (with_another_forward, hooked_in_backward)),
        lambda: torch.nn.TripletMarginWithDistanceLoss(distance_function=lambda one, other: (one - other).sum(-1)),
    ],
)
def test_losses_that_run_code_of_somebody_else_may_change_themselves(loss: Any) -> None:
    assert may_change_themselves(Losses({"m": loss()}))


def test_trainer_whose_first_update_failed_does_not_train_on(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Killed

    trainer = make()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", fail)
        patch.setattr(torch.optim.Adam, "step", fail)
        with pytest.raises(Killed):
            trainer.fit()
    with pytest.raises(CheckpointError, match="failed after 0 steps"):
        trainer.fit()


class Unreadable:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        raise Killed


def test_trainer_that_failed_before_its_first_step_trains_as_if_it_had_not(
    make: Any, model: PromptedCLIP, schedule: TwoStageSchedule, tmp_path: Path
) -> None:
    start = copy.deepcopy((model.state_dict(), schedule[1].loss_modules.state_dict()))
    expected = without_seconds(make(output_dir=tmp_path / "whole").fit())
    model.load_state_dict(start[0])
    schedule[1].loss_modules.load_state_dict(start[1])
    trainer = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._batches.items, "dataset", Unreadable())
        with pytest.raises(Killed):
            trainer.fit()
    assert without_seconds(trainer.fit()) == expected


def test_trainer_after_a_failure_has_the_optimizer_of_its_stage_alone(make: Any) -> None:
    counts: list[int] = []
    trainer = make(evaluate=lambda _: counts.append(len(trainer._accelerator._optimizers)) or {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._batches.items, "dataset", Unreadable())
        with pytest.raises(Killed):
            trainer.fit()
    assert trainer._accelerator._optimizers == []
    trainer.fit()
    assert counts == [1] * len(counts) != []
    assert trainer._accelerator._optimizers == []


def with_batch_norm(model: PromptedCLIP) -> torch.nn.BatchNorm2d:
    norm = torch.nn.BatchNorm2d(32)
    model.clip.visual.conv1 = torch.nn.Sequential(model.clip.visual.conv1, norm)
    return norm


def test_trainer_chunks_where_batch_norm_trains_are_refused(make: Any, model: PromptedCLIP) -> None:
    with_batch_norm(model).eval()
    modes = [part.training for part in model.modules()]
    message = r"chunk_size is 3, and stage 'stage_two' has BatchNorm in train mode \(clip\.visual\.conv1\.1\), which"
    with pytest.raises(ValueError, match=message):
        make(chunk_size=3)
    assert [part.training for part in model.modules()] == modes
    assert make(chunk_size=4)  # the whole batch


@pytest.mark.parametrize(
    "trains", [["prompts"], ["projections"], lambda name, _: "conv1" not in name and name.startswith("clip.visual")]
)
def test_trainer_chunks_with_frozen_batch_norm_give_the_step_of_the_whole_batch(
    make: Any, model: PromptedCLIP, tmp_path: Path, trains: Any
) -> None:
    norm = with_batch_norm(model)
    start, before = copy.deepcopy(model.state_dict()), copy.deepcopy(norm.state_dict())
    norms = []
    for chunk_size in (None, 3):
        model.load_state_dict(start)
        stage = Stage("one", model, trains=trains, losses={"contrastive": ContrastiveLoss()})
        make(stages=stage, chunk_size=chunk_size, output_dir=tmp_path / str(chunk_size)).fit()
        norms.append([line["gradient_norm"] for line in read_lines(tmp_path / str(chunk_size) / "steps.jsonl")])
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_trainer_without_accelerate_says_what_to_install(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[train\]"'):
        make()


def test_trainer_steps_on_each_batch_and_leaves_another_accelerator_alone(make: Any, model: PromptedCLIP) -> None:
    own = Accelerator(cpu=True, gradient_accumulation_steps=4)
    own.gradient_state._set_sync_gradients(False)  # as in the middle of its accumulation
    try:
        before = copy.deepcopy(model.state_dict())
        trainer = make()
        assert own.gradient_accumulation_steps == 4
        seen: list[int] = []
        trainer.on_epoch_end = lambda *_: seen.append(own.gradient_accumulation_steps)
        trainer.fit()
        assert set(seen) == {4}
        assert own.gradient_accumulation_steps == 4
        assert not own.sync_gradients
        now = model.state_dict()
        assert any(not torch.equal(value, now[name]) for name, value in before.items())
    finally:
        own.gradient_accumulation_steps = 1
        own.gradient_state._set_sync_gradients(True)
