"""The study's commands from end to end, with runs made up in an instant."""

import json
import sys

import pytest

import full
import plan
import runs
import small
import speed
import tune


@pytest.fixture
def made_up(monkeypatch):
    """Lets runs end at once: scores are best at the middle rates, and `pd` is better than the rest."""
    found = speed.Speed(dict.fromkeys(speed.KINDS, 0.4), 0.002, 0.003)
    done = []

    def perform(run, results, scratch, *, device="cpu", tuning=False):
        done.append(run)
        path = run.path(results, tuning=tuning)
        path.parent.mkdir(parents=True, exist_ok=True)
        score = (0.5 if run.arm == "pd" else 0.4) - abs(run.rates[1] - 3.2e-4) - abs(run.rates[0] - 5e-3)
        metrics = {"rank1": score, "rank5": score, "rank10": score, "mAP": score, "mINP": score}
        result = {
            "run": runs.settings_of(run),
            "seconds": 1.0,
            "validation": metrics,
            "test": {**metrics, "image_to_text": metrics},
            "rank1_by_person": {"1": score},
            "made_with": {},
        }
        path.write_text(json.dumps(result))
        return result

    for module in (tune, speed):
        monkeypatch.setattr(module, "perform", perform)
        monkeypatch.setattr(module, "measure_speed", lambda *_, **__: found)
    return done


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a script's `main` with arguments and returns what it printed."""

    def command(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return command


@pytest.fixture
def rates(monkeypatch, tmp_path):
    """Where the rates are written instead."""
    path = tmp_path / "rates.json"
    monkeypatch.setattr(tune, "RATES", path)
    for module in (tune, small, full):
        monkeypatch.setattr(module, "read_rates", lambda: plan.read_rates(path))
    return path


def test_tune_then_study_then_the_whole_of_it(command, made_up, rates, tmp_path):
    output = command(tune, "--results", tmp_path / "tuning")
    assert "tuning direct, pd, joint: 5 runs each, about" in output
    found = json.loads(rates.read_text())
    assert found["rates"] == {arm: [5e-3, 3.2e-4] for arm in ("direct", "pd", "joint")}
    assert found["runs"] == {"direct": 5, "pd": 5, "joint": 5}
    command(tune, "--arms", "pd", "stage_one", "--results", tmp_path / "tuning")
    assert list(json.loads(rates.read_text())["rates"]) == ["direct", "pd", "joint", "stage_one"]
    before = rates.read_text()
    assert "all of these arms are tuned; delete" in command(tune, "--results", tmp_path / "tuning")
    assert rates.read_text() == before

    made_up.clear()
    output = command(small, "--results", tmp_path / "small")
    assert "small study: 0 runs done, 20 to do; about" in output
    assert "| `pd` | 5 | +10.00 ± 0.00 | +10.00 to +10.00 | better |" in output
    assert len(made_up) == 20
    made_up.clear()
    assert "all 20 runs are done" in command(small, "--results", tmp_path / "small")
    assert not made_up

    output = command(full, "--parts", "main", "gap", "ablations", "--results", tmp_path / "small")
    assert "main: 20 of 70 runs are left out, as their arms' rates were not tuned" in output
    assert "main: 20 runs done, 30 to do" in output  # those of the small study count
    assert "gap: 0 runs done, 40 to do" in output
    assert "ablations: all 0 runs are done" in output
