"""Batches made in a device's memory are what the dataset and the usual evaluation make one by one."""

import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, evaluate, load_clip
from promptreid.data import transforms
from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_cuhk_pedes
from promptreid.synthetic import write_generated
from resident import DRAWS, ResidentPairs, ResidentSplit, augment


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("resident")
    write_generated(root, num_identities=(6, 2, 3), images_per_identity=2, progress=False)
    return load_cuhk_pedes(root)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48)), PromptConfig())


def test_augmented_batch_is_what_the_transform_makes_of_each_image_from_the_same_numbers(model, monkeypatch):
    transform = model.train_transform
    pixels = torch.randint(0, 256, (40, 3, 96, 48), dtype=torch.uint8)
    draws, mirror = torch.rand(40, DRAWS), torch.rand(40) < 0.5
    found = augment(pixels, transform, mirror=mirror, draws=draws)
    for row in range(40):
        monkeypatch.setattr(transforms.torch, "rand", lambda *_, row=row: draws[row])
        wanted = transform(pixels[row], mirror=bool(mirror[row]))
        torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-5)
    assert 0.2 < (found == 0).all(dim=1).any(dim=(1, 2)).float().mean() < 0.8  # half are erased


def test_an_epoch_holds_every_pair_once_with_its_own_tokens_and_label(data, model):
    pairs = ResidentPairs(data.train, model, "cpu")
    usual = CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer)
    batches = list(pairs.epoch(8, torch.Generator().manual_seed(0)))
    assert [len(images) for images, _, _ in batches] == [8, 8, 8]
    rows = {tuple(row.tolist()) for row in usual.tokens.to(torch.int64)}
    assert all(tuple(row.tolist()) in rows for _, tokens, _ in batches for row in tokens)
    labels = torch.cat([person_ids for _, _, person_ids in batches])
    assert torch.equal(labels.bincount(), torch.full((6,), 4))
    again = list(pairs.epoch(8, torch.Generator().manual_seed(0)))
    for batch, same in zip(batches, again, strict=True):
        assert all(map(torch.equal, batch, same))
    other = next(pairs.epoch(8, torch.Generator().manual_seed(1)))
    assert not torch.equal(other[0], batches[0][0])


def test_scores_are_those_of_the_usual_evaluation(data, model):
    from promptreid.evaluation.evaluate import encode_split, score

    split = ResidentSplit(data.test, model, "cpu")
    encoded, usual = split.encode(model), encode_split(model, data.test, progress=False)
    torch.testing.assert_close(encoded.image_features, usual.image_features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded.text_features, usual.text_features, rtol=1e-4, atol=1e-5)
    assert torch.equal(encoded.text_ids, usual.text_ids)
    found, wanted = score(encoded), evaluate(model, data.test, progress=False)
    assert found.text_to_image.as_dict() == pytest.approx(wanted.text_to_image.as_dict(), abs=1e-6)
    assert found.image_to_text.as_dict() == pytest.approx(wanted.image_to_text.as_dict(), abs=1e-6)
