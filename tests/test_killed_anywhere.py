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


@pytest.mark.parametrize(("name", "every", "least"), [("cache", 6, 20), ("train", 60, 150)])
def test_program_killed_in_some_places_ends_whole(name: str, every: int, least: int, tmp_path: Path) -> None:
    kill_and_compare(name, tmp_path, every=every, least=least)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every", "least"), [("cache", 1, 20), ("train", 6, 150)])
def test_program_killed_anywhere_ends_whole(name: str, every: int, least: int, tmp_path: Path) -> None:
    kill_and_compare(name, tmp_path, every=every, least=least)
