"""The commands of a page run as they stand, in order, in an empty folder: a reader who pastes them gets no error."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from promptreid.cli import try_search
from promptreid.cli.main import main

ROOT = Path(__file__).parents[2]
PASTED = ["README", "docs/index", "docs/quick_start", "docs/command_line", "docs/searching", "docs/serving"]
TRY = 'promptreid try "a man in a green jacket"'
BLOCK = re.compile(r"^```(?:bash|(?P<session>console))\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
BUCKET = "s3://bucket/crops"
# How a line begins that is not run here, and why.
NOT_RUN = {
    "pip install": "installs",
    "python3 -m venv": "installs, and then trains for minutes or runs the tests",
    "xdg-open": "opens a window",
    "curl": "asks the service; tests/examples/test_service.py",
    "docker": "builds and runs a container",
    "python examples/service.py": "serves until Ctrl-C; tests/examples/test_service.py",
    "python examples/train_cuhk.py": "trains for minutes; tests/examples/test_train_cuhk.py",
    "promptreid completion": "wants an extra; tests/cli/test_complete_shell.py",
    "promptreid train crops --output compared": "trains six times; tests/cli/test_train_model.py",
    "torchrun": "starts several processes; tests/training/test_processes.py",
}


def commands(page: str) -> list[str]:
    """What a reader copies, a command a line, after what draws the people it is about."""
    lines: list[str] = []
    for block in BLOCK.finditer((ROOT / f"{page}.md").read_text(encoding="utf-8")):
        joined = block["text"].replace("\\\n", " ")
        lines += re.findall(r"^\$ (.*)$", joined, flags=re.MULTILINE) if block["session"] else joined.splitlines()
    run = [line for line in lines if line.strip() and not line.startswith(tuple(NOT_RUN))]
    if find_spec("lancedb") is None:
        run = [line for line in run if BUCKET not in line]
    run = [line.replace(BUCKET, "bucket") for line in run]  # a folder is a store as well
    return run if TRY in run else [TRY, *run]


def codes(line: str) -> set[int]:
    """Exit codes that are no mistake: nobody may reach a threshold."""
    return {0, 1} if "--threshold" in line else {0}


def run_here(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command of ours in this process, which has imported torch already, and any other in a shell."""
    line, _, typed = line.replace("--epochs 2 4", "--epochs 1 1").partition(" < ")
    if not line.startswith("promptreid "):
        return subprocess.run(["bash", "-c", line], check=False, timeout=60).returncode
    with open(typed.strip() or os.devnull, encoding="utf-8") as stdin, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        return main(shlex.split(line)[1:])


@pytest.mark.posix
def test_commands_of_the_pages_work_in_order_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(try_search, "PEOPLE", (20, 5, 3))
    seen: set[str] = set()
    for page in PASTED:
        for line in commands(page):
            if line not in seen:
                assert run_here(line, monkeypatch) in codes(line), f"{page}: {line}\n{capsys.readouterr().err}"
            seen.add(line)
    assert {line.split()[1] for line in seen if line.startswith("promptreid ")} >= {
        "try", "index", "search", "calibrate", "check", "train", "evaluate", "push",
    }  # fmt: skip


@pytest.mark.posix
@pytest.mark.slow
@pytest.mark.parametrize("page", PASTED)
def test_commands_of_a_page_work_in_a_shell_at_full_size(page, tmp_path):
    ours = f'promptreid() {{ {shlex.quote(sys.executable)} -m promptreid "$@"; }}'
    lines = [line + " || [ $? = 1 ]" * (1 in codes(line)) for line in commands(page)]
    script = "\n".join(["set -eux", ours, *lines])
    found = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "crops").is_dir()
    assert (tmp_path / "found.png").is_file()
