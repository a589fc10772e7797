"""Encoding and scoring a split."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from promptreid import evaluate
from promptreid.data.images import open_image
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ReIDSplit
from promptreid.errors import DatasetError
from promptreid.evaluation import splits
from promptreid.evaluation.evaluate import encode_split, score, score_table
from promptreid.evaluation.metrics import compute_metrics
from promptreid.synthetic import write_generated


def test_encode_split_gives_each_image_and_caption_its_own_features(model, split):
    encoded = encode_split(model, split, batch_size=7, progress=False)
    assert encoded.image_features.shape == (24, 128)
    assert encoded.text_features.shape == (48, 128)
    assert encoded.captions == [caption for record in split.records for caption in record.captions]
    assert encoded.image_ids.tolist() == [record.person_id for record in split.records]
    assert encoded.text_ids.tolist() == [record.person_id for record in split.records for _ in record.captions]
    image = model.eval_transform(open_image(split.records[9].path)).unsqueeze(0)
    with torch.no_grad():
        own = model.eval().encode_image(image, normalize=True)[0]
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_evaluate_of_encoders_of_another_precision_scores_nearly_the_same(model, split, dtype):
    exact = evaluate(model, split, progress=False).text_to_image
    model.clip.to(dtype)
    encoded = encode_split(model, split, progress=False)
    for features in (encoded.image_features, encoded.text_features):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)), rtol=1e-6, atol=1e-6)
    found = score(encoded).text_to_image
    assert found.mAP == pytest.approx(exact.mAP, abs=1e-6 if dtype == torch.float64 else 0.03)


def test_evaluate_of_the_shipped_model_is_far_above_chance(model, tmp_path):
    persons = 40
    drawn = write_generated(tmp_path / "data", num_identities=(1, 1, persons), seed=0, progress=False)
    with model.disabled():
        scores = evaluate(model, load_cuhk_pedes(drawn).test, progress=False)
    # 320 sentences and 160 images; chance finds the right person first in one of 40 searches.
    assert scores.text_to_image.num_queries == 8 * persons
    assert scores.text_to_image.rank1 > 5 / persons
    assert scores.image_to_text.rank1 > 5 / persons


def test_evaluate_of_a_model_that_diverged_is_refused(model, split):
    with torch.no_grad():
        model.vision.prompts.tokens.fill_(torch.nan)
    with pytest.raises(ValueError, match="24 of 24 gallery_features hold NaN or infinity; did training diverge"):
        evaluate(model, split, progress=False)


def test_evaluate_into_a_folder_writes_metrics_and_a_picture(model, split, tmp_path):
    scores = evaluate(model, split, progress=False, output_dir=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["text_to_image"] == {
        **scores.text_to_image.as_dict(),
        "num_queries": 48,
        "num_without_positive": 0,
    }
    assert written["image_to_text"]["mAP"] == scores.image_to_text.mAP
    assert (written["split"], written["images"], written["captions"]) == ("test", 24, 48)
    with Image.open(tmp_path / "out" / "ranking.png") as picture:
        assert picture.format == "PNG"


def test_encode_split_with_a_batch_of_nothing_is_refused(model, split):
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        encode_split(model, split, batch_size=0)


def test_score_table_has_a_row_per_name_and_direction():
    scores = {"rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "mAP": 0.625, "mINP": 0.25}
    assert score_table({"zero shot": {**scores, "image_to_text": scores}}) == (
        "                             rank1   rank5  rank10     mAP    mINP\n"
        "zero shot   text to image    50.00   75.00  100.00   62.50   25.00\n"
        "zero shot   image to text    50.00   75.00  100.00   62.50   25.00"
    )


@pytest.mark.parametrize("total", [0, 1, 2, 7, 24])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shards_cover_everything_once(monkeypatch, total, processes):
    shards = []
    for rank in range(processes):
        monkeypatch.setattr(splits, "_rank_and_processes", lambda rank=rank: (rank, processes))
        shards.append(list(splits.own_shard(total)))
    assert [index for shard in shards for index in shard] == list(range(total))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.slow  # two processes do it in tests/examples, under torchrun
def test_evaluate_in_three_processes_joins_their_shares(tmp_path):
    script = tmp_path / "shares.py"
    script.write_text(
        "import sys, torch\n"
        "from promptreid.evaluation import splits\n"
        "rank = int(sys.argv[1])\n"
        "torch.distributed.init_process_group('gloo', init_method='file://' + sys.argv[2], rank=rank, world_size=3)\n"
        "share = torch.arange(7.0)[list(splits.own_shard(7))][:, None].expand(-1, 2)\n"
        "joined = splits.join_shards(share, 7)\n"
        "assert torch.equal(joined, torch.arange(7.0)[:, None].expand(-1, 2)), joined\n"
        "assert splits.is_main_process() == (rank == 0)\n"
        "torch.distributed.barrier()\n"
        "torch.distributed.destroy_process_group()\n"
    )
    command = [sys.executable, "-W", "ignore", str(script)]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")]) for rank in range(3)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
