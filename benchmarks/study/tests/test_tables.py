"""Tables and the page, from results made up for the purpose."""

import dataclasses
import json
from pathlib import Path

import pytest

import comparison
import page
import plan
import runs
import small
import tables

ROOT = Path(__file__).parents[3]
RATES = {"seed": 100, "costs": [0.8, 1.1]}


def made_up(run, rank1):
    """A result as `perform` writes it, in which every person is found with the same chance."""
    scores = {"rank1": rank1, "rank5": 0.8, "rank10": 0.9, "mAP": 0.5, "mINP": 0.4}
    return {
        "run": runs.settings_of(run),
        "seconds": 60.0,
        "history": [],
        "validation": scores,
        "test": {**scores, "image_to_text": scores},
        "rank1_by_person": {"1": rank1, "2": rank1},
        "rank1_by_group": {"build": {"slim": {"rank1": rank1, "queries": 40}}},
        "measures": {"own_domain_rank1": 0.5, "image_mmd": 0.1, "text_mmd": 0.2, "modality_gap": 0.3},
        "made_with": {"machine": "x, 2 threads", "torch": "2", "open_clip": "3", "date": "2026-01-01"},
    }


@pytest.fixture
def write(tmp_path):
    """Writes made-up results for runs; Rank-1 is that of the arm, a little more for every seed."""

    def write(runs_planned, rank1):
        for run in runs_planned:
            path = run.path(tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made_up(run, rank1[run.arm] + 0.02 * run.seed)))
        return tmp_path

    return write


def rates(*arms):
    return {**RATES, "rates": {arm: [5e-3, 3.2e-4] for arm in arms}, "runs": dict.fromkeys(arms, 5)}


def test_scores_and_differences_by_hand(write):
    planned = plan.plan(["direct", "pd"], [0, 1], rates("direct", "pd"))
    results = comparison.gather(planned, write(planned, {"direct": 0.5, "pd": 0.6}))
    # 50 and 52: mean 51, standard deviation sqrt(2).
    assert "| `direct` | 2 | 51.00 ± 1.41 | 80.00 ± 0.00 |" in tables.score_table(results, ["direct", "joint"])
    assert "joint" not in tables.score_table(results, ["direct", "joint"])
    assert "| `pd` | 2 | +10.00 ± 0.00 | +10.00 to +10.00 | better |" in tables.difference_table(
        results, ["pd"], "direct"
    )
    assert "| build | slim | 40 | 51.00 ± 1.41 |" in tables.group_table(results, ["direct"])
    assert "| `pd` | 50.00 ± 0.00 | 0.1000 ± 0.0000 | 0.2000 ± 0.0000 | 0.300 ± 0.000 |" in tables.measure_table(
        results, ["pd", "joint"]
    )
    response = tables.response_table({"gap 0": {}, "gap 1": results}, "pd", "direct")
    assert "| gap 0 |" not in response
    assert response.endswith("\n\nNot run: gap 0.")
    assert not tables.response_table({"gap 0": {}}, "pd", "direct")
    assert "| gap 1 | 51.00 ± 1.41 | 61.00 ± 1.41 | 2 | +10.00 ± 0.00 |" in response


def test_a_difference_that_may_be_nothing_is_called_so():
    difference = comparison.Difference(0.01, 0.02, -0.01, 0.03, 5)
    assert tables.difference_cells(difference)[-1] == "no difference found"


def test_results_of_two_conditions_are_kept_apart(tmp_path):
    planned = plan.plan(["pd"], [0], rates("pd")) + plan.plan(["pd"], [0], rates("pd"), gap=0.0)
    with pytest.raises(ValueError, match="must not stand in one table"):
        comparison.gather(planned, tmp_path)


def test_results_from_different_bases_are_kept_apart(write):
    planned = plan.plan(["pd"], [0, 1], rates("pd"), base="further")
    folder = write(planned, {"pd": 0.5})
    path = planned[1].path(folder)
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"made_with": result["made_with"] | {"base_sha256": "ab"}}))
    with pytest.raises(ValueError, match=r"results from different bases .* must not stand in one table"):
        comparison.gather(planned, folder)


def test_a_change_of_the_difference_is_paired_by_hand(write):
    usual = plan.plan(["direct", "pd"], [0, 1], rates("direct", "pd"))
    long = plan.plan(["direct", "pd"], [0, 1], rates("direct", "pd"), budget=plan.LONG)
    named = {
        "usual": comparison.gather(usual, write(usual, {"direct": 0.5, "pd": 0.4})),
        "long": comparison.gather(long, write(long, {"direct": 0.6, "pd": 0.58})),
    }
    # -2 points instead of -10.
    assert "| long less usual | 2 | +8.00 ± 0.00 | +8.00 to +8.00 | better |" in tables.change_table(
        named, "pd", "direct"
    )
    assert tables.change_table({"usual": named["usual"], "long": {}}, "pd", "direct") == ""


def test_results_at_rates_tuned_since_are_refused(write):
    folder = write(plan.plan(["pd"], [0], rates("pd")), {"pd": 0.5})
    newer = plan.plan(["pd"], [0], {**RATES, "rates": {"pd": [1e-3, 1e-4]}})
    with pytest.raises(FileExistsError, match="is the result of another run"):
        comparison.gather(newer, folder)


def test_the_page_without_results_says_not_run(tmp_path):
    empty = page.Page(page.UNTUNED, tmp_path, tmp_path)
    assert (empty.text() + empty.appendix()).count("**Not run.**") == 11
    assert "- `main`: 0 of 70 runs done" in empty.text()
    assert "**not done yet.**" in empty.appendix()


def test_the_page_shows_every_part_that_has_results(write, tmp_path):
    tuned = rates(*(name for name in plan.ARMS if name != "zero_shot"))
    everything = [run for part in plan.parts(tuned).values() for run in part if run.seed < 2]
    folder = write(everything, dict.fromkeys(plan.ARMS, 0.3) | {"pd": 0.4})
    (tmp_path / "pictures").mkdir()
    built = page.Page(tuned, folder, tmp_path / "pictures")
    text = built.text() + built.appendix()
    assert "**Not run.**" not in text
    assert "| `pd` | 2 | +10.00 ± 0.00 | +10.00 to +10.00 | better |" in text  # against direct
    assert "| `pd_shallow` | 2 | −10.00 ± 0.00 | −10.00 to −10.00 | worse |" in text  # against pd, of another part
    assert "| less `direct_short` | seeds |" in text
    assert "| gap 0 |" in text
    assert "| 720 steps | 31.00 ± 1.41 | 41.00 ± 1.41 | 2 | +10.00 ± 0.00 |" in text
    assert "| pretrained further | 31.00 ± 1.41 | 41.00 ± 1.41 | 2 | +10.00 ± 0.00 |" in text
    assert "| share of the training identities 0.01 |" in text
    assert "- `main`: 14 of 70 runs done" in text
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {f"evidence_{part}.png" for part in ("main", "controls", "gap", "low_data", "ablations")}
    assert all(f"(pictures/{name})" in text for name in names)


def test_the_committed_pages_are_those_of_the_committed_results(tmp_path):
    tuned = plan.read_rates() if plan.RATES.is_file() else page.UNTUNED
    built = page.Page(tuned, plan.RESULTS, tmp_path)
    for name, text in (("evidence", built.text()), ("evidence_tables", built.appendix())):
        committed = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert committed == text, "run python benchmarks/study/page.py"


def test_a_study_done_again_is_compared_with_the_committed_one(write, tmp_path):
    planned = plan.plan(["pd"], [0, 1], rates("pd"))
    folder = write(planned, {"pd": 0.5})
    assert "2 of 2 runs have a committed result; Rank-1 differs by at most 0.00 points, 2 are equal" in (
        small.compare_with(planned, folder, folder)
    )
    assert small.compare_with(planned, folder, tmp_path / "none").startswith("There are no committed results")
    other = [dataclasses.replace(run, rates=(1.0, 1.0)) for run in planned]
    own = tmp_path / "own"
    for run in other:
        run.path(own).parent.mkdir(parents=True, exist_ok=True)
        result = json.loads(run.path(folder).read_text()) | {"run": runs.settings_of(run)}
        run.path(own).write_text(json.dumps(result))
    assert small.compare_with(other, own, folder).startswith("There are no committed results")
