"""Runs of a handful of persons and steps: they end, resume after a kill, and are refused where they do not belong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import measures
import plan
import runs
from promptreid import adaptation

PARTS = ("test", "validation", "rank1_by_person", "rank1_by_group", "measures", "made_with", "history")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def comparable(result):
    """What does not depend on the clock."""
    history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in result["history"]]
    return {name: value for name, value in result.items() if name != "seconds"} | {"history": history}


def test_a_run_writes_all_that_is_reported_and_is_not_done_twice(toy_run, scratch, tmp_path, monkeypatch):
    result = runs.perform(toy_run(), tmp_path, scratch)
    assert set(PARTS) <= set(result)
    assert [(entry["stage"], entry["step"]) for entry in result["history"]] == [
        ("stage_one", 2), ("stage_two", 2), ("stage_two", 4),
    ]  # fmt: skip
    assert set(result["rank1_by_group"]) == {"build", "skin tone", "word for gender"}
    assert len(result["rank1_by_person"]) == 4
    path = tmp_path / "gap1-share1" / "pd-seed0.json"
    assert json.loads(path.read_text())["test"] == result["test"]
    assert not list((scratch / "work" / "gap1-share1").glob("pd-seed0*"))
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trained again"))
    again = runs.perform(toy_run(), tmp_path, scratch)
    assert again["test"] == result["test"]


def test_tuning_does_not_look_at_the_test_split(toy_run, scratch, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "score_test", lambda *_: pytest.fail("looked at the test split"))
    result = runs.perform(toy_run("zero_shot"), tmp_path, scratch, tuning=True)
    assert "test" not in result
    assert "mAP" in result["validation"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1], ids=["in stage 1", "in stage 2"])
def test_an_interrupted_run_ends_as_it_would_have_ended(toy_run, scratch, tmp_path, monkeypatch, stage):
    whole = runs.perform(toy_run(), tmp_path / "whole", scratch)
    own, calls = adaptation.evaluate, []

    def interrupt(*arguments, **settings):
        calls.append(1)
        if len(calls) == 1 + 2 * stage:  # after the last step of stage 1, or of stage 2
            raise ConnectionError("interrupted")
        return own(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(adaptation, "evaluate", interrupt)
        with pytest.raises(ConnectionError):
            runs.perform(toy_run(), tmp_path / "interrupted", scratch)
    assert not (tmp_path / "interrupted").exists()
    again = runs.perform(toy_run(), tmp_path / "interrupted", scratch)
    assert comparable(again) == comparable(whole)


def test_other_and_damaged_results_are_refused(toy_run, scratch, tmp_path):
    path = toy_run().path(tmp_path)
    path.parent.mkdir()
    path.write_text('{"run": {"arm": "pd"}}')
    with pytest.raises(FileExistsError, match="is the result of another run"):
        runs.perform(toy_run(), tmp_path, scratch)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*; delete it"):
        runs.perform(toy_run(), tmp_path, scratch)


def test_a_share_keeps_the_first_identities_and_as_many_steps(toy_run, scratch, tmp_path):
    root, data = runs.make_data(toy_run(share=0.25), scratch)
    assert (data.train.num_identities, data.test.num_identities) == (2, 4)
    assert runs.make_data(toy_run(share=0.01), scratch)[1].train.num_identities == 2
    result = runs.perform(toy_run("direct", share=0.01), tmp_path, scratch)
    assert result["history"][-1]["step"] == 6
    assert (root / "scenes.json").is_file()


def test_transfer_trains_and_validates_on_some_cameras_and_tests_on_the_others(toy_run, scratch):
    _, data = runs.make_data(toy_run(train_cameras=("cam_a", "cam_b", "CUHK01")), scratch)
    cameras = [{record.path.parent.name for record in split.records} for split in data.splits]
    assert (cameras[0] | cameras[1]) <= {"cam_a", "cam_b", "CUHK01"}
    assert cameras[2] <= {"CUHK03", "Market"}
    assert all(cameras)


@pytest.mark.slow
def test_the_other_base_is_pretrained_once_and_named_in_the_result(toy_run, scratch, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FURTHER_STEPS", 1)
    monkeypatch.setattr(runs, "FURTHER_PAIRS", 128)
    run = toy_run("zero_shot", base="further")
    other = runs.perform(run, tmp_path, scratch)
    shipped = runs.perform(toy_run("zero_shot"), tmp_path, scratch)
    assert (tmp_path / "gap1-share1-base" / "zero_shot-seed0.json").is_file()
    assert other["test"] != shipped["test"]
    training = json.loads((scratch / "base-further" / "training.json").read_text())
    assert other["made_with"]["base_sha256"] == training["weights_sha256"]
    assert training["settings"]["start"] == "generated"
    assert (other["run"]["base"], "base" in shipped["run"]) == ("further", False)
    monkeypatch.setattr(runs, "PRETRAINING", Path("nowhere.py"))
    assert runs.base_weights(run, scratch) == str(scratch / "base-further" / "promptreid-tiny.safetensors")
    with pytest.raises(subprocess.CalledProcessError):
        runs.base_weights(run, tmp_path / "empty")
    monkeypatch.setattr(runs, "FURTHER_STEPS", 2)
    with pytest.raises(ValueError, match=r"base-further holds .* another pretraining; delete it"):
        runs.base_weights(run, scratch)
    monkeypatch.setattr(runs, "FURTHER_STEPS", 1)
    (scratch / "base-further" / "promptreid-tiny.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="base-further holds damaged weights"):
        runs.base_weights(run, scratch)


def test_dot_products_start_at_the_scale_of_cosines(toy_run):
    model = runs.make_model(toy_run("pd_dot_product"), "cpu")
    images, texts = measures.encode_own_domain(model, measures.draw_own_domain(10), normalize=False)
    found = runs.squared_length(model, measures.draw_own_domain(10))
    # The prompts are put aside, and they change lengths little.
    assert found == pytest.approx(float(images.norm(dim=1).mean() * texts.norm(dim=1).mean()), rel=0.3)


@pytest.mark.slow
def test_every_arm_runs(toy_run, scratch, tmp_path):
    for arm in plan.ARMS:
        result = runs.perform(toy_run(arm, costs=(0.8, 1.1)), tmp_path, scratch)
        assert 0 <= result["test"]["rank1"] <= 1, arm


@pytest.mark.slow
def test_a_process_killed_at_any_moment_resumes(scratch, tmp_path):
    """`kill -9` after ever longer times, until it ends; between and inside runs."""
    script = Path(__file__).with_name("killed_study.py")
    command = [sys.executable, str(script), str(tmp_path / "killed"), str(scratch)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = 0
    for attempt in range(40):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                pytest.fail("the study did not begin")
            time.sleep(0.5 + 1.5 * attempt)
            if process.poll() is not None:
                break
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
    assert process.returncode == 0
    assert killed >= 3
    whole = subprocess.run(
        [*command[:2], str(tmp_path / "whole"), str(tmp_path / "scratch")], check=True, env=environment
    )
    assert whole.returncode == 0
    for path in sorted((tmp_path / "whole").rglob("*.json")):
        twin = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert comparable(json.loads(twin.read_text())) == comparable(json.loads(path.read_text()))
