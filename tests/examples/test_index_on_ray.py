"""The example on Ray fills a store, and resumes; where Ray is installed, which is no dependency."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from promptreid.retrieval.stored_gallery import StoredGallery
from promptreid.synthetic import write_generated

pytest.importorskip("ray")
pytest.importorskip("lancedb")
pytestmark = [pytest.mark.store, pytest.mark.slow]

EXAMPLE = Path(__file__).parents[2] / "examples" / "index_on_ray.py"


def test_example_fills_a_store_and_resumes(tmp_path):
    crops = write_generated(tmp_path / "drawn", num_identities=(6, 2, 2), seed=3, progress=False) / "imgs"
    count = len(list(crops.rglob("*.png"))) + len(list(crops.rglob("*.jpg")))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    for expected in ("added", "unchanged"):
        command = [sys.executable, str(EXAMPLE), str(crops), str(tmp_path / "store")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"'sum({expected})': {count}" in done.stdout
        assert f"{count} images are in" in done.stdout
    gallery = StoredGallery.load(tmp_path / "store")
    assert len(gallery) == count
    assert gallery.keys == ["folder"]
