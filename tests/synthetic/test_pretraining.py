"""Pretraining of the small base resumes within a round, and ends as it would have ended."""

import json
import sys

import pretrain_tiny
import pytest
import torch

from promptreid.towers.tiny import TINY_FOLDER

SMALL = ["--pairs", "24", "--steps", "3", "2", "--batch-size", "8", "--checkpoint-every", "1"]


@pytest.fixture
def pretrain(monkeypatch):
    """Runs the command, and interrupts it at one of its looks at the held-out pairs if told so."""
    monkeypatch.setattr(pretrain_tiny, "HELD_OUT", 12)
    held_out, rank1 = pretrain_tiny.HeldOut.__init__, pretrain_tiny.HeldOut.rank1
    monkeypatch.setattr(pretrain_tiny.HeldOut, "__init__", lambda self, device: held_out(self, device, 12))
    looks = []

    def pretrain(output, *, stop_at=None, words=SMALL):
        looks.clear()

        def counted(self, clip):
            looks.append(1)
            if len(looks) == stop_at:
                raise KeyboardInterrupt
            return rank1(self, clip)

        monkeypatch.setattr(pretrain_tiny.HeldOut, "rank1", counted)
        monkeypatch.setattr(sys, "argv", ["pretrain_tiny.py", *words, "--output", str(output)])
        pretrain_tiny.main()
        return json.loads((output / "training.json").read_text()), len(looks)

    return pretrain


@pytest.mark.timeout(240)
def test_pretraining_interrupted_in_either_round_resumes_and_ends_with_the_same_weights(pretrain, tmp_path):
    whole, looks = pretrain(tmp_path / "whole")
    assert looks == 7
    assert [step for step, _ in whole["rounds"][0]["validation_curve"]] == [0, 1, 2, 3]
    for stop_at, name in ((4, "first"), (7, "second")):
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / name, stop_at=stop_at)
        resumed, looks = pretrain(tmp_path / name)
        assert looks == 8 - stop_at  # what was done is not done again
        assert resumed["weights_sha256"] == whole["weights_sha256"]
        for one, other in zip(resumed["rounds"], whole["rounds"], strict=True):
            assert (one["loss_curve"], one["validation_curve"]) == (other["loss_curve"], other["validation_curve"])
        assert not (tmp_path / name / "checkpoints").exists()


def test_other_options_do_not_resume_a_round(pretrain, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, stop_at=3)
    with pytest.raises(SystemExit, match="give the options it was started with"):
        pretrain(tmp_path, words=[*SMALL, "--learning-rate", "0.01"])


def test_pairs_drawn_by_several_processes_are_the_same(monkeypatch):
    images, captions = pretrain_tiny.draw_pairs(7, 5, pretrain_tiny.VARIED_WORLD)
    monkeypatch.setattr(pretrain_tiny, "DRAWN_AT_ONCE", 3)
    again, same = pretrain_tiny.draw_pairs(7, 5, pretrain_tiny.VARIED_WORLD)
    assert images.shape == (7, 3, 64, 64)
    assert torch.equal(images, again)
    assert captions == same


def test_further_starts_from_weights_that_ship_and_says_from_which(pretrain, tmp_path, capsys):
    words = ["--further", "1", "--start", "generated", "--version", "9", "--pairs", "24", "--batch-size", "8"]
    record, looks = pretrain(tmp_path / "further", words=words)
    assert (record["version"], record["settings"]["start"], looks) == (9, "generated", 2)
    assert record["rounds"][0]["device"] == "cpu"
    for wrong, said in (
        (["--further", "1", "--pairs", "24", "--batch-size", "8"], "--seed 0 would draw the pairs that generated_v3"),
        ([*words[:1], "0", *words[2:]], "--further is 0, expected at least 1 step"),
    ):
        with pytest.raises(SystemExit):
            pretrain(tmp_path / "wrong", words=wrong)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretrain(TINY_FOLDER, words=words)
    assert "the folder of what ships" in capsys.readouterr().err
