"""The prompts that ship fit the base that ships, and help on pedestrians that they have not seen."""

import json

import pytest

from promptreid import evaluate, load_prompts
from promptreid.data.reader import load_cuhk_pedes
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import TINY_FOLDER, tiny_prompts


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
    assert scores["adapted"]["rank1"] > scores["bare"]["rank1"] == pytest.approx(0.166, abs=0.001)
