"""The study at convergence on a handful of persons: stopping, results, tuning, and the sentences of its page."""

import argparse
import json
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from matplotlib.axes import Axes

import convergence
import convergence_page
import curves
from comparison import Difference
from convergence_plan import COURSES, TUNED_TOGETHER, Limits, LongRun, parts
from promptreid import PromptedCLIP, Stage, load_clip
from promptreid.losses.contrastive import ContrastiveLoss

TOY = Limits(persons=(8, 3, 4), images_per_identity=2, batch_size=8, most_epochs=2)
RUN = LongRun("pd", 0, (5e-3, 1e-3), identities=4, limits=TOY)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def test_a_run_writes_all_that_is_reported_and_is_not_done_twice(scratch, tmp_path, monkeypatch):
    result = convergence.perform(RUN, tmp_path, scratch)
    assert [(entry["stage"], entry["epoch"], entry["steps"]) for entry in result["history"]] == [
        ("stage_one", 1, 2), ("stage_one", 2, 2), ("stage_two", 1, 2), ("stage_two", 2, 2),
    ]  # fmt: skip
    assert all(set(entry["scores"]) >= {"rank1", "mAP"} for entry in result["history"])
    assert set(result) >= {"validation", "test", "rank1_by_person", "made_with", "run", "seconds"}
    assert (tmp_path / "identities4" / "pd-seed0.json").is_file()
    monkeypatch.setattr(convergence, "train_stage", lambda *_: pytest.fail("trained again"))
    assert convergence.perform(RUN, tmp_path, scratch)["test"] == result["test"]
    with pytest.raises(FileExistsError, match="is the result of another run"):
        convergence.perform(replace(RUN, rates=(1e-2, 1e-3)), tmp_path, scratch)


def test_the_same_run_again_gives_the_same_numbers(scratch, tmp_path):
    run = replace(RUN, arm="joint")
    one, other = (convergence.perform(run, tmp_path / name, scratch) for name in ("one", "other"))
    assert one["test"] == other["test"]
    assert [entry["losses"] for entry in one["history"]] == [entry["losses"] for entry in other["history"]]


def test_tuning_does_not_look_at_the_test_split(scratch, tmp_path):
    result = convergence.perform(replace(RUN, arm="direct"), tmp_path, scratch, tuning=True)
    assert "test" not in result
    assert "mAP" in result["validation"]
    assert [path.name for path in tmp_path.rglob("*.json")] == ["direct-seed0-rates0.005-0.001.json"]


def test_training_is_on_the_first_persons_and_the_test_is_the_same_for_every_number(scratch):
    few, more = (convergence.make_data(replace(RUN, identities=number), scratch) for number in (2, 5))
    assert (few.train.num_identities, more.train.num_identities) == (2, 5)
    assert set(few.train.labels) < set(more.train.labels)
    assert [record.path for record in few.test.records] == [record.path for record in more.test.records]


class Scripted:
    """A validation split whose mAP is read from a list."""

    def __init__(self, scores, seen):
        self.scores, self.seen = list(scores), seen

    def encode(self, model):
        self.seen.append(model.vision.prompts.tokens.detach().clone())
        return self.scores[len(self.seen) - 1]


class NotFinite(torch.nn.Module):
    def forward(self, images, texts, person_ids):
        return images.sum() * torch.inf


class Few:
    def __len__(self):
        return 4

    def epoch(self, batch_size, generator):
        images = torch.randn(4, 3, 96, 48, generator=generator)
        tokens = torch.zeros(4, 77, dtype=torch.int64)
        tokens[:, 0], tokens[:, 1], tokens[:, 2] = 49406, torch.arange(1, 5), 49407
        yield images, tokens, torch.arange(4)


@pytest.fixture
def stage():
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48)))
    losses = {"contrastive": ContrastiveLoss()}
    return Stage("s", model, trains=["prompts"], losses=losses, epochs=10, learning_rate=1e-2)


@pytest.fixture
def scripted(monkeypatch):
    def score(value):
        scores = argparse.Namespace(as_dict=lambda: {"mAP": value})
        return argparse.Namespace(text_to_image=scores)

    monkeypatch.setattr(convergence, "score", score)


@pytest.mark.parametrize(
    ("scores", "epochs", "best"),
    [
        ([0.1, 0.3, 0.2, 0.3, 0.29], 5, 2),  # three epochs without a better one; an equal one is no better
        ([0.1, 0.2, 0.15, 0.16, 0.3, 0.2, 0.2, 0.2], 8, 5),
        ([0.1 * number for number in range(1, 11)], 10, 10),
    ],
)
def test_a_stage_stops_after_its_patience_with_its_best_weights(stage, scripted, scores, epochs, best):
    seen = []
    run = replace(RUN, limits=replace(TOY, patience=3, batch_size=4))
    entries = convergence.train_stage(stage, Few(), Scripted(scores, seen), run, 0)
    assert len(entries) == epochs
    assert torch.equal(stage.model.vision.prompts.tokens, seen[best - 1])
    assert curves.best_epoch(entries) == best


def test_a_loss_that_is_not_finite_ends_the_stage_with_the_weights_before(stage, scripted):
    stage = Stage("s", stage.model, trains=["prompts"], losses={"not_finite": NotFinite()}, epochs=5)
    before = stage.model.vision.prompts.tokens.detach().clone()
    entries = convergence.train_stage(stage, Few(), Scripted([], []), RUN, 0)
    assert len(entries) == 1
    assert "scores" not in entries[0]
    assert torch.equal(stage.model.vision.prompts.tokens, before)


def test_parts_are_the_protocols():
    every = parts({"rates": dict.fromkeys(COURSES, (0.0, 0.0))}, base="abcd1234")
    assert {name: len(runs) for name, runs in every.items()} == {
        "primary_100": 20, "primary_400": 20, "few": 12, "middle": 12, "parts_100": 25, "parts_400": 15,
        "parts_few": 9, "parts_middle": 9, "better_base": 30,
    }  # fmt: skip
    assert {run.condition for run in every["better_base"]} == {
        "identities100-base-abcd1234", "identities400-base-abcd1234",
    }  # fmt: skip
    assert sorted(["zero_shot", *sum(TUNED_TOGETHER, ())]) == sorted(COURSES)
    assert [run.arm for run in parts({"rates": {"pd": (1.0, 1.0)}})["primary_100"]][:2] == ["zero_shot", "pd"]
    assert LongRun("pd", 0, (0.0, 0.0), identities=400).most_steps == (3000, 3000)


def test_hours_count_every_stage():
    seconds = {"stage_one": 1.0, "stage_two": 2.0, "direct": 3.0, "joint": 4.0}
    runs = [LongRun(arm, 0, (0.0, 0.0), identities=400) for arm in ("pd", "direct", "joint", "zero_shot")]
    assert convergence.most_hours(runs, seconds) == pytest.approx((3000 + 6000 + 9000 + 12000) / 3600)


@pytest.fixture
def in_this_process(monkeypatch):
    class Here:
        def submit(self, work, *arguments, **settings):
            future = Future()
            future.set_result(work(*arguments, **settings))
            return future

    @contextmanager
    def here(arguments):
        yield Here()

    monkeypatch.setattr(convergence, "side_by_side", here)


def folders(tmp_path, scratch):
    return [
        "--results", str(tmp_path / "results"), "--tuning-results", str(tmp_path / "tuning"),
        "--rates", str(tmp_path / "rates.json"), "--scratch", str(scratch), "--jobs", "1",
    ]  # fmt: skip


def test_tuning_gives_every_arm_the_same_number_of_runs_and_is_not_done_twice(
    in_this_process, monkeypatch, tmp_path, scratch
):
    done = []

    def perform(run, *_, **settings):
        assert settings["tuning"]
        done.append(run)
        return {"validation": {"mAP": -abs(run.rates[0] - 5e-3) - abs(run.rates[1] - 1e-3)}}

    monkeypatch.setattr(convergence, "perform", perform)
    arguments = convergence.parse(["tune", *folders(tmp_path, scratch), "--persons", "8", "3", "4"])
    convergence.tune_arms(TUNED_TOGETHER[0], arguments)
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert rates["rates"] == {arm: [5e-3, 1e-3] for arm in TUNED_TOGETHER[0]}
    assert rates["runs"] == dict.fromkeys(TUNED_TOGETHER[0], 5)
    assert {(run.seed, run.identities) for run in done} == {(100, 100)}
    done.clear()
    convergence.tune_arms(TUNED_TOGETHER[0], arguments)
    assert not done
    convergence.tune_arms(TUNED_TOGETHER[2], arguments)
    assert set(json.loads((tmp_path / "rates.json").read_text())["runs"].values()) == {5}


def test_trying_out_must_not_write_among_the_committed_results(capsys):
    with pytest.raises(SystemExit):
        convergence.parse(["run", "--most-epochs", "2"])
    assert "give --results" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_study_in_small_in_two_processes_and_its_page(monkeypatch, tmp_path, scratch):
    words = ["convergence.py", "run", *folders(tmp_path, scratch)[:-1], "2"]
    words += ["--persons", "8", "3", "4", "--most-epochs", "1", "--parts", "few", "primary_100"]
    rates = {"rates": dict.fromkeys(COURSES, (5e-3, 1e-3)), "runs": dict.fromkeys(COURSES, 5)}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    monkeypatch.setattr("sys.argv", words)
    convergence.main()
    assert len(list((tmp_path / "results").rglob("*.json"))) == 32


def made_up(arm, run, rank1):
    metrics = {name: rank1 for name in ("rank1", "rank5", "rank10", "mAP", "mINP")}
    history = [
        {"stage": stage, "epoch": epoch, "steps": 1, "seconds": 1.0, "scores": {"mAP": rank1 * epoch / 3}}
        for stage in (("stage_one", "stage_two") if arm.startswith("pd") else ("direct_fine_tuning",))
        for epoch in (1, 2, 3)
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
def page(tmp_path):
    """Makes the page from Rank-1 by arm and number of identities."""

    def make(scores, *, base=None):
        rates = {"rates": dict.fromkeys(COURSES, (5e-3, 1e-3)), "runs": dict.fromkeys(COURSES, 5)}
        for runs in parts(rates, base=base).values():
            for run in runs:
                rank1 = scores.get((run.arm, run.identities, run.base)[: 2 if run.base == "shipped" else 3])
                if rank1 is not None:
                    path = run.path(tmp_path)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(made_up(run.arm, run, rank1)))
        plots = tmp_path / "plots"
        plots.mkdir(exist_ok=True)
        return convergence_page.ConvergencePage(rates, tmp_path, plots)

    return make


def test_page_without_a_run_says_so_and_lists_every_part(page):
    text = page({}).text()
    assert "**Not finished.**" in text
    assert "- `primary_100`: 0 of 20 runs" in text
    assert "- `better_base`: 0 of 30 runs" in text


def test_page_words_each_outcome_as_the_protocol_does(page):
    scores = {("direct", 100): 0.3, ("pd", 100): 0.4, ("direct_more", 100): 0.4}
    scores |= {("direct", 400): 0.5, ("pd", 400): 0.45, ("direct_more", 400): 0.6}
    scores |= {("direct", 50): 0.2, ("pd", 50): 0.4}
    made = page(scores)
    answer = made.answer()
    assert "PD beats direct fine-tuning at 100 identities (+10.0 points, +10.0 to +10.0)" in answer
    assert "and is behind it at 400 identities (−5.0 points" in answer
    assert "direct fine-tuning is not significantly different from PD at 100 identities" in answer
    assert "and is ahead of it at 400 identities" in answer
    assert "With fewer identities PD does better against direct fine-tuning (400 less 50: −25.0 points" in answer
    text = made.text()
    assert "![Best validation mAP so far by epoch of the encoders at 400 identities" in text
    assert "| 97.5 % |" in text
    assert "| `direct` | direct fine tuning | 3.0 ± 0.0 | 3.0 |" in made.appendix()


def test_page_compares_with_a_better_base_by_seed_and_person(page):
    scores = {("direct", 100): 0.3, ("pd", 100): 0.3, ("zero_shot", 100): 0.1}
    scores |= {("direct", 100, "abcd1234"): 0.5, ("pd", 100, "abcd1234"): 0.6, ("zero_shot", 100, "abcd1234"): 0.4}
    made = page(scores, base="abcd1234")
    assert "| 100 | 40.00 ± 0.00 | 50.00 ± 0.00 | 60.00 ± 0.00 | 5 |" in made.better_base()
    assert "| +10.0 points, +10.0 to +10.0 |" in made.better_base()
    assert "is not significantly different from direct fine-tuning at 100" in made.answer()
    assert "- `better_base`: 15 of 30 runs" in made.text()


def test_page_with_half_of_the_primary_comparison_says_what_is_missing(page):
    answer = page({("direct", 100): 0.3, ("pd", 100): 0.3}).answer()
    assert "PD is not significantly different from direct fine-tuning at 100 identities" in answer
    assert "The comparison at 400 identities is not finished yet." in answer


def test_page_says_nothing_before_the_last_seed(page, tmp_path):
    made = page({("direct", 100): 0.3, ("pd", 100): 0.4})
    next(tmp_path.glob("identities100/pd-seed4.json")).unlink()
    again = convergence_page.ConvergencePage(made.rates, tmp_path, made.plots)
    assert "**Not finished.**" in again.answer()
    assert "| 100 | `pd` | 40.00 ± 0.00 | `direct` | 30.00 ± 0.00 | 4 |" in again.text()


def test_page_has_a_table_for_each_question_that_was_run(page):
    scores = {("direct", 100): 0.3, ("pd", 100): 0.4, ("joint", 100): 0.35}
    text = page(scores).text()
    assert "| 100 | `pd` | 40.00 ± 0.00 | `joint` | 35.00 ± 0.00 | 5 | +5.00 ± 0.00 |" in text
    assert "How far prompts alone get" not in text
    text = page({**scores, ("prompts_4", 100): 0.1, ("zero_shot", 100): 0.05}).text()
    assert "| 100 | `prompts_4` | 10.00 ± 0.00 | `zero_shot` | 5.00 ± 0.00 | 5 |" in text
    assert "`prompts_64` |" not in text


def test_curves_of_all_arms_begin_with_the_encoders(page, monkeypatch):
    drawn, plot = {}, Axes.plot

    def look(axes, x, y, **style):
        drawn[style["label"]] = (x, y)
        return plot(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", look)
    page({("direct", 100): 0.3, ("pd", 100): 0.4}).curves(100)
    assert drawn["direct"][0] == [1, 2, 3]
    assert drawn["pd"][0] == [-3, -2, -1, 1, 2, 3]
    assert drawn["pd"][1] == pytest.approx([40 * epoch / 3 for epoch in (1, 2, 3, 1, 2, 3)])


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


def test_leads_of_a_comparison_that_is_not_complete_are_left_out(page, tmp_path):
    made = page({("direct", 100): 0.3, ("pd", 100): 0.4, ("direct", 50): 0.3, ("pd", 50): 0.4})
    next(tmp_path.glob("identities100/pd-seed4.json")).unlink()
    again = convergence_page.ConvergencePage(made.rates, tmp_path, made.plots)
    assert "leads at 50 identities" in again.lead()
    assert "| 100 |" not in again.lead()


def test_workers_end_with_their_parent_and_use_all_of_float32(monkeypatch):
    called = []
    monkeypatch.setattr(convergence, "end_with_parent", lambda: called.append(1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    convergence.prepare_worker()
    assert called == [1]
    assert not torch.backends.cudnn.allow_tf32


def test_points_have_a_true_minus():
    assert convergence_page.points(Difference(-0.01, 0, -0.02, 0, 3)) == "−1.0 points, −2.0 to +0.0"
