"""The average of a stage's epochs: against plain loops in float64, in the trainer, and resumed."""

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.averaging import GaussianAverage
from promptreid.training.recipe import Recipe
from promptreid.training.stage import Stage


def plain_weights(epochs: int, mean: float, std: float) -> list[float]:
    """As PromptSRC's published code does: the density at 1 to T, divided by the sum."""
    mean, std = mean * epochs, std * epochs
    density = [
        math.exp(-0.5 * ((epoch - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi)) for epoch in range(1, epochs + 1)
    ]
    return [value / sum(density) for value in density]


@pytest.mark.parametrize(("epochs", "mean", "std"), [(20, 0.75, 0.05), (50, 0.9, 0.1), (6, 1.0, 2.0), (1, 0.75, 0.5)])
def test_weights_are_those_of_the_published_code(epochs: int, mean: float, std: float) -> None:
    found = GaussianAverage(mean, std).weights(epochs)
    assert found == pytest.approx(plain_weights(epochs, mean, std), rel=1e-12)
    assert sum(found) == pytest.approx(1)


def test_weights_of_a_narrow_bell_stay_finite() -> None:
    assert GaussianAverage(0.75, 1e-4).weights(3) == [0.0, 1.0, 0.0]


def test_average_equals_the_plain_sum_in_float64() -> None:
    passed = torch.randn(7, 3, 4, dtype=torch.float64)
    average, prompts = GaussianAverage(0.6, 0.3), nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    for epoch, values in enumerate(passed, start=1):
        prompts.data.copy_(values)
        average.add([("prompts", prompts)], epoch=epoch, epochs=7)
    average.load_into([("prompts", prompts)])
    weights = plain_weights(7, 0.6, 0.3)
    wanted = sum(weight * values for weight, values in zip(weights, passed, strict=True))
    torch.testing.assert_close(prompts.data, wanted, rtol=1e-12, atol=1e-14)


def test_first_epoch_starts_a_new_average() -> None:
    average, prompts = GaussianAverage(1.0, 1.0), nn.Parameter(torch.ones(2))
    average.add([("prompts", prompts)], epoch=1, epochs=1)
    average.add([("prompts", prompts)], epoch=1, epochs=1)
    average.load_into([("prompts", prompts)])
    assert torch.equal(prompts.data, torch.ones(2))


@pytest.mark.parametrize("setting", [{"mean": 0.0}, {"mean": 1.5}, {"std": 0.0}, {"std": math.inf}])
def test_shares_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected shares of the epochs"):
        GaussianAverage(**setting)


@pytest.mark.parametrize("setting", ["mean", "std"])
def test_share_that_is_no_number_is_refused(setting: str) -> None:
    with pytest.raises(TypeError, match=f"{setting} is '0.5', expected a number"):
        GaussianAverage(**{setting: "0.5"})  # pyright: ignore[reportArgumentType]


def test_average_of_other_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no average of prompts"):
        GaussianAverage().load_into([("prompts", torch.zeros(2))])


@pytest.fixture
def averaged(model: PromptedCLIP) -> Stage:
    return Recipe(stage_one_epochs=3, stage_one_learning_rate=1e-2, average_prompts=True).domain_adaptation(model)


def test_stage_ends_with_the_average_of_its_epochs(averaged: Stage, make: Any, tmp_path: Any) -> None:
    average = averaged.average = GaussianAverage(0.75, 0.5)
    passed: list[torch.Tensor] = []
    add = average.add

    def watched(parameters: Any, **settings: Any) -> None:
        named = dict(parameters)
        passed.append(named["vision.prompts.tokens"].detach().clone())
        add(named.items(), **settings)

    average.add = watched  # type: ignore[method-assign]
    trainer = make(stages=[averaged])
    trainer.fit()
    weights = plain_weights(3, 0.75, 0.5)
    wanted = sum(weight * values for weight, values in zip(weights, passed, strict=True))
    torch.testing.assert_close(averaged.model.vision.prompts.tokens.data, wanted)
    assert len(passed) == 3
    assert trainer.history[-1]["chosen"] == {"rule": "average of all epochs", "epoch": 3, "step": 6}


def test_scores_of_the_last_epoch_are_those_of_the_average(averaged: Stage, make: Any, tmp_path: Any) -> None:
    scored: list[torch.Tensor] = []

    def evaluate(model: PromptedCLIP) -> dict[str, float]:
        scored.append(model.vision.prompts.tokens.detach().clone())
        return {"mAP": 1 - len(scored) / 10}  # the first epoch scores best

    trainer = make(stages=[averaged], evaluate=evaluate, evaluate_every_epoch=True, best_metric="mAP")
    trainer.fit()
    tokens = averaged.model.vision.prompts.tokens.data
    assert torch.equal(scored[-1], tokens)
    assert trainer.best is not None
    assert trainer.best["epoch"] == 3
    assert trainer.history[-1]["chosen"]["mAP"] == trainer.history[-1]["scores"]["mAP"]
    tokens.zero_()
    trainer.load_best()
    assert torch.equal(scored[-1], tokens)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumed_run_ends_with_the_average_of_the_uninterrupted_one(
    make: Any, model: PromptedCLIP, tmp_path: Any, stop_after: int
) -> None:
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def stages() -> list[Stage]:
        model.load_state_dict(start)
        average = GaussianAverage(0.6, 0.5)
        losses = {"contrastive": ContrastiveLoss()}
        settings = {"losses": losses, "epochs": 4, "learning_rate": 1e-2, "average": average}  # which both share
        return [Stage(name, model, trains=["prompts"], **settings) for name in ("first", "second")]

    make(stages=stages(), output_dir=tmp_path / "whole").fit()
    wanted = model.vision.prompts.tokens.detach().clone()

    def stop(entry: dict[str, Any], model: PromptedCLIP) -> None:
        if entry["epoch"] == stop_after + 1:
            raise Stop

    with pytest.raises(Stop):
        make(stages=stages(), output_dir=tmp_path / "broken", on_epoch_end=stop).fit()
    trainer = make(stages=stages(), output_dir=tmp_path / "broken")
    trainer.fit()
    assert torch.equal(model.vision.prompts.tokens, wanted)


def test_another_average_is_another_run(averaged: Stage, make: Any) -> None:
    make(stages=[averaged]).fit()
    averaged.average = GaussianAverage(0.5, 0.5)
    with pytest.raises(Exception, match=r"average.mean was 0.75, is 0.5"):
        make(stages=[averaged])


def test_history_is_json(averaged: Stage, make: Any) -> None:
    json.dumps(make(stages=[averaged]).fit())
