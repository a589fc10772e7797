"""Each tutorial runs as it stands but for the settings on its top, which a reader changes too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"IDENTITIES": "(10, 4, 6)", "EPOCHS": "(1, 1)", "BATCH_SIZE": "8"}


def adapted(name: str, folder: Path, **settings: str) -> Path:
    """A copy of a tutorial with other settings."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for setting, value in settings.items():
        text, count = re.subn(rf"^{setting} = [^#\n]*", f"{setting} = {value}  ", text, flags=re.MULTILINE)
        assert count == 1, f"{name} has no setting {setting} on its top"
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def run(*command: object, folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_own_training_loop_trains_both_stages_and_saves(tmp_path):
    output = run(adapted("own_training_loop.py", tmp_path, **SMALL), folder=tmp_path)
    assert re.findall(r"^after (\w+): rank-1 \d\.\d{3}$", output, re.MULTILINE) == [
        "domain_adaptation",
        "task_adaptation",
    ]
    assert (tmp_path / "runs/own_training_loop/model/prompts.safetensors").is_file()
    assert (tmp_path / "runs/own_training_loop/model/open_clip_model.safetensors").is_file()


def test_publish_and_load_gives_the_same_scores(tmp_path):
    output = run(EXAMPLES / "publish_and_load.py", folder=tmp_path)
    before, after = re.search(r"rank-1 before (\S+), after (\S+)", output).groups()
    assert before == after
    assert "prompts.safetensors" in output


def test_search_folder_lists_the_best_first(tmp_path):
    output = run(EXAMPLES / "search_folder.py", folder=tmp_path)
    scores = [float(score) for score in re.findall(r"^\d+\. (-?\d\.\d+) ", output, re.MULTILINE)]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


def test_search_folder_takes_a_folder_and_a_sentence(tmp_path):
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (48, 96), colour).save(tmp_path / "mine" / f"{colour}.png")
    output = run(EXAMPLES / "search_folder.py", "mine", "a man in a red coat", folder=tmp_path)
    assert {line.split("/")[-1] for line in output.splitlines()} == {"red.png", "blue.png"}


@pytest.mark.parametrize("processes", [1, 2])
def test_many_gpus_runs_on_any_number_of_processes(processes, tmp_path):
    script = adapted("many_gpus.py", tmp_path, **SMALL)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    output = run(*launcher, script, folder=tmp_path)
    assert f"processes: {processes}; rank-1" in output
    assert (tmp_path / "runs/many_gpus/model/prompts.safetensors").is_file()
