"""The evidence on kinds of prompts in small: equal tuning, runs that resume, costs, and the table of the page."""

import importlib
import json
import sys

import pytest

MARKS = "before\n<!-- prompt kinds -->\nold\n<!-- end -->\nafter\n"


@pytest.fixture
def kinds(monkeypatch):
    module = importlib.import_module("prompt_kinds")
    arms = dict(module.plan.ARMS)
    monkeypatch.setattr(module, "BUDGET", module.plan.Budget((8, 3, 4), 2, (96, 48), 8, 2, 2, 2))
    monkeypatch.setattr(module, "COST_STEPS", 1)
    monkeypatch.setattr(module, "in_own_process", lambda work, *arguments: work(*arguments))
    yield module
    module.plan.ARMS.clear()
    module.plan.ARMS.update(arms)


@pytest.fixture
def made_up(kinds, monkeypatch):
    """Runs end at once: scores are best at the middle rates; notes what was done."""
    done = []

    def perform(run, results, scratch, *, device="cpu", tuning=False):
        done.append((run.arm, run.seed, run.rates))
        score = 0.5 - abs(run.rates[1] - 3.2e-4) - abs(run.rates[0] - 5e-3) + 0.01 * run.seed
        metrics = {"rank1": score, "mAP": score / 2}
        result = {"run": kinds.runs.settings_of(run), "validation": metrics, "test": metrics}
        path = run.path(results, tuning=tuning)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        return result

    monkeypatch.setattr(kinds.runs, "perform", perform)
    return done


def test_kinds_are_those_of_the_configuration_and_the_kept_form(kinds):
    from promptreid.prompts.config import PROMPT_FORMS

    assert set(kinds.KINDS) == {*PROMPT_FORMS, "kept"}


def test_every_kind_is_tuned_with_as_many_runs_and_a_later_one_too(kinds, made_up, tmp_path):
    study = kinds.Study(tmp_path / "results", tmp_path / "scratch")
    study.tune(["independent", "prefix"])
    first = set(made_up)
    assert {seed for _, seed, _ in first} == {100}, "no reported run has the seed of tuning"
    study.tune(["independent", "prefix"])
    assert set(made_up) == first, "what is tuned is not tuned again"
    study.tune(["independent", "grouped"])
    counts = study.rates()["runs"]
    assert set(counts) == {
        f"{kind}_{part}" for kind in ("independent", "prefix", "grouped") for part in ("alone", "both")
    }
    assert set(counts.values()) == {5}
    assert study.rates()["rates"]["grouped_both"] == [5e-3, 3.2e-4]


def test_runs_are_planned_seed_by_seed_for_tuned_kinds(kinds, made_up, tmp_path):
    study = kinds.Study(tmp_path / "results", tmp_path / "scratch", seeds=2)
    with pytest.raises(SystemExit, match="tune first"):
        study.planned(["prefix"])
    study.tune(["prefix"])
    assert [(run.arm, run.seed) for run in study.planned(["prefix", "coupled"])] == [
        ("prefix_alone", 0), ("prefix_both", 0), ("prefix_alone", 1), ("prefix_both", 1)
    ]  # fmt: skip


def test_table_goes_between_the_marks_of_the_page(kinds, made_up, tmp_path, monkeypatch):
    page, output = tmp_path / "prompts.md", tmp_path / "results" / "summary.json"
    page.write_text(MARKS)
    arguments = ["--output", output, "--page", page, "--scratch", tmp_path / "s", "--seeds", 2]
    parts = ["--kinds", "kept", "--parts", "tune", "runs", "table"]
    monkeypatch.setattr(sys, "argv", ["prompt_kinds.py", *map(str, [*arguments, *parts])])
    kinds.main()
    text = page.read_text()
    # Seeds 0 and 1 give 0.50 and 0.51: mean 50.50, standard deviation 0.71; mAP is half of it.
    assert "| kept | – | – | – | 50.50 ± 0.71 | 25.25 ± 0.35 | 50.50 ± 0.71 | 25.25 ± 0.35 | 2 |" in text
    assert "| prefix | – | – | – | – | – | – | – | 0 |" in text
    assert "8 / 3 / 4 synthetic persons" in text
    assert text.startswith("before\n<!-- prompt kinds -->\n")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no marks"):
        kinds.main()


@pytest.mark.slow
def test_costs_are_measured_once_beside_independent_tokens(kinds, made_up, tmp_path):
    study = kinds.Study(tmp_path / "results", tmp_path / "scratch")
    study.measure_costs(["grouped"])
    path = tmp_path / "results" / "costs" / "grouped.json"
    found = json.loads(path.read_text())
    blocks, width = 4, 128
    cameras = len(kinds.KINDS["grouped"].groups)
    assert found["parameters"] % (4 * width) == 0
    assert found["parameters"] >= (cameras + 1) * 4 * width * min(blocks, 1)
    assert found["step_ratio"]["lowest"] == found["step_ratio"]["highest"] > 0
    assert found["peak_memory_mb"] > 50
    path.write_text("{}")
    study.measure_costs(["grouped"])
    assert path.read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prefix", "grouped"])
def test_a_toy_run_of_a_kind_trains_scores_and_is_read_back(kinds, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(kinds.runs, "draw_own_domain", lambda: importlib.import_module("measures").draw_own_domain(10))
    kinds.runs._home.cache_clear()
    study = kinds.Study(tmp_path / "results", tmp_path / "scratch", seeds=1)
    study.rates_file.parent.mkdir(parents=True)
    study.rates_file.write_text(json.dumps({"rates": {f"{kind}_both": [5e-3, 3.2e-4]}, "runs": {}, "grids": []}))
    study.run([kind])
    scores = study.summary()["kinds"][kind]["both"]
    assert (scores["seeds"], len(scores["rank1"])) == (1, 1)
    monkeypatch.setattr(kinds.runs, "train", lambda *_: pytest.fail("a run that is done is not done again"))
    study.run([kind])
    kinds.runs._home.cache_clear()
