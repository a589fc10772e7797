"""The prompts that ship fit the base that ships, and help on pedestrians that they have not seen."""

import json

import pytest
import torch

from promptreid import evaluate, load_clip, load_prompts
from promptreid.data.reader import load_cuhk_pedes
from promptreid.errors import CheckpointError
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import TINY_FOLDER, TINY_IMAGE_SIZE, TINY_TAG, tiny_prompts


def test_tiny_prompts_are_a_few_kilobytes_and_hold_no_encoders() -> None:
    files = {path.name: path.stat().st_size for path in tiny_prompts().iterdir() if path.is_file()}
    assert {"prompts.safetensors", "prompt_config.json"} <= set(files)
    assert "open_clip_model.safetensors" not in files
    assert sum(files.values()) < 40_000


def test_tiny_prompts_raise_rank1_on_persons_they_never_saw(tmp_path) -> None:
    model = load_prompts(tiny_prompts())
    split = load_cuhk_pedes(write_generated(tmp_path / "set", num_identities=(1, 1, 60), seed=77, progress=False)).test
    adapted = evaluate(model, split, progress=False).text_to_image.rank1
    with model.disabled():
        bare = evaluate(model, split, progress=False).text_to_image.rank1
    assert adapted > bare + 0.03
    assert bare > 3 / 60  # chance is 1 in 60


def test_adaptation_record_names_a_seed_of_its_own_and_what_it_gained() -> None:
    record = json.loads((TINY_FOLDER / "adaptation.json").read_text(encoding="utf-8"))
    assert record["settings"]["data_seed"] == 1000
    scores = record["validation"]
    assert scores["adapted"]["rank1"] > scores["bare"]["rank1"] == pytest.approx(0.6375, abs=0.001)


def test_both_versions_of_the_base_load_and_the_prompts_are_of_the_later_one() -> None:
    later, earlier = (
        load_clip("promptreid-tiny", pretrained=tag, image_size=TINY_IMAGE_SIZE) for tag in (TINY_TAG, "generated")
    )
    assert not torch.equal(later.visual.conv1.weight, earlier.visual.conv1.weight)
    load_prompts(tiny_prompts(), model=later)
    with pytest.raises(CheckpointError, match="its weights differ"):
        load_prompts(tiny_prompts(), model=earlier)
    with pytest.raises(ValueError, match="Tags: generated, generated_v3"):
        load_clip("promptreid-tiny", pretrained="generated_v9")
