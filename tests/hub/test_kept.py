"""What every released version saved loads for ever, and scores as it did."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from promptreid import Gallery, __version__, load_prompts

KEPT = Path(__file__).with_name("kept")
FOLDERS = sorted(path.parent for path in KEPT.glob("*/*/prompt_config.json"))


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "keep_checkpoint.py"
    spec = importlib.util.spec_from_file_location("keep_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_version_is_kept():
    assert {path.name for path in (KEPT / __version__).iterdir()} >= {"prompts", "tuned", "run", "gallery"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_checkpoint_loads_and_scores_as_it_did(folder, tool):
    # Its architecture is none of open_clip's, which are all too large to keep.
    model = load_prompts(folder, trust_base=folder.name == "tuned")
    expected = json.loads((folder / "expected.json").read_text())
    assert {name: list(value.shape) for name, value in model.prompt_state_dict().items()} == expected["shapes"]
    torch.testing.assert_close(torch.tensor(tool.scores(model)), torch.tensor(expected["scores"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", sorted(KEPT.glob("*/run")), ids=lambda path: path.parent.name)
def test_kept_run_is_resumed_and_ends_as_it_would_have(folder, tool, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    expected = json.loads((folder / "expected.json").read_text())
    model = load_prompts(folder.with_name("tuned"), trust_base=True)
    trainer = tool.trainer(model, tmp_path / "run")
    history = trainer.fit()
    assert [(entry["stage"], entry["epoch"]) for entry in history] == [
        ("stage_one", 1), ("stage_one", 2), ("stage_two", 1), ("stage_two", 2)
    ]  # fmt: skip
    for name, values in expected["trained"].items():
        torch.testing.assert_close(torch.tensor(tool.trained(model)[name]), torch.tensor(values), atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", sorted(KEPT.glob("*/gallery*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_gallery_is_searched_as_it_was(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "gallery")
    gallery = Gallery.load(tmp_path / "gallery", load_prompts(folder.with_name("tuned"), trust_base=True))
    expected = json.loads((folder / "expected.json").read_text())
    assert (len(gallery), gallery.notes) == (5, {"model": {"model": "kept"}})
    hits = gallery.search(gallery.features[2], k=2, where={"folder": "cam_1"})
    for hit, (path, number, score, metadata) in zip(hits, expected, strict=False):
        assert (str(hit.path), hit.id, dict(hit.metadata)) == (path, number, metadata)
        assert hit.score == pytest.approx(score, abs=1e-5)
