"""The identity loss against hand-worked values and a loop in plain Python."""

import math

import pytest
import torch

from promptreid.losses.cross_modal_id import CrossModalIDLoss


def fixed_loss(**settings: float) -> CrossModalIDLoss:
    loss = CrossModalIDLoss(2, 2, **settings)
    with torch.no_grad():
        loss.classifier.weight.copy_(torch.eye(2))
        loss.classifier.bias.zero_()
    return loss


def test_cross_modal_id_loss_identity_classifier_matches_hand_worked_value() -> None:
    # With W = I the features are the logits, not normalised: image (2, 0), caption (0, 1), person 0.
    # image: -log(e^2 / (e^2 + 1)) = log(1 + e^-2) = 0.126928;  caption: log(1 + e^1) = 1.313262
    # mean 0.720095
    loss = fixed_loss()(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.720095, abs=1e-6)


def test_cross_modal_id_loss_label_smoothing_matches_hand_worked_value() -> None:
    # Smoothing 0.2 over two persons: targets (0.9, 0.1). Image (2, 0): 0.9 * 0.126928 + 0.1 * 2.126928 = 0.326928;
    # caption (0, 1): 0.9 * 1.313262 + 0.1 * 0.313262 = 1.213262. Mean 0.770095.
    loss = fixed_loss(label_smoothing=0.2)(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.770095, abs=1e-6)


def test_cross_modal_id_loss_random_batch_matches_slow_reference() -> None:
    loss = CrossModalIDLoss(7, 5).double()
    torch.nn.init.normal_(loss.classifier.weight)
    images, texts, ids = torch.randn(6, 5).double(), torch.randn(6, 5).double(), torch.randint(0, 7, (6,))
    weight, bias, total = loss.classifier.weight.tolist(), loss.classifier.bias.tolist(), 0.0
    for features in (images.tolist(), texts.tolist()):
        for row, label in zip(features, ids.tolist(), strict=True):
            scores = [b + sum(w * x for w, x in zip(ws, row, strict=True)) for ws, b in zip(weight, bias, strict=True)]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    assert loss(images, texts, ids).item() == pytest.approx(total / 12, rel=1e-12)


def test_cross_modal_id_loss_gradients_reach_features_and_one_shared_classifier() -> None:
    loss = CrossModalIDLoss(4, 3).double()
    images = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([1, 3])
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, ids), (images, texts))
    loss(images, texts, ids).backward()
    assert [name for name, _ in loss.named_parameters()] == ["classifier.weight", "classifier.bias"]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_cross_modal_id_loss_fresh_head_is_small() -> None:
    weight = CrossModalIDLoss(200, 100).classifier.weight
    assert weight.std().item() == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("features", [torch.zeros(1, 3), torch.zeros(4, 3), torch.randn(4, 3) * 1e18])
def test_cross_modal_id_loss_degenerate_batch_is_finite(features: torch.Tensor) -> None:
    loss = CrossModalIDLoss(4, 3)
    value = loss(features, features, torch.zeros(len(features), dtype=torch.int64))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(loss.classifier.weight.grad).all()


def test_cross_modal_id_loss_half_precision_under_autocast_is_worked_out_in_float32() -> None:
    loss = CrossModalIDLoss(4, 8)
    features, ids = torch.randn(5, 8).bfloat16(), torch.randint(0, 4, (5,))
    expected = loss(features.float(), features.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(features, features, ids)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0]])
def test_cross_modal_id_loss_label_out_of_range_is_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected labels from 0 to 3"):
        CrossModalIDLoss(4, 3)(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor(labels))


def test_cross_modal_id_loss_wrong_shapes_are_refused() -> None:
    loss = CrossModalIDLoss(4, 3)
    with pytest.raises(ValueError, match=r"expected the same \(batch, dim\)"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="one a pair"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="features of size 3, these have 5"):
        loss(torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor([0, 1]))


@pytest.mark.parametrize("num_identities", [1, 0, -3])
def test_cross_modal_id_loss_fewer_than_two_identities_are_refused(num_identities: int) -> None:
    with pytest.raises(ValueError, match="needs at least 2"):
        CrossModalIDLoss(num_identities, 8)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_cross_modal_id_loss_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossModalIDLoss(4, 8, label_smoothing=smoothing)
