"""The temperature: fixed, or learnt and held within bounds."""

import math

import pytest
import torch

from promptreid.losses.contrastive import ContrastiveLoss, Temperature


def test_temperature_fixed_has_nothing_to_train() -> None:
    temperature = Temperature(0.02)
    assert temperature() == 0.02
    assert not temperature.state_dict()


def test_temperature_learnt_starts_at_its_value_and_saves_it() -> None:
    temperature = Temperature(0.07, learnable=True)
    assert temperature().item() == pytest.approx(0.07)
    assert temperature.state_dict()["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize(("scale", "expected"), [(99.0, 0.01), (-3.0, 1.0)])
def test_temperature_learnt_beyond_its_bounds_is_held_and_can_come_back(scale: float, expected: float) -> None:
    temperature = Temperature(0.07, learnable=True)
    with torch.no_grad():
        temperature.logit_scale.fill_(scale)
    value = temperature()
    assert value.item() == pytest.approx(expected)
    value.backward()
    assert temperature.logit_scale.grad.abs() > 0


def test_temperature_learnt_is_not_touched_in_eval_mode() -> None:
    temperature = Temperature(0.07, learnable=True).eval()
    with torch.no_grad():
        temperature.logit_scale.fill_(99.0)
    temperature()
    assert temperature.logit_scale.item() == 99.0


def test_contrastive_loss_learnt_temperature_gets_the_gradient_of_its_formula() -> None:
    # Two orthogonal pairs at temperature 1: L = log(1 + e^-s) with s the scale, so dL/d(log s) = -s / (1 + e^s),
    # which at s = 1 is -0.268941.
    loss = ContrastiveLoss(1.0, learnable_temperature=True)
    value = loss(torch.eye(2), torch.eye(2))
    value.backward()
    assert value.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert loss.temperature.logit_scale.grad.item() == pytest.approx(-0.268941, abs=1e-6)
    assert [name for name, _ in loss.named_parameters()] == ["temperature.logit_scale"]


def test_contrastive_loss_repr_does_not_change_while_the_temperature_learns() -> None:
    # Checkpoints compare it to know whether they belong to the same run.
    loss = ContrastiveLoss(0.07, learnable_temperature=True)
    before = repr(loss)
    with torch.no_grad():
        loss.temperature.logit_scale.fill_(1.0)
    assert repr(loss) == before
    assert "0.07, learnable=True" in before


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_temperature_not_positive_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        Temperature(value)


@pytest.mark.parametrize("value", [0.001, 2.0])
def test_temperature_learnt_from_outside_its_bounds_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"held within 0\.01 and 1"):
        Temperature(value, learnable=True)
