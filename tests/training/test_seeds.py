"""Runs under several seeds: mean and spread, and interrupted ones are resumed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from promptreid.errors import CheckpointError
from promptreid.training.seeds import SeedScores, run_seeds


def score(seed: int, folder: Path) -> dict[str, float]:
    return {"rank1": 0.5 + 0.1 * seed, "mAP": 0.25}


def test_run_seeds_mean_and_std_match_hand_worked_values(tmp_path: Path) -> None:
    # 0.5, 0.6, 0.8: mean 1.9 / 3 = 0.633333; deviations -0.133333, -0.033333, 0.166667, squares 0.017778, 0.001111,
    # 0.027778, sum 0.046667, over 2 0.023333, root 0.152753.
    found = run_seeds(score, [0, 1, 3], output_dir=tmp_path)
    assert found.mean == pytest.approx({"rank1": 0.633333, "mAP": 0.25}, abs=1e-6)
    assert found.std == pytest.approx({"rank1": 0.152753, "mAP": 0.0}, abs=1e-6)
    assert found.table() == "rank1     63.33 ± 15.28  (3 seeds)\nmAP       25.00 ± 0.00  (3 seeds)"
    written = json.loads((tmp_path / "seeds.json").read_text())
    assert written["seeds"]["3"] == {"rank1": 0.8, "mAP": 0.25}
    assert written["std"]["rank1"] == pytest.approx(0.152753, abs=1e-6)


def test_run_seeds_broken_off_goes_on_without_running_a_seed_twice(tmp_path: Path) -> None:
    ran: list[int] = []

    def train(seed: int, folder: Path) -> dict[str, float]:
        assert folder == tmp_path / f"seed-{seed}"
        ran.append(seed)
        if ran == [0, 1]:
            raise KeyboardInterrupt
        return score(seed, folder)

    with pytest.raises(KeyboardInterrupt):
        run_seeds(train, [0, 1, 2], output_dir=tmp_path)
    found = run_seeds(train, [0, 1, 2], output_dir=tmp_path)
    assert ran == [0, 1, 1, 2]
    assert found == run_seeds(score, [0, 1, 2], output_dir=tmp_path / "whole")


def test_seed_scores_of_one_seed_show_no_spread(tmp_path: Path) -> None:
    found = run_seeds(score, [1], output_dir=tmp_path)
    assert math.isnan(found.std["rank1"])
    assert "± nan  (1 seed)" in found.table()
    assert json.loads((tmp_path / "seeds.json").read_text())["std"]["rank1"] is None


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_run_seeds_wrong_seeds_are_refused(tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="expected at least one, each once and at least 0"):
        run_seeds(score, seeds, output_dir=tmp_path)


def test_run_seeds_takes_numbers_of_numpy_and_refuses_others(tmp_path: Path) -> None:
    found = run_seeds(score, np.arange(2), output_dir=tmp_path)  # pyright: ignore[reportArgumentType]
    assert [type(seed) for seed in found.scores] == [int, int]
    assert found == run_seeds(score, [0, 1], output_dir=tmp_path)
    with pytest.raises(TypeError, match=r"seeds is 1.0, expected a whole number"):
        run_seeds(score, [0, 1.0], output_dir=tmp_path / "other")  # pyright: ignore[reportArgumentType]


def test_run_seeds_unusable_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seed 0 returned \{\}"):
        run_seeds(lambda seed, folder: {}, [0], output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"seed 0 returned \{'mAP': nan\}"):
        run_seeds(lambda seed, folder: {"mAP": math.nan}, [0], output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"seed 1 has the scores \['b1'\], seed 0 has \['b0'\]"):
        run_seeds(lambda seed, folder: {f"b{seed}": 1.0}, [0, 1], output_dir=tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"mAP": "high"}'])
def test_run_seeds_damaged_scores_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "scores.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"seed-0.scores\.json: .*delete it to run this seed again"):
        run_seeds(score, [0], output_dir=tmp_path)


def test_seed_scores_are_equal_by_what_they_hold() -> None:
    assert SeedScores({0: {"a": 1.0}}) == SeedScores({0: {"a": 1.0}})
