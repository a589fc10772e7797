"""Each example program runs unchanged except for the settings at its top, which a reader changes too."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"IDENTITIES": "(8, 4, 4)", "EPOCHS": "(1, 1)", "BATCH_SIZE": "16"}


def adapted(name: str, folder: Path, **settings: str) -> Path:
    """A copy of a program with other settings."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    for setting, value in settings.items():
        text, count = re.subn(rf"^{setting} = [^#\n]*", f"{setting} = {value}  ", text, flags=re.MULTILINE)
        assert count == 1, f"{name} has no setting {setting} at its top"
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def run(
    script: Path, *arguments: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    """Run a script as `python script arguments` would, in this process: it has imported torch already."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out


def test_own_training_loop_trains_both_stages_and_saves(tmp_path, monkeypatch, capsys):
    output = run(
        adapted("own_training_loop.py", tmp_path, **SMALL), folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys
    )
    assert re.findall(r"^after (\w+): rank-1 \d\.\d{3}$", output, re.MULTILINE) == [
        "stage_one",
        "stage_two",
    ]
    assert (tmp_path / "runs/own_training_loop/model/prompts.safetensors").is_file()
    assert (tmp_path / "runs/own_training_loop/model/open_clip_model.safetensors").is_file()


def test_publish_and_load_gives_the_same_scores(tmp_path, monkeypatch, capsys):
    output = run(EXAMPLES / "publish_and_load.py", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    before, after = re.search(r"rank-1 before (\S+), after (\S+)", output).groups()
    assert before == after
    assert "prompts.safetensors" in output


def test_publish_and_load_says_on_the_hub_that_its_people_are_drawn(tmp_path, monkeypatch, capsys):
    given = {}

    def pretend(model, repository, **settings):
        given.update(repository=repository, **settings)
        return "https://hub/commit/1"

    monkeypatch.setattr("promptreid.push_prompts", pretend)
    output = run(
        EXAMPLES / "publish_and_load.py", "you/your-prompts", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys
    )
    assert "https://hub/commit/1" in output
    assert given["repository"] == "you/your-prompts"
    assert "drawings" in given["details"].dataset
    assert 0 < given["metrics"]["rank1"] <= 1


def test_search_folder_lists_the_best_first(tmp_path, monkeypatch, capsys):
    output = run(EXAMPLES / "search_folder.py", folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    scores = [float(score) for score in re.findall(r"^\d+\. (-?\d\.\d+) ", output, re.MULTILINE)]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


def test_search_folder_takes_a_folder_and_a_sentence(tmp_path, monkeypatch, capsys):
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (48, 96), colour).save(tmp_path / "mine" / f"{colour}.png")
    output = run(
        EXAMPLES / "search_folder.py",
        "mine",
        "a man in a red coat",
        folder=tmp_path,
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert {line.split("/")[-1] for line in output.splitlines()} == {"red.png", "blue.png"}


def test_many_gpus_on_one_process_trains_and_saves(tmp_path, monkeypatch, capsys):
    script = adapted("many_gpus.py", tmp_path, **SMALL)
    output = run(script, folder=tmp_path, monkeypatch=monkeypatch, capsys=capsys)
    assert "processes: 1; rank-1" in output
    assert (tmp_path / "runs/many_gpus/model/prompts.safetensors").is_file()


@pytest.mark.slow
def test_many_gpus_under_torchrun_trains_on_two_processes(tmp_path):
    script = adapted("many_gpus.py", tmp_path, **SMALL)
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "processes: 2; rank-1" in process.stdout
    assert (tmp_path / "runs/many_gpus/model/prompts.safetensors").is_file()


def test_space_names_its_program_and_its_requirements(monkeypatch):
    space = EXAMPLES / "space"
    front = yaml.safe_load(re.split(r"^---$", (space / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1])
    assert front["sdk"] == "gradio"
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [gradio] = [Requirement(line) for line in project["optional-dependencies"]["demo"]]
    assert gradio.specifier.contains(front["sdk_version"])
    assert (space / front["app_file"]).is_file()
    assert [line for line in (space / "requirements.txt").read_text().splitlines() if not line.startswith("#")] == [
        "promptreid[demo]"
    ]
    given = {}
    monkeypatch.setattr("promptreid.demo.app.launch", lambda gallery, **settings: given.update(settings))
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.delenv("DEMO_PROMPTS", raising=False)
    runpy.run_path(str(space / front["app_file"]), run_name="__main__")
    assert given == {"model": None, "host": "0.0.0.0", "port": 7860}
