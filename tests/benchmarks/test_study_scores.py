"""Rank-1 by person and by group, worked by hand."""

import pytest
import torch


@pytest.fixture
def scores(study):
    return study("scores")


def test_hits_and_rank1_by_person_by_hand(scores):
    from promptreid.data.records import ReIDSplit
    from promptreid.evaluation.splits import EncodedSplit

    # Sentence 0 is nearest to picture 0 (person 7, right), sentence 1 to picture 0 (wrong), sentence 2 to picture 1.
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    encoded = EncodedSplit(ReIDSplit("test", []), images, texts, torch.tensor([7, 9]), torch.tensor([7, 9, 9]), [])
    hits = scores.first_hits(encoded)
    assert hits == [True, False, True]
    assert scores.rank1_by_person(hits, [7, 9, 9]) == {7: 1.0, 9: 0.5}


def test_rank1_by_group_by_hand(scores):
    groups = [{"build": "slim"}, {"build": "heavy", "word for gender": "man"}, {"build": "slim"}]
    assert scores.rank1_by_group([True, False, False], groups) == {
        "build": {"heavy": {"rank1": 0.0, "queries": 1}, "slim": {"rank1": 0.5, "queries": 2}},
        "word for gender": {"man": {"rank1": 0.0, "queries": 1}},
    }


def test_groups_follow_the_captions_of_a_split(scores, tmp_path):
    from promptreid.data.reader import load_cuhk_pedes
    from promptreid.evaluation.splits import EncodedSplit
    from promptreid.synthetic import write_generated

    root = write_generated(tmp_path / "data", num_identities=(1, 1, 4), images_per_identity=2, progress=False)
    split = load_cuhk_pedes(root).test
    nothing = torch.empty(0)
    groups = scores.caption_groups(EncodedSplit(split, nothing, nothing, nothing, nothing, []), root)
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
