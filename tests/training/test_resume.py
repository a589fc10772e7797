"""A run killed with SIGKILL and started again ends bit for bit as an uninterrupted one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file


def last_checkpoint(folder: Path) -> tuple[dict[str, bytes], dict[str, Any], list[dict[str, Any]]]:
    path = max((folder / "checkpoints").iterdir())
    tensors = {name: value.numpy().tobytes() for name, value in load_file(path / "state.safetensors").items()}
    state = json.loads((path / "state.json").read_text())
    log = [
        json.loads(line) for name in ("log.jsonl", "steps.jsonl") for line in (folder / name).read_text().splitlines()
    ]
    for entry in [*log, *state["position"]["history"], state["position"]["best"]]:
        del entry["seconds"]
    del state["digest"]  # it covers the seconds, too
    return tensors, state, log


def run_and_compare(start: Callable[..., str], folder: Path, *, kills: int, seed: int) -> None:
    printed = start("killed_run.py", folder, kills, seed)
    told, writing = printed.splitlines()
    assert told == f"whole=0 killed={kills} final=0", printed
    assert int(writing.removeprefix("while writing=")) >= 1
    whole, killed = last_checkpoint(folder / "whole"), last_checkpoint(folder / "killed")
    assert whole == killed
    assert len(killed[2]) == 6 + 18
    assert not list((folder / "killed" / "checkpoints").glob("unfinished-*"))
    for name in ("whole", "killed"):
        assert len(list((folder / name / "checkpoints").iterdir())) == 1
        assert not (folder / name / "best.safetensors").exists()  # the checkpoint holds them


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_trainer_killed_three_times_ends_with_the_same_bits(start: Callable[..., str], tmp_path: Path) -> None:
    run_and_compare(start, tmp_path, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_trainer_killed_again_and_again_ends_with_the_same_bits(
    start: Callable[..., str], tmp_path: Path, seed: int
) -> None:
    run_and_compare(start, tmp_path, kills=4, seed=seed)
