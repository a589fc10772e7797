"""Lines a step, and what a resumed run keeps of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from promptreid.training.log import RunLog
from promptreid.training.processes import make_accelerator


def write(log: RunLog, *steps: int, norm: float = 1.0) -> None:
    for step in steps:
        log.write_step(step=step, losses={"total": 2.0 * step}, seconds=0.5, gradient_norm=norm, learning_rate=0.1)


def read(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_run_log_writes_a_line_a_step_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", make_accelerator("cpu", "no"), step=0)
    write(log, 1, 2)
    assert read(tmp_path / "run") == [  # before it is closed: a kill loses no line
        {"step": step, "gradient_norm": 1.0, "learning_rate": 0.1, "losses": {"total": 2.0 * step}, "seconds": 0.5}
        for step in (1, 2)
    ]
    log.close()


def test_run_log_writes_null_for_what_json_has_no_number_for(tmp_path: Path) -> None:
    log = RunLog(tmp_path, make_accelerator("cpu", "no"), step=0)
    log.write_step(step=1, losses={"total": math.nan, "m": -math.inf}, seconds=0.5, gradient_norm=math.inf)
    log.close()
    line = (tmp_path / "steps.jsonl").read_text(encoding="utf-8")
    expected = {"step": 1, "gradient_norm": None, "losses": {"total": None, "m": None}, "seconds": 0.5}
    assert line == json.dumps(expected) + "\n"


@pytest.mark.parametrize("tail", ["", '{"step": 4, "los', "[]\n", "\x00\n"])
def test_run_log_resumed_cuts_off_what_is_done_again(tmp_path: Path, tail: str) -> None:
    log = RunLog(tmp_path, make_accelerator("cpu", "no"), step=0)
    write(log, 1, 2, 3)
    log.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write(tail)
    log = RunLog(tmp_path, make_accelerator("cpu", "no"), step=2)
    write(log, 3, 4)
    log.close()
    assert [entry["step"] for entry in read(tmp_path)] == [1, 2, 3, 4]


def test_run_log_one_damaged_line_costs_that_line_alone(tmp_path: Path) -> None:
    log = RunLog(tmp_path, make_accelerator("cpu", "no"), step=0)
    write(log, 1, 2, 3)
    log.close()
    lines = (tmp_path / "steps.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "steps.jsonl").write_text(lines[0] + lines[1][5:] + lines[2])
    RunLog(tmp_path, make_accelerator("cpu", "no"), step=3).close()
    assert [entry["step"] for entry in read(tmp_path)] == [1, 3]


def test_run_log_of_a_new_run_starts_empty(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text('{"step": 0}\n')
    RunLog(tmp_path, make_accelerator("cpu", "no"), step=0).close()
    assert read(tmp_path) == []


def test_run_log_number_that_json_does_not_know_is_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path, make_accelerator("cpu", "no"), step=0)
    write(log, 1, norm=float("inf"))
    log.close()
    assert read(tmp_path)[0]["gradient_norm"] is None


def test_run_log_tells_tensorboard_losses_and_scores(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, make_accelerator("cpu", "no", trackers=["tensorboard"], folder=tmp_path), step=0)
    write(log, 1, 2)
    log.write_epoch({"step": 2, "scores": {"mAP": 0.25}})
    log.close()
    events = EventAccumulator(str(tmp_path / "trackers" / "promptreid"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(1, 2.0), (2, 4.0)]
    assert [(event.step, event.value) for event in events.Scalars("scores/mAP")] == [(2, 0.25)]
    assert {"learning_rate", "gradient_norm"} <= set(events.Tags()["scalars"])
    assert "settings/text_summary" in events.Tags()["tensors"]
