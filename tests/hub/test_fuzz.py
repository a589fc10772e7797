"""Damaged and hostile folders are refused in our own words, or load to exactly what was saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def check_fuzz(fork: Callable[..., Any], folder: Path, *, cases: int, seed: int) -> None:
    process = fork(Path(__file__).with_name("fuzz_files.py"), folder, cases, seed)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    report = json.loads(printed)
    assert report.pop("faults") == []
    megabytes, seconds = report.pop("most_megabytes"), report.pop("slowest_seconds")
    assert sum(report.values()) == cases
    assert report["CheckpointError"] > cases // 4
    assert report["CorruptFileError"] > cases // 10
    assert megabytes is None or megabytes <= 100
    assert seconds < 30


def test_a_hundred_damaged_folders(fork, tmp_path):
    check_fuzz(fork, tmp_path / "f", cases=100, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_damaged_folders(fork, tmp_path):
    check_fuzz(fork, tmp_path / "f", cases=10_000, seed=1)
