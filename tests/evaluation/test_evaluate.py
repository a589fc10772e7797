"""Encoding and scoring a split."""

import dataclasses

import pytest
import torch

from promptreid import evaluate
from promptreid.data.dataset import open_image
from promptreid.data.records import ReIDSplit
from promptreid.errors import DatasetError
from promptreid.evaluation.evaluate import encode_split, score
from promptreid.evaluation.metrics import compute_metrics


def test_encode_split_gives_each_picture_and_caption_its_own_features(model, split):
    encoded = encode_split(model, split, batch_size=7, progress=False)
    assert encoded.image_features.shape == (24, 128)
    assert encoded.text_features.shape == (48, 128)
    assert encoded.captions == [caption for record in split.records for caption in record.captions]
    assert encoded.image_ids.tolist() == [record.person_id for record in split.records]
    assert encoded.text_ids.tolist() == [record.person_id for record in split.records for _ in record.captions]
    picture = model.eval_transform(open_image(split.records[9].path)).unsqueeze(0)
    with torch.no_grad():
        own = model.eval().encode_image(picture, normalize=True)[0]
        words = model.encode_text(model.tokenizer([encoded.captions[31]]), normalize=True)[0]
    torch.testing.assert_close(encoded.image_features[9], own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.text_features[31], words, rtol=1e-4, atol=1e-5)


def test_encode_split_puts_every_mode_back(model, split):
    model.train()
    model.vision.eval()
    before = [module.training for module in model.modules()]
    encode_split(model, split, progress=False)
    assert [module.training for module in model.modules()] == before


def test_encode_split_that_fails_puts_every_mode_back(model, split):
    model.train()
    broken = ReIDSplit("test", [dataclasses.replace(split.records[0], path=split.records[0].path / "gone.jpg")])
    with pytest.raises(DatasetError, match=r"gone\.jpg"):
        encode_split(model, broken, progress=False)
    assert all(module.training for module in model.modules())


def test_evaluate_scores_both_directions(model, split):
    scores = evaluate(model, split, batch_size=10, progress=False)
    encoded = encode_split(model, split, progress=False)
    forward = compute_metrics(
        encoded.text_features, encoded.image_features, encoded.text_ids, encoded.image_ids
    ).as_dict()
    assert scores.text_to_image.as_dict() == pytest.approx(forward, abs=1e-9)
    assert scores.image_to_text.num_queries == 24
    assert scores.text_to_image.num_queries == 48
    assert score(encoded).as_dict()["image_to_text"].keys() == forward.keys()


def test_evaluate_of_the_shipped_model_is_far_above_chance(model, split):
    with model.disabled():
        scores = evaluate(model, split, progress=False)
    assert scores.text_to_image.rank1 > 1 / 3  # 4 of 24 pictures are right: chance is 1 in 6


def test_evaluate_of_a_model_that_diverged_is_refused(model, split):
    with torch.no_grad():
        model.vision.prompts.tokens.fill_(torch.nan)
    with pytest.raises(ValueError, match="24 of 24 gallery_features hold NaN or infinity; did training diverge"):
        evaluate(model, split, progress=False)
