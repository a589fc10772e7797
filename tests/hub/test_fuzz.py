"""Damaged and hostile folders are refused in our own words, or load to exactly what was saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def check_fuzz(folder: Path, *, cases: int, seed: int, timeout: int) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzz_files.py")), str(folder), str(cases), str(seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report.pop("faults") == []
    megabytes, seconds = report.pop("most_megabytes"), report.pop("slowest_seconds")
    assert sum(report.values()) == cases
    assert report["CheckpointError"] > cases // 4
    assert report["CorruptFileError"] > cases // 10
    assert megabytes is None or megabytes <= 100
    assert seconds < 30


def test_a_hundred_damaged_folders(tmp_path):
    check_fuzz(tmp_path / "f", cases=100, seed=0, timeout=250)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_damaged_folders(tmp_path):
    check_fuzz(tmp_path / "f", cases=10_000, seed=1, timeout=1700)
