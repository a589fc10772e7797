"""Lines a step, trackers, and what a resumed run keeps of them."""

import importlib.util
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking

from promptreid.errors import MissingExtraError
from promptreid.training.log import RunLog, check_trackers, epoch_line
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


class Recording:
    """What accelerate makes of a tracker's name, which keeps what it is given."""

    requires_logging_directory = False
    made: ClassVar[list["Recording"]] = []

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options, self.name = project, options, "recording"
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.made.append(self)

    def start(self) -> None: ...

    def finish(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_trackers_get_project_name_settings_and_numbers_and_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Recording)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType(name)])
    monkeypatch.setattr(Recording, "made", [])
    for step in (0, 1):
        accelerator = make_accelerator("cpu", "no", trackers=[name], folder=tmp_path)
        settings = {"seed": 0, "stages": [{"name": "stage_one"}]}
        log = RunLog(tmp_path / "first" / "stage_one", accelerator, step=step, project="thesis", settings=settings)
        write(log, step + 1)
        log.close()
    begun, resumed = Recording.made
    assert (begun.project, begun.options) == (resumed.project, resumed.options)
    assert begun.project == "thesis"
    assert begun.options[{"wandb": "name", "mlflow": "run_name"}[name]] == "first/stage_one"
    assert begun.settings == {"run": "first/stage_one", "seed": 0, "stages.0.name": "stage_one"}
    assert begun.logged[0][0] == 1
    assert begun.logged[0][1]["loss/total"] == 2.0


def test_a_tracker_that_does_not_start_is_named_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise KeyError("set MLFLOW_TRACKING_URI")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", refuse)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType("mlflow")])
    monkeypatch.setattr(refuse, "requires_logging_directory", False, raising=False)
    accelerator = make_accelerator("cpu", "no", trackers=["mlflow"], folder=tmp_path)
    with pytest.raises(RuntimeError, match=r"a tracker \(mlflow\) does not start: .*set MLFLOW_TRACKING_URI"):
        RunLog(tmp_path, accelerator, step=0)


def line(label: str = "stage one 2/3", **changes: Any) -> str:
    options: dict[str, Any] = {
        "name": "mAP", "chosen_by": "mAP", "is_best": False, "loss": 3.92, "left": "02:20", "scores": {"mAP": 0.1602},
        "before": {"mAP": 0.1531},
    }  # fmt: skip
    return epoch_line(label, **{**options, **changes})


def test_epoch_line_says_score_change_best_loss_and_time_left() -> None:
    assert line() == "stage one 2/3  val mAP 16.02 (+0.71)       loss 3.920  02:20 left"
    assert line(is_best=True) == "stage one 2/3  val mAP 16.02 (+0.71) best  loss 3.920  02:20 left"
    assert line(before={}) == "stage one 2/3  val mAP 16.02 (first)       loss 3.920  02:20 left"
    assert line(before={"mAP": 0.2}, chosen_by=None) == "stage one 2/3  mAP 16.02 (-3.98)       loss 3.920  02:20 left"
    assert line(name="energy", scores={"energy": -1234.5}).startswith("stage one 2/3  energy -1234 (first)")
    assert line(scores={}) == "stage one 2/3  loss 3.920  02:20 left"


def test_epoch_line_fits_80_columns_whatever_the_stage_is_called() -> None:
    widest = {"scores": {"mAP": 1.0}, "before": {"mAP": 0.0}, "is_best": True, "loss": 123.456, "left": "100:02:20"}
    assert len(line("a stage with a very long name that says everything 12/60", **widest)) == 80


def test_trackers_unknown_or_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected some of aim, "):
        check_trackers(["tensorbord"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install tensorboard \(or "promptreid\[train\]"\)'):
        check_trackers(["tensorboard"])
    with pytest.raises(MissingExtraError, match="pip install wandb; or leave it out"):
        check_trackers(["wandb"])
