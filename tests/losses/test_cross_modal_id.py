"""The identity loss against hand-worked values and a loop in plain Python."""

import math
from typing import Any

import pytest
import torch

from promptreid.losses.cross_modal_id import CrossModalIDLoss


def fixed_loss(length: float = 1.0, **settings: Any) -> CrossModalIDLoss:
    loss = CrossModalIDLoss(2, 2, **settings)
    with torch.no_grad():
        loss.classifier.weight.copy_(length * torch.eye(2))
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


def test_cross_modal_id_loss_norm_softmax_ignores_the_weights_lengths() -> None:
    # As above with weights of length 5: 0.720095 again.
    loss = fixed_loss(5.0, classifier="norm_softmax")
    value = loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(0.720095, abs=1e-6)
    assert loss.classifier.bias is None


def test_cross_modal_id_loss_cosine_classifier_matches_hand_worked_value() -> None:
    # Image (3, 4): cosines (0.6, 0.8), times 2 (1.2, 1.6): log(1 + e^0.4) = log 2.491825 = 0.913015.
    # Caption (0, 9): (0, 1), times 2 (0, 2): log(1 + e^2) = 2.126928. Person 0; mean 1.519972.
    loss = fixed_loss(7.0, classifier="cosine", scale=2.0)
    value = loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 9.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(1.519972, abs=1e-6)


def test_cross_modal_id_loss_projection_matches_hand_worked_value() -> None:
    # Image (2, 0), caption (3, 4) of direction (0.6, 0.8). The image projected: 1.2 * (0.6, 0.8) = (0.72, 0.96);
    # the caption on the image's direction (1, 0): (3, 0). Person 0, unit weights (CMPC):
    # image: log(1 + e^0.24) = log 2.271249 = 0.820330;  caption: log(1 + e^-3) = 0.048587;  mean 0.434459
    loss = fixed_loss(3.0, classifier="norm_softmax", cross_modal_projection=True)
    value = loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    assert value.item() == pytest.approx(0.434459, abs=1e-6)


def test_cross_modal_id_loss_cosine_with_projection_still_reaches_both_features() -> None:
    # Cosines first: image (1, 0) on (0.6, 0.8) is (0.36, 0.48), so its length still says how well the pair agrees.
    loss = fixed_loss(classifier="cosine", scale=1.0, cross_modal_projection=True)
    images = torch.tensor([[2.0, 0.0]], requires_grad=True)
    texts = torch.tensor([[3.0, 4.0]], requires_grad=True)
    value = loss(images, texts, torch.tensor([0]))
    expected = (math.log(1 + math.exp(0.12)) + math.log(1 + math.exp(-0.6))) / 2
    assert value.item() == pytest.approx(expected, abs=1e-6)
    value.backward()
    assert images.grad.abs().sum() > 0
    assert texts.grad.abs().sum() > 0


VARIANTS = [(kind, projection) for kind in ("linear", "norm_softmax", "cosine") for projection in (False, True)]


@pytest.mark.parametrize(("classifier", "projection"), VARIANTS)
def test_cross_modal_id_loss_variants_match_slow_reference(classifier: str, projection: bool) -> None:
    loss = CrossModalIDLoss(7, 5, classifier=classifier, scale=3.0, cross_modal_projection=projection).double()
    torch.nn.init.normal_(loss.classifier.weight)
    images, texts, ids = torch.randn(6, 5).double(), torch.randn(6, 5).double(), torch.randint(0, 7, (6,))

    def unit(row: list[float]) -> list[float]:
        return [x / math.sqrt(sum(y * y for y in row)) for x in row]

    weight = [row if classifier == "linear" else unit(row) for row in loss.classifier.weight.tolist()]
    total = 0.0
    for own, other in ((images, texts), (texts, images)):
        for row, partner, label in zip(own.tolist(), other.tolist(), ids.tolist(), strict=True):
            features = unit(row) if classifier == "cosine" else row
            if projection:
                direction = unit(partner)
                length = sum(x * z for x, z in zip(features, direction, strict=True))
                features = [length * z for z in direction]
            scores = [sum(w * x for w, x in zip(ws, features, strict=True)) for ws in weight]
            scores = [3.0 * score if classifier == "cosine" else score for score in scores]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    assert loss(images, texts, ids).item() == pytest.approx(total / 12, rel=1e-12)


@pytest.mark.parametrize(("classifier", "projection"), VARIANTS)
@pytest.mark.parametrize("features", [torch.zeros(4, 3), torch.randn(4, 3) * 1e30])
def test_cross_modal_id_loss_variants_of_degenerate_batch_are_finite(
    classifier: str, projection: bool, features: torch.Tensor
) -> None:
    loss = CrossModalIDLoss(4, 3, classifier=classifier, cross_modal_projection=projection)
    images, texts = features.clone().requires_grad_(), torch.randn(4, 3, requires_grad=True)
    value = loss(images, texts, torch.zeros(4, dtype=torch.int64))
    value.backward()
    assert torch.isfinite(value)
    for gradient in (images.grad, texts.grad, loss.classifier.weight.grad):
        assert torch.isfinite(gradient).all()


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


def test_cross_modal_id_loss_number_of_identities_that_is_not_whole_is_refused() -> None:
    with pytest.raises(TypeError, match=r"num_identities is 4\.0, expected a whole number"):
        CrossModalIDLoss(4.0, 8)  # pyright: ignore[reportArgumentType]
    assert type(CrossModalIDLoss(torch.tensor(4), 8).num_identities) is int  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_cross_modal_id_loss_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossModalIDLoss(4, 8, label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"classifier": "arc"}, "classifier is 'arc', expected one of linear"), ({"scale": 0.0}, "scale is 0.0")],
)
def test_cross_modal_id_loss_unknown_classifier_or_scale_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossModalIDLoss(4, 8, **settings)
