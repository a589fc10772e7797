"""The page of the study at convergence and its appendix, from made-up results: sentences, tables and curves."""

import json

import pytest
from matplotlib.axes import Axes

import convergence
import convergence_blocks
import curves
from comparison import Difference
from convergence_appendix import ConvergenceAppendix
from convergence_page import ConvergencePage
from convergence_plan import COURSES, parts
from convergence_results import ConvergenceResults

STAGES = dict.fromkeys(("pd", "pd_no_id"), ("stage_one", "stage_two")) | {
    "joint": ("joint",), **dict.fromkeys(("prompts_4", "prompts_16", "prompts_64"), ("stage_one",)), "zero_shot": (),
}  # fmt: skip


def made_up(arm, run, rank1, epochs):
    metrics = {name: rank1 for name in ("rank1", "rank5", "rank10", "mAP", "mINP")}
    history = [
        {"stage": stage, "epoch": epoch, "steps": 1, "seconds": 1.0, "scores": {"mAP": rank1 * epoch / epochs}}
        for stage in STAGES.get(arm, ("direct_fine_tuning",))
        for epoch in range(1, epochs + 1)
    ]
    return {
        "run": convergence.settings_of(run),
        "seconds": 1.0,
        "history": history,
        "validation": metrics,
        "test": {**metrics, "image_to_text": metrics},
        "rank1_by_person": {str(person): rank1 + 0.01 * (person % 3) for person in range(20)},
        "made_with": convergence.made_with(),
    }


@pytest.fixture
def found(tmp_path):
    """Writes results and reads them back: from Rank-1 by arm and number of identities, and base if it is another."""

    def write(scores, *, base=None, epochs=3):
        rates = {"rates": dict.fromkeys(COURSES, (5e-3, 1e-3)), "runs": dict.fromkeys(COURSES, 5)}
        for runs in parts(rates, base=base).values():
            for run in runs:
                rank1 = scores.get((run.arm, run.identities, run.base)[: 2 if run.base == "shipped" else 3])
                if rank1 is not None:
                    path = run.path(tmp_path)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(made_up(run.arm, run, rank1, epochs)))
        return ConvergenceResults(rates, tmp_path)

    return write


def test_page_without_a_run_says_so_and_lists_every_part(found, tmp_path):
    text = ConvergencePage(found({}), tmp_path).text()
    assert "**Not finished.**" in text
    assert "- `primary_100`: 0 of 20 runs" in text
    assert "- `better_base`: 0 of 30 runs" in text
    assert "## How" not in text
    assert "No run has ended yet." in ConvergenceAppendix(found({}), tmp_path).text()


def test_page_words_each_outcome_as_the_protocol_does(found, tmp_path):
    scores = {("direct", 100): 0.3, ("pd", 100): 0.4, ("direct_more", 100): 0.4}
    scores |= {("direct", 400): 0.5, ("pd", 400): 0.45, ("direct_more", 400): 0.6}
    scores |= {("direct", 50): 0.2, ("pd", 50): 0.4}
    page = ConvergencePage(found(scores), tmp_path)
    answer = page.answer()
    assert "PD beats direct fine-tuning at 100 identities (+10.0 points, +10.0 to +10.0)" in answer
    assert "and is behind it at 400 identities (−5.0 points" in answer
    assert "direct fine-tuning is not significantly different from PD at 100 identities" in answer
    assert "and is ahead of it at 400 identities (+15.0 points" in answer  # of direct fine-tuning less PD
    assert "With fewer identities PD does better against direct fine-tuning (400 less 50: −25.0 points" in answer
    text = page.text()
    assert "(pictures/convergence.png)" in text
    assert (tmp_path / "convergence.png").is_file()
    assert "| 97.5 % |" in text
    assert "| 100 | 3 ± 0 | 3 ± 0 | 3 ± 0 | 3 ± 0 |" in text
    assert "No run reached its epoch limit" in text
    appendix = ConvergenceAppendix(page.found, tmp_path).text()
    assert "| `direct` | direct fine tuning | 3.0 ± 0.0 | 3.0 | 0 of 5 |" in appendix


def test_page_compares_with_a_better_base_by_seed_and_person(found, tmp_path):
    scores = {("direct", 100): 0.3, ("pd", 100): 0.3, ("zero_shot", 100): 0.1}
    scores |= {("direct", 100, "abcd1234"): 0.5, ("pd", 100, "abcd1234"): 0.6, ("zero_shot", 100, "abcd1234"): 0.4}
    results = found(scores, base="abcd1234")
    page, section = ConvergencePage(results, tmp_path), ConvergenceAppendix(results, tmp_path).better_base()
    assert "| 100 | 40.00 ± 0.00 | 50.00 ± 0.00 | 60.00 ± 0.00 | 5 |" in section
    assert "| +10.0 points, +10.0 to +10.0 |" in section
    assert "is not significantly different from direct fine-tuning at 100" in page.answer()
    assert "the difference is larger than that from version 2 at 100 identities (+10.0 points" in page.what_else()
    assert "- `better_base`: 15 of 30 runs" in page.text()


def test_page_with_half_of_the_primary_comparison_says_what_is_missing(found, tmp_path):
    answer = ConvergencePage(found({("direct", 100): 0.3, ("pd", 100): 0.3}), tmp_path).answer()
    assert "PD is not significantly different from direct fine-tuning at 100 identities" in answer
    assert "The comparison at 400 identities is not finished yet." in answer


def test_page_says_nothing_before_the_last_seed(found, tmp_path):
    results = found({("direct", 100): 0.3, ("pd", 100): 0.4, ("pd_no_id", 100): 0.4})
    for arm in ("pd", "pd_no_id"):
        (tmp_path / f"identities100/{arm}-seed4.json").unlink()
    page = ConvergencePage(ConvergenceResults(results.rates, tmp_path), tmp_path)
    assert "**Not finished.**" in page.answer()
    assert page.what_else() == ""
    assert "| 100 | `pd` | 40.00 ± 0.00 | `direct` | 30.00 ± 0.00 | 4 |" in page.text()


def test_further_questions_have_a_sentence_on_the_page_and_a_table_in_the_appendix(found, tmp_path):
    scores = {("direct", 100): 0.3, ("pd", 100): 0.4, ("joint", 100): 0.35}
    results = found(scores)
    page, appendix = ConvergencePage(results, tmp_path).text(), ConvergenceAppendix(results, tmp_path).text()
    assert "- PD is ahead of prompts and encoders trained at once at 100 identities (+5.0 points" in page
    assert "(convergence_tables.md#what-the-decoupling-adds)" in page
    assert "## What the decoupling adds\n" in appendix
    assert "| 100 | `pd` | 40.00 ± 0.00 | `joint` | 35.00 ± 0.00 | 5 | +5.00 ± 0.00 |" in appendix
    assert "How far prompts alone get" not in appendix
    results = found({**scores, ("prompts_4", 100): 0.1, ("zero_shot", 100): 0.05})
    text = ConvergenceAppendix(results, tmp_path).text()
    assert "| 100 | `prompts_4` | 10.00 ± 0.00 | `zero_shot` | 5.00 ± 0.00 | 5 |" in text
    assert "`prompts_64` |" not in text.split("## Arms")[0]


def test_both_columns_of_a_comparison_are_of_the_seeds_that_both_arms_have():
    def run(rank1):
        return {"test": {"rank1": rank1}, "rank1_by_person": {"1": rank1}}

    results = {"pd": {0: run(0.4), 1: run(0.5), 2: run(0.9)}, "joint": {0: run(0.3), 1: run(0.4), 3: run(0.1)}}
    table = convergence_blocks.comparison_table({100: results}, [("pd", "joint")], levels=False)
    assert "| 100 | `pd` | 45.00 ± 7.07 | `joint` | 35.00 ± 7.07 | 2 | +10.00 ± 0.00 |" in table


def test_page_says_nothing_of_a_better_base_before_its_last_seed(found, tmp_path):
    scores = {(arm, 100, *base): 0.3 for arm in ("zero_shot", "direct", "pd") for base in ((), ("abcd1234",))}
    assert "From a better base" in ConvergencePage(found(scores, base="abcd1234"), tmp_path).what_else()
    (tmp_path / "identities100-base-abcd1234/pd-seed4.json").unlink()
    again = ConvergenceResults(found({}, base="abcd1234").rates, tmp_path)
    assert "From a better base" not in ConvergencePage(again, tmp_path).what_else()


def test_pages_name_the_runs_that_their_most_epochs_cut_short(found, tmp_path):
    results = found({("direct", 100): 0.3, ("pd", 100): 0.4, ("joint", 100): 0.4}, epochs=60)
    page, appendix = ConvergencePage(results, tmp_path), ConvergenceAppendix(results, tmp_path)
    assert "`direct` 5 of 5 at 100 identities; `pd` 5 of 5 at 100 identities." in page.how()
    assert "`joint` 5 of 5 at 100 identities." in appendix.text().split("## What the decoupling adds")[1]
    assert "| `joint` | joint | 60.0 ± 0.0 | 60.0 | 5 of 5 |" in appendix.scores()


def test_a_difference_that_few_seeds_alone_do_not_find_is_named():
    persons = [str(number) for number in range(200)]

    def run(rank1):
        return {"rank1_by_person": dict.fromkeys(persons, rank1)}

    results = {"pd": {0: run(0.4), 1: run(0.31), 2: run(0.33)}, "joint": {n: run(0.3) for n in range(3)}}
    said = convergence_blocks.not_by_seeds_alone({100: results}, [("pd", "joint")])
    assert "does not confirm the difference of `pd` less `joint` at 100 identities." in said
    results["pd"] = {0: run(0.32), 1: run(0.325), 2: run(0.33)}
    assert convergence_blocks.not_by_seeds_alone({100: results}, [("pd", "joint")]) == ""


def test_curves_of_all_arms_begin_with_the_encoders(found, tmp_path, monkeypatch):
    drawn, plot = {}, Axes.plot

    def look(axes, x, y, **style):
        drawn[style["label"]] = (x, y)
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", look)
    ConvergencePage(found({("direct", 100): 0.3, ("pd", 100): 0.4}), tmp_path).curves()
    assert drawn["direct"][0] == [1, 2, 3]
    assert drawn["pd"][0] == [-3, -2, -1, 1, 2, 3]
    assert drawn["pd"][1] == pytest.approx([40 * epoch / 3 for epoch in (1, 2, 3, 1, 2, 3)])


def test_curves_of_every_arm_that_was_run_are_in_the_appendix(found, tmp_path):
    scores = {(arm, 100): 0.3 for arm in COURSES} | {("pd", 100, "abcd1234"): 0.4, ("direct", 100, "abcd1234"): 0.4}
    section = ConvergenceAppendix(found(scores, base="abcd1234"), tmp_path).curves()
    for name in ("encoders", "prompts", "better_base"):
        assert f"(pictures/convergence_{name}.png)" in section
        assert (tmp_path / f"convergence_{name}.png").is_file()


def with_curves(*scores):
    histories = [
        [{"stage": "last", "epoch": n, "scores": {"mAP": mAP}} for n, mAP in enumerate(one, 1)] for one in scores
    ]
    return {seed: {"history": history} for seed, history in enumerate(histories)}


def test_lead_by_epoch_compares_the_best_so_far_of_both_arms():
    results = {"pd": with_curves([0.3, 0.4], [0.4, 0.4, 0.6]), "direct": with_curves([0.2, 0.5, 0.1], [0.3, 0.5])}
    leads = curves.lead_by_epoch(results, "pd", "direct")
    assert leads[1] == pytest.approx([0.1, 0.1])
    assert leads[2] == pytest.approx([-0.1, -0.1])
    assert leads[3] == leads[60] == pytest.approx([-0.1, 0.1])  # what came last is not the best
    assert (
        curves.lead_by_epoch({**results, "pd": {0: {"history": [{"stage": "last", "epoch": 1}]}}}, "pd", "direct") == {}
    )


def test_lead_section_names_who_leads_where():
    direct = with_curves([0.2, 0.5], [0.3, 0.59])
    few = {"pd": with_curves([0.3, 0.4], [0.4, 0.5]), "direct": direct}
    many = {"pd": with_curves([0.1, 0.5], [0.2, 0.58]), "direct": direct}
    one = {"pd": with_curves([0.1]), "direct": with_curves([0.2])}
    text = curves.lead_section({50: few, 100: few, 200: one, 400: many}, "pd", "direct")
    first, third, last = text.split("\n")[0].split("; ")
    assert (
        first
        == "After 1 epoch of the encoders `pd` leads at 50 and 100 identities and `direct` leads at 400 identities"
    )
    assert third == "after 3 epochs of the encoders `direct` leads at 50 and 100 identities"
    assert last == "after 60 epochs of the encoders `direct` leads at 50 and 100 identities."
    assert "| 50 | 2 | **+10.0 ± 0.0** | **−9.5 ± 0.7** |" in text
    assert "| 200 | 1 | −10.0 ± 0.0 |" in text
    assert "| 400 | 2 | **−10.0 ± 0.0** | −0.5 ± 0.7 |" in text
    nowhere = {"pd": with_curves([0.1], [0.2]), "direct": with_curves([0.2], [0.1])}
    assert "no difference is found at any number of identities" in curves.lead_section({50: nowhere}, "pd", "direct")
    assert curves.lead_section({}, "pd", "direct") == ""


def test_leads_of_a_comparison_that_is_not_complete_are_left_out(found, tmp_path):
    results = found({("direct", 100): 0.3, ("pd", 100): 0.4, ("direct", 50): 0.3, ("pd", 50): 0.4})
    (tmp_path / "identities100/pd-seed4.json").unlink()
    lead = ConvergenceAppendix(ConvergenceResults(results.rates, tmp_path), tmp_path).lead()
    assert "leads at 50 identities" in lead
    assert "| 100 |" not in lead


def test_points_have_a_true_minus():
    assert convergence_blocks.points(Difference(-0.01, 0, -0.02, 0, 3)) == "−1.0 points, −2.0 to +0.0"
