"""InfoNCE, SDM and N-ITC against hand-worked values and a loop in plain Python; the temperature."""

import math
from typing import Any

import pytest
import torch

from promptreid.losses.contrastive import ContrastiveLoss, NITCLoss, SDMLoss, Temperature
from promptreid.losses.functional import nitc_loss
from promptreid.losses.self_consistency import SelfConsistencyLoss


def slow_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    *,
    temperature: float,
    ids: list[int],
    same_person: str,
    similarity: str = "cosine",
) -> float:
    def compare(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) if similarity == "cosine" else dot

    def one_way(queries: list[list[float]], gallery: list[list[float]]) -> float:
        total = 0.0
        for i, query in enumerate(queries):
            score = [math.exp(compare(query, item) / temperature) for item in gallery]
            mates = [j for j in range(len(ids)) if ids[j] == ids[i]]
            positives = mates if same_person == "positive" else [i]
            left_out = set(mates) - {i} if same_person == "ignored" else set()
            whole = sum(value for j, value in enumerate(score) if j not in left_out)
            total -= sum(math.log(score[j] / whole) for j in positives) / len(positives)
        return total / len(queries)

    return (one_way(images.tolist(), texts.tolist()) + one_way(texts.tolist(), images.tolist())) / 2


def test_contrastive_loss_two_pairs_matches_hand_worked_value() -> None:
    # Images along x and y, three and two long; captions along x and at 45 degrees. Cosines:
    #        t0       t1
    # i0      1     0.7071          temperature 0.5, so logits are twice these: [[2, 1.4142], [0, 1.4142]]
    # i1      0     0.7071
    # image to text: log(1 + e^(1.4142-2)) = log 1.556668 = 0.442548;  log(1 + e^(0-1.4142)) = log 1.243117 = 0.217622
    # text to image: log(1 + e^(0-2)) = log 1.135335 = 0.126928;       log(1 + e^0) = log 2 = 0.693147
    # loss = ((0.442548 + 0.217622) / 2 + (0.126928 + 0.693147) / 2) / 2 = (0.330085 + 0.410038) / 2 = 0.370061
    images = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[0.5, 0.0], [4.0, 4.0]])
    assert ContrastiveLoss(0.5)(images, texts).item() == pytest.approx(0.370061, abs=1e-5)


def test_contrastive_loss_dot_product_matches_hand_worked_value() -> None:
    # The same features: dot products [[1.5, 12], [0, 8]], over a temperature of 4: [[0.375, 3], [0, 2]].
    # image to text: log(1 + e^(3-0.375)) = log(1 + 13.804574) = 2.694936;  log(1 + e^-2) = 0.126928
    # text to image: log(1 + e^-0.375) = log 1.687289 = 0.523123;          log(1 + e^(3-2)) = log 3.718282 = 1.313262
    # loss = ((2.694936 + 0.126928) / 2 + (0.523123 + 1.313262) / 2) / 2 = 1.164562
    images = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[0.5, 0.0], [4.0, 4.0]])
    assert ContrastiveLoss(4.0, similarity="dot")(images, texts).item() == pytest.approx(1.164562, abs=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("same_person", ["negative", "positive", "ignored"])
def test_contrastive_loss_random_batch_matches_slow_reference(same_person: str, similarity: str) -> None:
    images, texts = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    ids = [0, 1, 0, 2, 1, 0]
    fast = ContrastiveLoss(0.1, same_person=same_person, similarity=similarity)(images, texts, torch.tensor(ids))
    slow = slow_loss(images, texts, temperature=0.1, ids=ids, same_person=same_person, similarity=similarity)
    assert fast.item() == pytest.approx(slow, rel=1e-12)


def test_contrastive_loss_given_ids_does_not_count_the_same_person_as_negative() -> None:
    # One person's two pairs, told apart by nothing: with them as negatives the loss would be log 2.
    features, ids = torch.ones(2, 3), torch.tensor([5, 5])
    assert ContrastiveLoss()(features, features, ids).item() == 0
    assert ContrastiveLoss()(features, features).item() == pytest.approx(math.log(2))
    assert ContrastiveLoss(same_person="negative")(features, features, ids).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("same_person", ["negative", "positive", "ignored"])
def test_contrastive_loss_random_batch_has_right_gradients(same_person: str) -> None:
    images = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = ContrastiveLoss(0.3, same_person=same_person)
    ids = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, ids), (images, texts))


def test_contrastive_loss_other_persons_only_is_the_same_whatever_same_person_says() -> None:
    images, texts, ids = torch.randn(4, 8), torch.randn(4, 8), torch.arange(4)
    plain = ContrastiveLoss()(images, texts)
    torch.testing.assert_close(ContrastiveLoss(same_person="positive")(images, texts, ids), plain)
    torch.testing.assert_close(ContrastiveLoss(same_person="ignored")(images, texts, ids), plain)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("same_person", ["negative", "positive", "ignored"])
@pytest.mark.parametrize("features", ["one pair", "zero", "huge", "one person"])
def test_contrastive_loss_degenerate_batch_is_finite_with_finite_gradients(
    same_person: str, features: str, similarity: str
) -> None:
    images = {
        "one pair": torch.randn(1, 4),
        "zero": torch.zeros(3, 4),
        "huge": torch.randn(3, 4) * 1e30,
        "one person": torch.randn(3, 4),
    }[features].requires_grad_()
    ids = torch.zeros(len(images), dtype=torch.int64)
    texts = torch.randn(len(images), 4) * (1e30 if features == "huge" else 1)
    loss = ContrastiveLoss(same_person=same_person, similarity=similarity)(images, texts, ids)
    loss.backward()
    assert torch.isfinite(loss)
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    if features == "one pair":
        assert loss.item() == 0


def test_contrastive_loss_half_precision_under_autocast_is_worked_out_in_float32() -> None:
    images, texts = torch.randn(8, 16), torch.randn(8, 16)
    expected = ContrastiveLoss()(images.bfloat16().float(), texts.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ContrastiveLoss()(images.bfloat16(), texts.bfloat16())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize(
    ("images", "texts"), [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((3,), (3,)), ((0, 3), (0, 3)), ((1, 2, 3), (1, 2, 3))]
)
def test_contrastive_loss_wrong_shapes_are_refused(images: tuple[int, ...], texts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected the same \\(batch, dim\\)"):
        ContrastiveLoss()(torch.zeros(images), torch.zeros(texts))


def test_contrastive_loss_wrong_ids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"person_ids have shape \(3,\), expected \(2,\)"):
        ContrastiveLoss()(torch.eye(2), torch.eye(2), torch.arange(3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_contrastive_loss_temperature_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        ContrastiveLoss(temperature)


@pytest.mark.parametrize("make", [ContrastiveLoss, SDMLoss, lambda value: SelfConsistencyLoss(temperature=value)])
@pytest.mark.parametrize("temperature", [1e-45, 3e-39, 1.17e-38])
def test_losses_temperature_by_which_similarities_overflow_is_refused(make: Any, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"overflow in float32; expected a number of at least 1\.2e-38"):
        make(temperature)


@pytest.mark.parametrize("make", [ContrastiveLoss, SDMLoss])
def test_losses_smallest_temperature_gives_finite_numbers(make: Any) -> None:
    features = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    loss = make(1.18e-38)(features, -features.detach(), torch.arange(2))
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()


def test_contrastive_loss_unknown_same_person_is_refused() -> None:
    with pytest.raises(ValueError, match="same_person is 'friend'"):
        ContrastiveLoss(same_person="friend")


def test_contrastive_loss_unknown_similarity_is_refused() -> None:
    with pytest.raises(ValueError, match="similarity is 'euclid'"):
        ContrastiveLoss(similarity="euclid")


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_contrastive_loss_features_not_a_number_are_not_hidden(similarity: str) -> None:
    features = torch.tensor([[math.nan, 0.0], [0.0, 1.0]])
    assert torch.isnan(ContrastiveLoss(similarity=similarity)(features, torch.eye(2)))


def slow_sdm_loss(
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
    # Cosines (temperature 0.5, so logits are twice these), as in the first test: [[2, 1.4142], [0, 1.4142]].
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
    slow = slow_sdm_loss(images, texts, temperature=0.1, ids=ids, epsilon=1e-8)
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


def slow_nitc(
    images: torch.Tensor,
    texts: torch.Tensor,
    believed: torch.Tensor,
    *,
    temperature: float,
    ids: list[int],
    share: float,
) -> float:
    """The loss in plain Python; `believed` are the cosines that the soft labels are made of."""

    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    def one_way(cosines: torch.Tensor, labels: torch.Tensor) -> float:
        total = 0.0
        for i, (row, label_row) in enumerate(zip(cosines.tolist(), labels.tolist(), strict=True)):
            mates = [j for j, other in enumerate(ids) if other == ids[i]]
            hard = [1 / len(mates) if j in mates else 0.0 for j in range(len(ids))]
            wanted = [share * soft + (1 - share) * own for soft, own in zip(softmax(label_row), hard, strict=True)]
            total -= sum(want * math.log(got) for want, got in zip(wanted, softmax(row), strict=True))
        return total / len(ids)

    unit = [features / features.norm(dim=1, keepdim=True) for features in (images, texts)]
    cosines = unit[0] @ unit[1].T
    return (one_way(cosines, believed) + one_way(cosines.T, believed.T)) / 2


def cosines_of(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    return (images / images.norm(dim=1, keepdim=True)) @ (texts / texts.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_nitc_loss_random_batch_matches_slow_reference(share: float) -> None:
    images, texts = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    ids = [0, 1, 0, 2, 1, 0]
    loss = NITCLoss(0.2, soft_labels=share, learnable_temperature=False)
    slow = slow_nitc(images, texts, cosines_of(images, texts), temperature=0.2, ids=ids, share=share)
    assert loss(images, texts, torch.tensor(ids)).item() == pytest.approx(slow, rel=1e-12)


def test_nitc_loss_gradient_is_that_of_finite_differences_with_its_labels_held_fixed() -> None:
    ids, step = [0, 1, 0, 2], 1e-6
    images = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    texts = torch.randn(4, 3, dtype=torch.float64)
    nitc_loss(images, texts, temperature=0.3, person_ids=torch.tensor(ids), soft_labels=0.5).backward()
    believed = cosines_of(images.detach(), texts)
    for i in range(4):
        for axis in range(3):
            moved = [images.detach().clone(), images.detach().clone()]
            moved[0][i, axis] += step
            moved[1][i, axis] -= step
            up, down = (slow_nitc(each, texts, believed, temperature=0.3, ids=ids, share=0.5) for each in moved)
            assert images.grad[i, axis].item() == pytest.approx((up - down) / (2 * step), abs=1e-7)


def test_nitc_loss_without_soft_labels_is_the_contrastive_loss_with_the_person_positive() -> None:
    images, texts, ids = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([0, 1, 0, 2, 1, 0])
    plain = ContrastiveLoss(0.07, same_person="positive")(images, texts, ids)
    torch.testing.assert_close(NITCLoss(soft_labels=0)(images, texts, ids), plain)
    own = ContrastiveLoss(0.07)(images, texts)
    torch.testing.assert_close(NITCLoss(soft_labels=0)(images, texts), own)


def test_nitc_loss_temperature_is_learnt_and_may_be_fixed() -> None:
    loss = NITCLoss()
    assert [name for name, _ in loss.named_parameters()] == ["temperature.logit_scale"]
    loss(torch.randn(4, 8), torch.randn(4, 8)).backward()
    assert loss.temperature.logit_scale.grad.abs() > 0
    assert not list(NITCLoss(learnable_temperature=False).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nitc_loss_share_of_soft_labels_rises_over_training_steps_alone(dtype: torch.dtype) -> None:
    images, texts, ids = torch.randn(4, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype), torch.tensor([0, 1, 0, 2])
    loss = NITCLoss(0.1, soft_labels=0.5, rising_steps=4)

    def expected(share: float) -> float:
        return nitc_loss(images, texts, temperature=0.1, person_ids=ids, soft_labels=share).item()

    found = [loss(images, texts, ids).item() for _ in range(6)]
    assert found == pytest.approx([expected(share) for share in (0, 0.125, 0.25, 0.375, 0.5, 0.5)])
    resumed = NITCLoss(0.1, soft_labels=0.5, rising_steps=4)
    resumed(images, texts, ids)
    again = NITCLoss(0.1, soft_labels=0.5, rising_steps=4)
    again.load_state_dict(resumed.state_dict())
    assert again(images, texts, ids).item() == pytest.approx(expected(0.125))
    assert again.eval()(images, texts, ids).item() == pytest.approx(expected(0.5))
    assert again.steps.item() == 2


@pytest.mark.parametrize("features", ["zero", "huge", "one person", "half"])
def test_nitc_loss_degenerate_batch_is_finite_with_finite_gradients(features: str) -> None:
    dtype = torch.bfloat16 if features == "half" else torch.float32
    scale = {"zero": 0.0, "huge": 1e30}.get(features, 1.0)
    images = (torch.randn(3, 4, dtype=dtype) * scale).requires_grad_()
    loss = NITCLoss(0.01)(images, torch.randn(3, 4, dtype=dtype) * scale, torch.zeros(3, dtype=torch.int64))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"soft_labels": 1.5}, "soft_labels is 1.5, expected a share from 0 to 1"),
        ({"rising_steps": -1}, "rising_steps is -1, expected a number of steps of at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_nitc_loss_wrong_setting_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NITCLoss(**settings)
