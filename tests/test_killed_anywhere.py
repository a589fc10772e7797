"""Killed before any change to its folder and run again, a program ends whole and leaves what an unkilled one leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def kill_and_compare(name: str, folder: Path, *, every: int, least: int) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_anywhere.py")), name, str(folder), str(every)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, *kills = map(json.loads, done.stdout.splitlines())
    assert whole["faults"] == []
    assert whole["changes"] >= least
    assert len(kills) >= whole["changes"] // every
    assert [kill for kill in kills if kill["faults"] or kill["left"]] == []


def test_cache_killed_anywhere_is_whole_the_next_time(tmp_path: Path) -> None:
    kill_and_compare("cache", tmp_path, every=1, least=8)


def test_run_killed_in_some_places_keeps_the_weights_that_its_log_names(tmp_path: Path) -> None:
    kill_and_compare("train", tmp_path, every=40, least=100)


@pytest.mark.slow
def test_run_killed_anywhere_keeps_the_weights_that_its_log_names(tmp_path: Path) -> None:
    kill_and_compare("train", tmp_path, every=1, least=100)
