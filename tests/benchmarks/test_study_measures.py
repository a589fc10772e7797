"""The study's measures on cases with a known answer."""

import pytest
import torch


@pytest.fixture
def measures(study):
    return study("measures")


def test_mmd_of_one_distribution_is_near_zero_and_of_two_is_not(measures):
    generator = torch.Generator().manual_seed(0)
    same, other = (torch.randn(500, 8, generator=generator) for _ in range(2))
    assert abs(measures.squared_mmd(same, other)) < 0.005
    assert measures.squared_mmd(same + 1, other) > 0.1


def test_mmd_by_hand(measures):
    # One distance of 1 within each pair, median 1, scale 2: k(1) = exp(-1/2) = 0.60653. Across: distances 3, 4, 2, 3:
    # mean of exp(-4.5), exp(-8), exp(-2), exp(-4.5) = 0.03947.
    x, y = torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0], [1.0]])
    assert measures.squared_mmd(x, y) == pytest.approx(2 * 0.606531 - 2 * 0.039473, abs=1e-5)


def test_modality_gap_by_hand(measures):
    assert measures.modality_gap(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 4.0]])) == 5.0


def test_own_domain_pairs_with_one_caption_share_an_id(measures):
    pairs = measures.OwnDomain([], ["a red coat", "a bag", "a red coat"])
    assert pairs.ids.tolist() == [0, 1, 0]
