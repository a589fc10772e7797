"""The checks for a GPU: parts, their record, and what `--only` keeps."""

import json
import sys

import pytest

import gpu


@pytest.fixture
def run_parts(monkeypatch, tmp_path):
    """Runs `gpu.py` with two parts of one line each, and returns the record."""

    def run(*words):
        parts = [gpu.Part("first", ("-c", "print(1)"), 60), gpu.Part("second", ("-c", "raise SystemExit(3)"), 60)]
        monkeypatch.setattr(gpu, "parts", lambda *_: parts)
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--output", str(tmp_path), *words])
        gpu.main()
        return json.loads((tmp_path / "gpu.json").read_text())["parts"]

    return run


def test_a_part_records_how_it_ended_and_where(run_parts):
    parts = run_parts()
    assert {name: part["ended"] for name, part in parts.items()} == {"first": 0, "second": 3}
    assert all({"machine", "versions", "date", "settings"} <= part.keys() for part in parts.values())


def test_time_already_spent_counts(run_parts):
    parts = run_parts("--minutes", "1", "--spent", "60")
    assert {part["ended"] for part in parts.values()} == {"not begun, as the time was up"}


def test_only_keeps_the_results_of_the_other_parts(run_parts, tmp_path):
    run_parts()
    (tmp_path / "gpu.json").write_text(json.dumps({"parts": {"first": {"ended": "before"}}}))
    parts = run_parts("--only", "second")
    assert parts["first"] == {"ended": "before"}
    assert parts["second"]["ended"] == 3


def test_only_refuses_a_part_that_is_none(run_parts, capsys):
    with pytest.raises(SystemExit):
        run_parts("--only", "third")
    assert "--only third: the parts are first, second" in capsys.readouterr().err
