"""SDM against hand-worked values and a loop in plain Python."""

import math

import pytest
import torch

from promptreid.losses.contrastive import SDMLoss


def slow_loss(
    images: torch.Tensor, texts: torch.Tensor, *, temperature: float, ids: list[int], epsilon: float
) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def one_way(queries: list[list[float]], gallery: list[list[float]]) -> float:
        total = 0.0
        for i, query in enumerate(queries):
            score = [math.exp(cosine(query, item) / temperature) for item in gallery]
            mates = sum(other == ids[i] for other in ids)
            for j, value in enumerate(score):
                share, target = value / sum(score), (1 / mates if ids[j] == ids[i] else 0.0)
                total += share * math.log(share / (target + epsilon))
        return total / len(queries)

    return one_way(images.tolist(), texts.tolist()) + one_way(texts.tolist(), images.tolist())


def test_sdm_loss_two_pairs_matches_hand_worked_value() -> None:
    # Cosines (temperature 0.5, so logits are twice these), as in test_contrastive.py: [[2, 1.4142], [0, 1.4142]].
    # Two persons, so q is the identity; epsilon 0.01: log(1.01) = 0.009950, log(0.01) = -4.605170.
    # i0: p = (0.642398, 0.357602): 0.642398 * (log 0.642398 - 0.009950) + 0.357602 * (log 0.357602 + 4.605170)
    #     = 0.642398 * -0.452498 + 0.357602 * 3.576835 = -0.290684 + 1.279083 = 0.988399
    # i1: p = (0.195570, 0.804430): 0.195570 * (-1.631837 + 4.605170) + 0.804430 * (-0.217622 - 0.009950)
    #     = 0.581495 - 0.183066 = 0.398429
    # t0: p = (0.880797, 0.119203): 0.880797 * -0.136878 + 0.119203 * 2.478242 = -0.120562 + 0.295414 = 0.174852
    # t1: p = (1/2, 1/2): 0.5 * (-0.693147 + 4.605170) + 0.5 * (-0.693147 - 0.009950) = 1.956011 - 0.351549 = 1.604463
    # loss = (0.988399 + 0.398429) / 2 + (0.174852 + 1.604463) / 2 = 1.583072
    images = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[0.5, 0.0], [4.0, 4.0]])
    loss = SDMLoss(0.5, epsilon=0.01)
    assert loss(images, texts, torch.tensor([7, 3])).item() == pytest.approx(1.583072, abs=1e-5)
    assert loss(images, texts).item() == pytest.approx(1.583072, abs=1e-5)


def test_sdm_loss_one_person_alike_is_zero() -> None:
    features = torch.ones(4, 3)
    assert SDMLoss()(features, features, torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-6)


def test_sdm_loss_random_batch_matches_slow_reference() -> None:
    images, texts = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    ids = [0, 1, 0, 2, 1, 0]
    fast = SDMLoss(0.1)(images, texts, torch.tensor(ids)).item()
    slow = slow_loss(images, texts, temperature=0.1, ids=ids, epsilon=1e-8)
    assert fast == pytest.approx(slow, rel=1e-12)


def test_sdm_loss_random_batch_has_right_gradients() -> None:
    images = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b: SDMLoss(0.3)(a, b, ids), (images, texts))


@pytest.mark.parametrize("features", ["one pair", "zero", "huge", "one person"])
def test_sdm_loss_degenerate_batch_is_finite_with_finite_gradients(features: str) -> None:
    images = {
        "one pair": torch.randn(1, 4),
        "zero": torch.zeros(3, 4),
        "huge": torch.randn(3, 4) * 1e30,
        "one person": torch.randn(3, 4),
    }[features].requires_grad_()
    loss = SDMLoss()(images, torch.randn(len(images), 4), torch.zeros(len(images), dtype=torch.int64))
    loss.backward()
    assert torch.isfinite(loss)
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_sdm_loss_half_precision_under_autocast_is_worked_out_in_float32() -> None:
    images, texts, ids = torch.randn(8, 16).bfloat16(), torch.randn(8, 16).bfloat16(), torch.arange(8) // 2
    expected = SDMLoss()(images.float(), texts.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SDMLoss()(images, texts, ids)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_sdm_loss_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the same \(batch, dim\)"):
        SDMLoss()(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="one a pair"):
        SDMLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(3))
    with pytest.raises(ValueError, match="expected a positive number"):
        SDMLoss(0.0)
    with pytest.raises(ValueError, match="epsilon is 0"):
        SDMLoss(epsilon=0.0)
