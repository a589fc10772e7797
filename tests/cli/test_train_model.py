"""The options of `promptreid train` that say how it trains: what the recipe becomes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from promptreid.adaptation import Adaptation
from promptreid.cli.options import check_device, joined_processes
from promptreid.cli.output import Output
from promptreid.cli.train_model import (
    ALGORITHMS,
    MATCHINGS,
    WAYS,
    add_training_arguments,
    complete_training_arguments,
    make_model,
)
from promptreid.cli.training_runs import Training
from promptreid.evaluation.evaluate import Evaluation
from promptreid.evaluation.metrics import RetrievalMetrics
from promptreid.files import read_sealed_json, write_sealed_json
from promptreid.losses.contrastive import NITCLoss, SDMLoss
from promptreid.training.ablations import ABLATIONS
from promptreid.training.recipe import Matching, Recipe
from promptreid.training.stage import Algorithm


def recipe_of(*words: str) -> Recipe:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    return complete_training_arguments(vars(parser.parse_args([*words, "--device", "cpu"])))[1]


def test_options_of_the_optimizer_are_the_recipes() -> None:
    assert get_args(Algorithm) == ALGORITHMS
    found = recipe_of("--algorithm", "adam", "--epsilon", "1e-3", "--max-norm", "none")
    assert (found.algorithm, found.epsilon, found.max_norm) == ("adam", 1e-3, None)
    assert recipe_of("--max-norm", "0.5").max_norm == 0.5
    plain = recipe_of()
    assert (plain.algorithm, plain.epsilon, plain.max_norm) == ("adamw", 1e-8, 1.0)


def test_matching_loss_of_the_recipe_is_chosen_in_the_shell() -> None:
    assert get_args(Matching) == MATCHINGS
    assert recipe_of().matching == "contrastive"
    assert isinstance(recipe_of("--matching", "sdm").matching_loss(), SDMLoss)
    assert isinstance(recipe_of("--matching", "nitc").matching_loss(), NITCLoss)


def test_options_of_regularisation_are_the_recipes() -> None:
    found = recipe_of("--self-consistency", "0.5", "--average-prompts")
    assert (found.self_consistency, found.average_prompts) == (0.5, True)
    assert (recipe_of().self_consistency, recipe_of().average_prompts) == (0.0, False)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("independent", {"tokens": (1, 4, 128)}),
        ("coupled", {"weight": (1, 128, 128), "bias": (1, 128), "scale": (1,)}),
        ("prefix", {"keys": (1, 4, 128), "values": (1, 4, 128)}),
        ("grouped", {"tokens": (2, 1, 4, 128)}),
    ],
)
def test_options_of_kind_and_depth_make_a_model_of_them(kind: str, shape: dict[str, tuple[int, ...]]) -> None:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    words = ["--prompt-kind", kind, "--prompt-depth", "1", "--device", "cpu", "--image-size", "32", "16"]
    arguments, _ = complete_training_arguments(vars(parser.parse_args(words)))
    model = make_model(arguments, cameras=("cam_a", "cam_b"))
    assert (model.config.kind, model.image_size) == (kind, (32, 16))
    found = {name: tuple(value.shape) for name, value in model.vision.prompts.state_dict().items()}
    assert found == shape
    assert vars(parser.parse_args([]))["prompt_kind"] == "independent"
    assert vars(parser.parse_args([]))["prompt_depth"] is None


def test_grouped_prompts_are_for_the_cameras_and_need_some() -> None:
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    words = ["--prompt-kind", "grouped", "--device", "cpu", "--image-size", "32", "16"]
    arguments, _ = complete_training_arguments(vars(parser.parse_args(words)))
    assert make_model(arguments, cameras=("a", "b")).groups == ("a", "b")
    with pytest.raises(ValueError, match='names none; give its records a field "camera"'):
        make_model(arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-kind", "shared"], "argument --prompt-kind: invalid choice: 'shared'"),
        (["--algorithm", "lion"], "argument --algorithm: invalid choice: 'lion'"),
        (["--epsilon", "0"], "argument --epsilon: is 0, expected a number above 0"),
        (["--max-norm", "-1"], "argument --max-norm: is -1, expected a number above 0"),
        (["--max-norm", "off"], "argument --max-norm: invalid number value: 'off'"),
    ],
)
def test_training_options_out_of_range_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe_of(*words)
    assert message in capsys.readouterr().err


def test_ways_of_the_command_are_those_of_the_library() -> None:
    assert tuple(ABLATIONS) == WAYS


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs that train nothing: `direct` scores 50 and 60 % by seed, `pd` 10 points more."""
    ran: list[tuple[str, int]] = []

    def pretend(self: Training, folder: Path, way: str, seed: int) -> Any:
        ran.append((way, seed))
        rank1 = 0.5 + 0.1 * seed + (0.1 if way == "pd" else 0.0)
        metrics = RetrievalMetrics({1: rank1, 5: rank1, 10: rank1}, 0.3, 0.2, 10, 0)
        log = folder / "stage_two" / "log.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps({"stage": "stage_two", "epoch": 1, "losses": {}, "scores": {"mAP": 0.3}}) + "\n")
        return Adaptation({"stage_two": Evaluation(metrics, metrics)}, {}, {}, "last epoch", folder / "model")

    monkeypatch.setattr(Training, "_adapt", pretend)
    return ran


def test_train_compares_ways_under_seeds_and_runs_none_twice(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]]
) -> None:
    pytest.importorskip("matplotlib")
    command = ["train", drawn, "--output", tmp_path / "all", "--compare", "direct", "pd", "--seeds"]
    code, text, _ = call(*command, 0, 1)
    assert (code, fake_runs) == (0, [("direct", 0), ("direct", 1), ("pd", 0), ("pd", 1)])
    assert "pd less direct: Rank-1 +10.00 points" in text
    assert "direct      2  55.00 ± 7.07" in text
    for name in ("comparison.md", "comparison.tex", "comparison.json", "curves.png", "pd/seed-1/scores.json"):
        assert (tmp_path / "all" / name).is_file()
    fake_runs.clear()
    code, answer, _ = call(*command, 0, 1, 2, "--json")
    assert (code, fake_runs) == (0, [("direct", 2), ("pd", 2)])
    assert answer["runs"]["pd"]["mean"]["rank1"] == pytest.approx(0.7)
    code, _, notes = call(*command, 0, "--batch-size", 32)
    assert code == 2
    assert "holds another run: --batch-size was 64, is 32" in notes


def test_train_writes_down_how_it_divided_the_persons(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]]
) -> None:
    code, text, _ = call("train", drawn, "--output", tmp_path / "run", "--split", "50/0/50", "--seeds", 0)
    assert code == 0
    assert text.startswith("synthetic people (CUHK-PEDES layout): train 4 persons")
    written = read_sealed_json(tmp_path / "run" / "split.json")
    assert (written["split"], written["seed"], list(written["persons"])) == ("50/0/50", 0, ["train", "test"])
    assert sorted(person for persons in written["persons"].values() for person in persons) == list(range(1, 9))
    text = (tmp_path / "run" / "split.json").read_text()
    (tmp_path / "run" / "split.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="its digest is not that of its content"):
        read_sealed_json(tmp_path / "run" / "split.json")
    code, _, notes = call("train", drawn, "--output", tmp_path / "other", "--seed", 3, "--seeds", 0)
    assert (code, "--seed would do nothing here: --seeds already lists every seed" in notes) == (2, True)


def test_train_writes_down_the_names_of_the_persons_it_divided(
    call: Any, tmp_path: Path, fake_runs: list[tuple[str, int]]
) -> None:
    names = ("Zoe", "Änne", "7", "Bo")
    root = tmp_path / "data"
    root.mkdir()
    for name in names:
        Image.new("RGB", (16, 32)).save(root / f"{name}.jpg")
    rows = "".join(f"{name}.jpg,a person,{name}\n" for name in names)
    (root / "people.csv").write_text(f"image,caption,person_id\n{rows}", encoding="utf-8")
    assert call("train", root, "--output", tmp_path / "run", "--split", "50/0/50", "--seeds", 0)[0] == 0
    written = read_sealed_json(tmp_path / "run" / "split.json")
    by_number = dict(enumerate(sorted(names)))
    assert written["names"] == {
        split: [by_number[number] for number in numbers] for split, numbers in written["persons"].items()
    }


def test_one_person_to_train_on_is_told_with_its_folder(call: Any, drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    annotation = tmp_path / "data" / "reid_raw.json"
    entries = json.loads(annotation.read_text())
    first = next(entry["id"] for entry in entries if entry["split"] == "train")
    annotation.write_text(json.dumps([each for each in entries if each["split"] != "train" or each["id"] == first]))
    code, _, notes = call("train", tmp_path / "data", "--output", tmp_path / "run")
    assert (code, "data has 1 person; training needs at least 2" in notes) == (2, True), notes
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0", "0"], "--seeds has 0 more than once; give each once"),
        (["--compare", "pd", "direct", "pd"], "--compare has pd more than once; give each once"),
    ],
)
def test_refused_comparison_leaves_nothing_behind(
    call: Any, drawn: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    code, _, notes = call("train", drawn, "--output", tmp_path / "all", *words)
    assert (code, message in notes) == (2, True)
    assert not (tmp_path / "all").exists()


def test_comparison_that_never_began_binds_no_other(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]]
) -> None:
    (tmp_path / "all").mkdir()
    write_sealed_json(tmp_path / "all" / "comparison-settings.json", {"batch_size": 3})
    code, _, notes = call("train", drawn, "--output", tmp_path / "all", "--seeds", 0)
    assert (code, fake_runs) == (0, [("pd", 0)]), notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["direct", "joint", "--average-prompts"], "--average-prompts would do nothing here: stage 1 is in no way"),
        (["direct", "--self-consistency", "1"], "--self-consistency would do nothing here: stage 1 is in no way"),
        (["direct", "norms_stage_one", "--prompt-depth", "1"], "--prompt-depth would do nothing here: --compare dir"),
    ],
)
def test_option_that_no_compared_way_uses_is_refused(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]], words: list[str], message: str
) -> None:
    code, _, notes = call("train", drawn, "--output", tmp_path / "all", "--compare", *words)
    assert (code, message in notes) == (2, True), notes
    assert call("train", drawn, "--output", tmp_path / "all", "--compare", "pd", *words)[0] == 0
    assert ("pd", 0) in fake_runs


def test_single_run_and_comparison_are_not_mixed_in_a_folder(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]]
) -> None:
    (tmp_path / "run" / "stage_one" / "checkpoints" / "step-000000001").mkdir(parents=True)
    code, _, notes = call("train", drawn, "--output", tmp_path / "run", "--seeds", 0, 1)
    assert (code, "run holds a single run; give another folder, such as --output compared" in notes) == (2, True)
    assert call("train", drawn, "--output", tmp_path / "all", "--seeds", 0)[0] == 0
    code, _, notes = call("train", drawn, "--output", tmp_path / "all")
    assert (code, "all holds the runs of --seeds or --compare; give another folder" in notes) == (2, True)


def test_refused_run_keeps_the_split_of_the_other(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]]
) -> None:
    command = ["train", drawn, "--output", tmp_path / "run", "--seeds", 0, "--split"]
    assert call(*command, "50/0/50")[0] == 0
    code, _, notes = call(*command, "75/0/25")
    assert (code, "holds another run" in notes) == (2, True)
    assert read_sealed_json(tmp_path / "run" / "split.json")["split"] == "50/0/50"


@pytest.mark.parametrize("end", [SystemExit(143), KeyboardInterrupt(), OSError(28, "No space left"), MemoryError()])
def test_run_that_ends_early_has_its_division_written_down_once_the_folder_is_its_own(
    call: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def ends(*_: Any, **__: Any) -> Any:
        raise end

    def run(division: str) -> tuple[int, str]:
        words = ("--epochs", 1, 1, "--split", division)
        code, _, notes = call("train", drawn, "--output", tmp_path / "run", *words)
        return code, notes

    note = tmp_path / "run" / "split.json"
    with monkeypatch.context() as patch:
        patch.setattr("promptreid.adaptation.claim_folder", ends)
        run("50/0/50")
    assert not note.exists()
    monkeypatch.setattr("promptreid.adaptation.encode_split", ends)  # the first work after it
    run("50/0/50")
    assert read_sealed_json(note)["split"] == "50/0/50"
    (tmp_path / "run" / "stage_one" / "checkpoints" / "step-000000001").mkdir(parents=True)
    note.unlink()
    code, notes = run("75/0/25")
    assert (code, "run holds another run: data" in notes) == (2, True), notes
    assert not note.exists()


def test_resuming_with_another_division_names_it_before_the_data_are_read(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", drawn, "--output", tmp_path / "run", "--seeds", 0, "--split"]
    assert call(*command, "50/0/50")[0] == 0
    assert call(*command, "50.0/0/50.0")[0] == 0  # the same
    monkeypatch.setattr("promptreid.data.reader.load_dataset", lambda *_, **__: pytest.fail("it began to work"))
    code, _, notes = call(*command, "75/0/25", "--split-seed", 3)
    assert code == 2
    assert "run holds another run: --split was 50.0/0/50.0, is 75/0/25; --split-seed was 0, is 3. Divide the" in notes
    monkeypatch.undo()
    (tmp_path / "run" / "split.json").write_text("{}")
    code, _, notes = call(*command, "75/0/25")
    assert "holds another run: data." in notes  # as ever


def test_run_among_the_images_is_refused_and_one_that_was_begun_there_resumes(
    call: Any, drawn: Path, tmp_path: Path, fake_runs: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, images = tmp_path / "data", tmp_path / "images"
    shutil.copytree(drawn, data)
    shutil.move(data / "imgs", images)
    monkeypatch.chdir(tmp_path)
    words = ("--seeds", 0, "--image-dir", "images", "--output")
    for output, found in (
        ("data", "is the dataset's folder, data"),
        ("data/run", "is in the dataset's folder, data"),
        ("images/cam/run", "is in the folder of the images, images"),
    ):
        code, _, notes = call("train", "data", *words, output)
        assert code == 2
        assert f"error: --output is {output}, which {found}: its figures would be taken for people later" in notes
        assert notes.endswith("such as --output run\n")
    (data / "sub").mkdir()
    outer = call("train", "data/sub", "--seeds", 0, "--image-dir", "data", "--output", "data/sub/run")[2]
    assert outer.endswith("such as --output run\n")
    assert fake_runs == []
    assert not [path for path in data.glob("r*") if path.is_dir()]
    shutil.copytree(drawn, tmp_path / "project" / "CUHK-PEDES")
    assert call("train", "project", "--seeds", 0, "--output", "project/run")[0] == 0  # beside the dataset
    assert fake_runs == [("pd", 0)]
    fake_runs.clear()
    (data / "cam").mkdir()
    evaluated = ("evaluate", "data", "--image-dir", "images", "--output", "data/cam")
    assert "--output is data/cam, which is in the dataset's folder" in call(*evaluated)[2]
    (data / "cam" / "metrics.json").touch()  # by an earlier version
    assert call(*evaluated)[0] == 0
    shutil.rmtree(data / "cam")
    monkeypatch.chdir(data)
    assert "such as --output ../run\n" in call("train", ".", "--image-dir", "../images", "--output", "run")[2]
    (data / "run" / "pd" / "seed-0" / "stage_one" / "checkpoints" / "step-000000001").mkdir(parents=True)
    write_sealed_json(data / "run" / "comparison-settings.json", {})
    call("train", ".", "--seeds", 0, "--image-dir", "../images", "--output", "run")
    assert fake_runs == [("pd", 0)]


def test_output_beside_data_that_cannot_be_read_names_their_folder(
    call: Any, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(drawn / "inner"))

    monkeypatch.setattr("promptreid.data.reader.dataset_folder", refuse)
    for command in ("train", "evaluate"):
        code, _, notes = call(command, drawn, "--output", tmp_path / "run")
        assert (code, f"the folder {drawn} cannot be read (Permission denied: " in notes) == (2, True), notes


def test_data_without_splits_say_how_a_divided_run_is_scored_again(call: Any, drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn / "imgs", data)
    first = next(data.rglob("*.jpg")).relative_to(data)
    (data / "t.csv").write_text(f"image,caption,person_id\n{first},a man,1\n")
    code, _, notes = call("evaluate", data)
    assert (code, "1 of 1 images have no split. Add a column split of train, val, test; after train" in notes) == (
        2,
        True,
    )
    assert "split.json in the run's folder lists whom it drew" in notes
    assert "--split 80/10/10" not in notes


@pytest.mark.slow
def test_train_compares_in_earnest(call: Any, drawn: Path, tmp_path: Path) -> None:
    command = [
        "train",
        drawn,
        "--output",
        tmp_path / "all",
        "--compare",
        "direct",
        "pd",
        "--seeds",
        0,
        1,
        "--epochs",
        1,
    ]
    code, answer, notes = call(*command, 1, "--batch-size", 8, "--steps-per-epoch", 2, "--json")
    assert code == 0, notes
    assert list(answer["differences"]) == ["pd"]
    for way in ("direct", "pd"):
        for seed in (0, 1):
            run = tmp_path / "all" / way / f"seed-{seed}"
            assert (run / "report.html").is_file()
            assert (run / "model" / "README.md").is_file()


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "-m", "promptreid", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.posix
def test_train_under_torchrun_prints_once_and_trains_together(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = tmp_path / "run"
    command = ["train", drawn, "--output", run, "--epochs", 1, 1, "--batch-size", 8, "--device", "cpu"]
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("synthetic people (CUHK-PEDES layout)") == 1
    assert done.stdout.count("stage two   text to image") == 1
    assert done.stderr.count("stage two 1/1  val mAP") == 1
    assert (run / "report.html").is_file()
    assert (run / "model" / "prompts.safetensors").is_file()
    done = torchrun("evaluate", drawn, "--model", run / "model", "--device", "cpu")
    assert (done.returncode, done.stdout.count("text to image")) == (0, 1), done.stderr
    done = torchrun(*command, "--image-dir", tmp_path)  # where no image is
    assert done.returncode != 0
    assert done.stderr.count("error: 32 of 32 images are missing") == 1


STARTING = """
import multiprocessing, sys
from promptreid.cli.main import main

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.posix)])
def test_workers_that_share_nothing_with_their_parent_train_to_the_same_scores(
    call: Any, drawn: Path, tmp_path: Path, method: str
) -> None:
    # Processes are spawned on macOS and Windows, and begin at a server of forks on Linux from Python 3.14 on.
    (tmp_path / "start.py").write_text(STARTING, encoding="utf-8")
    words = ["train", drawn, "--epochs", 1, 1, "--batch-size", 8, "--steps-per-epoch", 2, "--device", "cpu", "--json"]
    code, alone, notes = call(*words, "--output", tmp_path / "alone")
    assert code == 0, notes
    done = subprocess.run(
        [
            sys.executable,
            tmp_path / "start.py",
            method,
            *map(str, words),
            "--num-workers",
            "1",
            "--output",
            tmp_path / "run",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"] == alone["results"]


def test_device_of_a_process_of_several_is_its_own_gpu_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []

    def empty(*_: Any, device: str) -> torch.Tensor:
        touched.append(device)
        return torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [check_device(device) for device in (None, "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert touched == ["cuda:1", "cuda:1", "cpu"]  # and none on another process's


def test_silent_process_tells_its_own_failures_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    output.is_silent = True
    output.say("scores")
    output.note("warning: something")
    assert output.fail("process 0 failed, and the others stop with it: ValueError: no; mend that", 2) == 2
    written = capsys.readouterr()
    assert written.out + written.err == ""
    output.fail("out of memory", 5)
    assert capsys.readouterr().err == "error: out of memory\n"


@pytest.mark.parametrize(
    ("device", "backend", "chosen"), [("cpu", "gloo", []), ("cpu:0", "gloo", []), ("cuda:1", "nccl", [1])]
)
def test_a_process_of_several_takes_its_own_gpu(monkeypatch, device, backend, chosen):
    given, backends = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda wanted: given.append(torch.device(wanted).index))
    monkeypatch.setattr(torch.distributed, "init_process_group", backends.append)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda: None)
    with joined_processes(Output(as_json=False), device):
        assert (given, backends) == (chosen, [backend])


def test_several_processes_that_do_not_know_their_gpu_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK"), joined_processes(Output(as_json=False), "cuda"):
        pass
