"""Timing an epoch of CUHK-PEDES' size: its counts, and a try in small."""

import json
import sys
from pathlib import Path

import pytest

import full_size_epoch


def test_a_split_is_cut_to_the_published_counts_in_small():
    from promptreid.data.records import ImageRecord, ReIDSplit

    records = [ImageRecord(Path(f"{p}-{i}"), p, ("a", "b"), "train") for p in (1, 2, 3) for i in range(4)]
    # 10 images of 3 persons: four of the first, three of the others; 20 captions and one more.
    split = full_size_epoch.cut(ReIDSplit("train", records), 3, 10, 21)
    assert [record.person_id for record in split.records] == [1] * 4 + [2] * 3 + [3] * 3
    assert split.num_captions == 21
    assert split.records[0].captions == ("a", "b", "a")


def test_the_counts_are_those_of_cuhk_pedes():
    from promptreid.data.layouts import CUHK_PEDES

    published = {name: tuple(vars(count).values()) for name, count in CUHK_PEDES.published.splits.items()}
    assert published == full_size_epoch.COUNTS


def test_the_kept_file_is_for_the_whole_size_on_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["full_size_epoch.py", "--share", "0.001", "--device", "cpu"])
    with pytest.raises(SystemExit):
        full_size_epoch.main()
    assert "give another --output for a try" in capsys.readouterr().err


@pytest.mark.slow
def test_a_try_of_the_timing_writes_seconds_of_every_stage(monkeypatch, tmp_path):
    arguments = (
        f"--share 0.0005 --device cpu --model promptreid-tiny --image-size 96 48 --output {tmp_path / 'dry.json'}"
    )
    monkeypatch.setattr(sys, "argv", ["full_size_epoch.py", *arguments.split(), "--batch-size", "8"])
    full_size_epoch.main()
    found = json.loads((tmp_path / "dry.json").read_text())
    stages = {"stage_one", "stage_two", "direct_fine_tuning", "evaluation", "building the cache"}
    assert set(found["seconds"]) == stages
    assert found["pairs"] == 36
