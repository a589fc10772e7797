"""The main job as a person runs it: a process of its own, files on disk, errors on one line."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "train_cuhk.py"
METRICS = {"rank1", "rank5", "rank10", "mAP", "mINP"}


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def quick(fork: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimpleNamespace]:
    folder = tmp_path_factory.mktemp("quick")
    process = fork(SCRIPT, "--quick", "--output", "run", cwd=folder)
    printed, errors = process.communicate()
    return folder / "run", SimpleNamespace(returncode=process.returncode, stdout=printed, stderr=errors)


@pytest.mark.xdist_group("train_cuhk")
class TestQuickRun:
    def test_quick_run_ends_well_and_prints_one_table(self, quick):
        _, process = quick
        assert process.returncode == 0, process.stderr
        rows = [
            line for line in process.stdout.splitlines() if line.startswith(("zero shot", "stage one", "stage two"))
        ]
        assert [row[12:25] for row in rows] == ["text to image"] * 3 + ["image to text"] * 3
        assert all(len(row[26:].split()) == len(METRICS) for row in rows)
        assert "saved and loaded again: the same scores" in process.stdout

    def test_results_hold_fractions_for_every_phase_and_direction(self, quick):
        results = json.loads((quick[0] / "results.json").read_text())
        for phase in ("zero_shot", "stage_one", "stage_two"):
            for scores in (results[phase], results[phase]["image_to_text"]):
                assert scores.keys() >= METRICS
                assert all(0 <= scores[name] <= 1 for name in METRICS)
                assert scores["rank1"] <= scores["rank5"] <= scores["rank10"]
        assert results["settings"]["seed"] == 0
        assert results["seconds"] > 0

    def test_training_beats_the_bare_model_even_in_a_quick_run(self, quick):
        results = json.loads((quick[0] / "results.json").read_text())
        assert results["stage_two"]["mAP"] > results["zero_shot"]["mAP"]

    def test_picture_and_model_are_on_disk(self, quick):
        output, _ = quick
        with Image.open(output / "ranking.png") as picture:
            assert min(picture.size) > 300
        names = {path.name for path in (output / "model").iterdir()}
        assert names >= {"prompts.safetensors", "prompt_config.json", "open_clip_model.safetensors"}

    def test_data_written_has_the_layout_of_cuhk_pedes(self, quick):
        annotation = next((quick[0] / "data").rglob("reid_raw.json"))
        record = json.loads(annotation.read_text())[0]
        assert record.keys() >= {"split", "captions", "file_path", "id"}
        assert (annotation.parent / "imgs" / record["file_path"]).is_file()

    @pytest.mark.slow
    def test_same_command_again_trains_nothing_and_ends_with_the_same_scores(self, quick):
        output, _ = quick
        before = json.loads((output / "results.json").read_text())
        process = run("--quick", "--output", "run", folder=output.parent)
        assert process.returncode == 0, process.stderr
        after = json.loads((output / "results.json").read_text())
        assert all(before[phase] == after[phase] for phase in ("zero_shot", "stage_one", "stage_two"))

    @pytest.mark.slow
    def test_another_run_in_the_same_folder_is_refused_and_nothing_is_lost(self, quick):
        output, _ = quick
        before = (output / "results.json").read_bytes()
        process = run("--quick", "--seed", 1, "--output", "run", folder=output.parent)
        assert process.returncode == 1
        assert (
            "run holds another run: seed was 0, is 1. Use the earlier settings and files to resume it, or give another "
            "output folder" in process.stderr
        )
        assert (output / "results.json").read_bytes() == before


def _empty(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    return ["--data-root", "data"]


def _no_images(folder: Path) -> list[str]:
    (folder / "data" / "imgs").mkdir(parents=True)
    records = [
        {"split": split, "captions": ["a man"], "file_path": f"cam_a/{split}.jpg", "id": number}
        for number, split in enumerate(("train", "test"), start=1)
    ]
    (folder / "data" / "reid_raw.json").write_text(json.dumps(records))
    return ["--data-root", "data"]


def _unreadable(folder: Path) -> list[str]:
    (folder / "data" / "imgs").mkdir(parents=True)
    (folder / "data" / "reid_raw.json").write_text('[{"split": "train", ')
    return ["--data-root", "data"]


def _foreign_output(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("years of work")
    return ["--output", "out"]


def _file_in_the_way(folder):
    (folder / "notes").write_text("mine")
    return ["--output", "notes/run"]


def _damaged_run(folder):
    (folder / "run").mkdir()
    (folder / "run/settings.json").write_text('{"data": ')
    return ["--output", "run"]


BAD_INPUT = {
    "no prompts": (lambda folder: ["--prompt-length", "0"], "--prompt-length is 0, expected at least 1"),
    "huge pictures": (lambda folder: ["--image-size", "100000", "48"], "--image-size: is 100000, expected 1 to 2048"),
    "quick with own data": (lambda folder: ["--quick", "--data-root", "data"], "leave out --data-root"),
    "file in the way": (_file_in_the_way, "notes is a file; give another output folder"),
    "device without memory": (lambda folder: ["--device", "meta"], "--device meta cannot be used here"),
    "damaged run": (_damaged_run, "run/settings.json is damaged"),
    "no such folder": (lambda folder: ["--data-root", "nowhere"], "there is no folder nowhere"),
    "wrong folder": (_empty, "data has no reid_raw.json (found: nothing)"),
    "no images": (_no_images, "2 of 2 images are missing below"),
    "unreadable annotation": (_unreadable, "reid_raw.json is not valid JSON"),
    "unknown model": (lambda folder: ["--model", "ViT-B-61", "--pretrained", "openai"], "Did you mean ViT-B-16"),
    "unknown tag": (lambda folder: ["--pretrained", "opneai"], "no pretrained weights tagged 'opneai'"),
    "negative prompt length": (lambda folder: ["--prompt-length", "-1"], "--prompt-length: is -1, expected at least 0"),
    "prompt length past the sequence": (lambda folder: ["--prompt-length", "100000"], "100000"),
    "image size of zero": (
        lambda folder: ["--image-size", "0", "48"],
        "argument --image-size: is 0, expected 1 to 2048",
    ),
    "image size below a patch": (lambda folder: ["--image-size", "2", "2"], "smaller than one"),
    "foreign output folder": (_foreign_output, "out holds other files"),
    "unknown device": (lambda folder: ["--device", "warp"], "--device"),
    "no tag": (lambda folder: ["--model", "ViT-B-16"], "--model ViT-B-16 needs --pretrained TAG"),
    "negative seed": (lambda folder: ["--seed", "-3"], "--seed"),
    "negative workers": (lambda folder: ["--num-workers", "-1"], "--num-workers"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_line_before_anything_is_written(case, tmp_path, monkeypatch, capsys):
    prepare, words = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *prepare(tmp_path)])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:  # in this process: an import of torch for each would take a minute
        runpy.run_path(str(SCRIPT), run_name="__main__")
    # sys.exit(text) prints the text and ends with 1; argparse prints its own and ends with 2.
    last = str(caught.value.code) if caught.value.code != 2 else capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last
    assert words in last
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("package", "extra"), [("accelerate", "train"), ("matplotlib", "viz")])
def test_missing_extra_is_said_before_anything_is_written(tmp_path, monkeypatch, package, extra):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick"])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf'needs {package}: pip install "promptreid\[{extra}\]"'):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert [*tmp_path.iterdir()] == []
