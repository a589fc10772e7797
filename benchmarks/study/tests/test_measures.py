"""The study's measures on cases with a known answer, and Rank-1 by person and by group, worked by hand."""

import pytest
import torch

import measures


def test_mmd_of_one_distribution_is_near_zero_and_of_two_is_not():
    generator = torch.Generator().manual_seed(0)
    same, other = (torch.randn(500, 8, generator=generator) for _ in range(2))
    assert abs(measures.squared_mmd(same, other)) < 0.005
    assert measures.squared_mmd(same + 1, other) > 0.1


def test_mmd_by_hand():
    # One distance of 1 within each pair, median 1, scale 2: k(1) = exp(-1/2) = 0.60653. Across: distances 3, 4, 2, 3:
    # mean of exp(-4.5), exp(-8), exp(-2), exp(-4.5) = 0.03947.
    x, y = torch.tensor([[3.0], [4.0]]), torch.tensor([[0.0], [1.0]])
    assert measures.squared_mmd(x, y) == pytest.approx(2 * 0.606531 - 2 * 0.039473, abs=1e-5)


def test_modality_gap_by_hand():
    assert measures.modality_gap(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 4.0]])) == 5.0


def test_own_domain_pairs_with_one_caption_share_an_id():
    pairs = measures.OwnDomain([], ["a red coat", "a bag", "a red coat"])
    assert pairs.ids.tolist() == [0, 1, 0]


def test_hits_and_rank1_by_person_by_hand():
    from promptreid.data.records import ReIDSplit
    from promptreid.evaluation.splits import EncodedSplit

    # Sentence 0 is nearest to image 0 (person 7, right), sentence 1 to image 0 (wrong), sentence 2 to image 1.
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    encoded = EncodedSplit(ReIDSplit("test", []), images, texts, torch.tensor([7, 9]), torch.tensor([7, 9, 9]), [])
    hits = measures.first_hits(encoded)
    assert hits == [True, False, True]
    assert measures.rank1_by_person(hits, [7, 9, 9]) == {7: 1.0, 9: 0.5}


def test_rank1_by_group_by_hand():
    groups = [{"build": "slim"}, {"build": "heavy", "word for gender": "man"}, {"build": "slim"}]
    assert measures.rank1_by_group([True, False, False], groups) == {
        "build": {"heavy": {"rank1": 0.0, "queries": 1}, "slim": {"rank1": 0.5, "queries": 2}},
        "word for gender": {"man": {"rank1": 0.0, "queries": 1}},
    }


def test_groups_follow_the_captions_of_a_split(tmp_path):
    from promptreid.data.reader import load_cuhk_pedes
    from promptreid.evaluation.splits import EncodedSplit
    from promptreid.synthetic import write_generated

    root = write_generated(tmp_path / "data", num_identities=(1, 1, 4), images_per_identity=2, progress=False)
    split = load_cuhk_pedes(root).test
    nothing = torch.empty(0)
    groups = measures.caption_groups(EncodedSplit(split, nothing, nothing, nothing, nothing, []), root)
    captions = [caption for record in split.records for caption in record.captions]
    assert len(groups) == len(captions) == 16
    women, men = ("woman", "lady", "girl", "female"), ("man", "boy", "guy", "gentleman", "male")
    for group, caption in zip(groups, captions, strict=True):
        words = set(caption.lower().replace(".", " ").replace(",", " ").replace("'", " ").split())
        if group["word for gender"] == "man":
            assert not words & set(women), caption
        if group["word for gender"] == "woman":
            assert not words & set(men), caption
        assert group["skin tone"]
        assert group["build"]
