"""What every released version saved loads for ever, and scores as it did."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from promptreid import __version__, load_prompts

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
    assert {path.name for path in (KEPT / __version__).iterdir()} == {"prompts", "tuned"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_checkpoint_loads_and_scores_as_it_did(folder, tool):
    # Its architecture is none of open_clip's, which are all too large to keep.
    model = load_prompts(folder, trust_base=folder.name == "tuned")
    expected = json.loads((folder / "expected.json").read_text())
    assert {name: list(value.shape) for name, value in model.prompt_state_dict().items()} == expected["shapes"]
    torch.testing.assert_close(torch.tensor(tool.scores(model)), torch.tensor(expected["scores"]), atol=1e-5, rtol=0)
