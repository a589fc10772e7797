"""PromptSRC's loss against a plain reference and hand-worked values."""

import math

import pytest
import torch

from promptreid.losses.functional import feature_distance, similarity_divergence
from promptreid.losses.self_consistency import FrozenFeatures, SelfConsistencyLoss


def plain_loss(images, texts, frozen_images, frozen_texts, *, weights, temperature):
    """arXiv 2307.06948, equations 3 to 5, by loops; the third term both ways."""

    def unit(rows):
        return [[value / math.sqrt(sum(each * each for each in row)) for value in row] for row in rows.tolist()]

    def distance(rows, others):
        pairs = [abs(a - b) for row, other in zip(rows, others, strict=True) for a, b in zip(row, other, strict=True)]
        return sum(pairs) / len(pairs)

    def shares(queries, keys):
        table = []
        for query in queries:
            scores = [sum(a * b for a, b in zip(query, key, strict=True)) / temperature for key in keys]
            total = sum(math.exp(score) for score in scores)
            table.append([math.exp(score) / total for score in scores])
        return table

    def divergence(wanted, found):
        rows = [
            sum(q * math.log(q / p) for q, p in zip(one, other, strict=True))
            for one, other in zip(wanted, found, strict=True)
        ]
        return sum(rows) / len(rows)

    x, y, f, g = unit(images), unit(texts), unit(frozen_images), unit(frozen_texts)
    agreement = (divergence(shares(f, g), shares(x, y)) + divergence(shares(g, f), shares(y, x))) / 2
    return weights[0] * distance(x, f) + weights[1] * distance(y, g) + weights[2] * agreement


@pytest.mark.parametrize("weights", [(10.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 3.0)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_equals_the_plain_reference_in_float64(weights, temperature):
    images, texts, frozen_images, frozen_texts = torch.randn(4, 6, 8, dtype=torch.float64)
    loss = SelfConsistencyLoss(
        image_weight=weights[0], text_weight=weights[1], similarity_weight=weights[2], temperature=temperature
    )
    found = loss(images, texts, torch.arange(6), frozen=FrozenFeatures(frozen_images, frozen_texts))
    wanted = plain_loss(images, texts, frozen_images, frozen_texts, weights=weights, temperature=temperature)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_loss_of_frozen_features_themselves_is_zero_with_zero_gradient_of_the_divergence():
    features = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    loss = SelfConsistencyLoss(image_weight=0, text_weight=0)
    value = loss(features[0], features[1], frozen=FrozenFeatures(*features.detach()))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert features.grad.abs().max() < 1e-10


def test_distance_and_divergence_of_hand_worked_values():
    # (1, 0) and (0.6, 0.8): (0.4 + 0.8) / 2
    assert feature_distance(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])).item() == pytest.approx(0.6)
    wanted = 0.5 * math.log(0.5 / (math.e / (1 + math.e))) + 0.5 * math.log(0.5 / (1 / (1 + math.e)))
    assert similarity_divergence(torch.eye(2), torch.zeros(2, 2), temperature=1.0).item() == pytest.approx(wanted)


def test_length_of_features_does_not_matter():
    images, texts, frozen_images, frozen_texts = torch.randn(4, 5, 8)
    loss, frozen = SelfConsistencyLoss(), FrozenFeatures(frozen_images, frozen_texts)
    longer = FrozenFeatures(3 * frozen_images, 7 * frozen_texts)
    torch.testing.assert_close(loss(images, texts, frozen=frozen), loss(5 * images, 2 * texts, frozen=longer))


def test_half_precision_is_computed_in_float32():
    images, texts, frozen_images, frozen_texts = torch.randn(4, 5, 8).bfloat16()
    value = SelfConsistencyLoss()(images, texts, frozen=FrozenFeatures(frozen_images, frozen_texts))
    assert value.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_weight": -1.0}, "expected numbers of at least 0"),
        ({"image_weight": 0, "text_weight": 0, "similarity_weight": 0}, "one above it"),
        ({"text_weight": math.nan}, "expected numbers"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a positive number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SelfConsistencyLoss(**settings)


def test_frozen_features_of_another_batch_are_refused():
    features, others = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match=r"frozen features have shape \(3, 8\), expected \(4, 8\)"):
        SelfConsistencyLoss()(*features, frozen=FrozenFeatures(*others))


def test_settings_are_shown():
    assert "text_weight=25.0" in repr(SelfConsistencyLoss())
