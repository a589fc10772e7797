"""The study at convergence on a handful of persons: stopping, results and tuning."""

import argparse
import json
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import convergence
import curves
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


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run"], "give another path with --results"),
        (["all", "--results", "own"], "give another path with --tuning-results and --rates"),
    ],
)
def test_trying_out_must_not_write_among_the_committed_results(capsys, words, named):
    with pytest.raises(SystemExit):
        convergence.parse([*words, "--most-epochs", "2"])
    assert named in capsys.readouterr().err


def test_trying_out_may_read_the_committed_rates():
    arguments = convergence.parse(["run", "--most-epochs", "2", "--results", "own"])
    assert arguments.limits.most_epochs == 2


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


def test_workers_end_with_their_parent_and_use_all_of_float32(monkeypatch):
    called = []
    monkeypatch.setattr(convergence, "end_with_parent", lambda: called.append(1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    convergence.prepare_worker()
    assert called == [1]
    assert not torch.backends.cudnn.allow_tf32
