"""Generator and base are what they were when the study began; a change is a new version."""

import hashlib
import json
from pathlib import Path

import numpy as np
import PIL
import pytest

from promptreid.towers.tiny import TINY_FOLDER, TINY_TAG, TINY_WEIGHTS

ROOT = Path(__file__).parents[2]
FROZEN = json.loads((Path(__file__).parent / "frozen.json").read_text(encoding="utf-8"))
ADVICE = "raise the version, run tools/freeze_generated.py and say so in CHANGELOG.md"


@pytest.fixture(scope="module")
def tool():
    import freeze_generated

    return freeze_generated


def test_generator_draws_what_was_frozen(tool) -> None:
    found = {"version": tool.GENERATOR_VERSION, **tool.generator_hashes()}
    wanted = dict(FROZEN["generator"])
    if {"numpy": np.__version__, "pillow": PIL.__version__} != FROZEN["drawn_with"]:
        # Another Pillow may draw and compress a little differently; what is drawn and said stays.
        for name in ("street_pictures", "web_pictures"):
            wanted[name] = found[name]
    assert found == wanted, ADVICE


def test_base_is_what_was_frozen(tool) -> None:
    assert tool.base_hashes() == {key: value for key, value in FROZEN["base"].items() if key != "version"}, ADVICE


@pytest.mark.parametrize(
    ("tag", "name", "version"),
    [("generated", "training.json", 2), (TINY_TAG, "training-v3.json", FROZEN["base"]["version"])],
)
def test_training_record_is_that_of_the_weights(tag: str, name: str, version: int) -> None:
    record = json.loads((TINY_FOLDER / name).read_text(encoding="utf-8"))
    weights = TINY_FOLDER / TINY_WEIGHTS[tag]
    assert record["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["version"] == version
    assert weights.stat().st_size < 25e6
    assert sum(done["seconds"] for done in record["rounds"]) < 60 * 60
    assert all(done["loss_curve"][-1][1] < done["loss_curve"][0][1] for done in record["rounds"])


def test_version_is_named_in_changelog_and_docs() -> None:
    generator, base = FROZEN["generator"]["version"], FROZEN["base"]["version"]
    for page in ("CHANGELOG.md", "docs/synthetic.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert f"version {generator} of the generator" in text, page
        assert f"version {base} of the base" in text, page
