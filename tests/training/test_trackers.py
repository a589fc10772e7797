"""Trackers: what they are told, and which are refused."""

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking

from promptreid.errors import MissingExtraError
from promptreid.training.log import RunLog
from promptreid.training.processes import make_accelerator
from promptreid.training.trackers import check_trackers


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
        log.write_step(step=step + 1, losses={"total": 2.0 * step + 2}, seconds=0.5)
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


def test_trackers_unknown_or_not_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected some of aim, "):
        check_trackers(["tensorbord"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install tensorboard \(or "promptreid\[train\]"\)'):
        check_trackers(["tensorboard"])
    with pytest.raises(MissingExtraError, match="pip install wandb; or leave it out"):
        check_trackers(["wandb"])
