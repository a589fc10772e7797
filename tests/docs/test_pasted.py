"""The commands of a page run as they stand, in order, in an empty folder: nobody types them and sees an error."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from promptreid.cli import try_search
from promptreid.cli.main import main

ROOT = Path(__file__).parents[2]
PASTED = ["README", "docs/index", "docs/quick_start", "docs/command_line", "docs/searching", "docs/serving"]
TRY = 'promptreid try "a man in a green jacket"'
BLOCK = re.compile(r"^```(?:bash|(?P<session>console))\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)
# How a line begins that is not run here, and why.
NOT_RUN = {
    "pip install": "installs",
    "python3 -m venv": "installs",
    "xdg-open": "opens a window",
    "curl": "asks the service, whose own test does",
    "docker": "builds a container",
    "python examples/service.py": "serves until Ctrl-C; tests/examples/test_service.py",
    "python examples/train_cuhk.py --data-root": "wants a dataset that we may not have",
    "torchrun": "starts several processes; tests/cli/test_torchrun.py",
    "promptreid demo": "serves until Ctrl-C; tests/demo",
}


def commands(page: str) -> list[str]:
    """What a reader copies, a command a line, after what draws the people it is about."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    lines: list[str] = []
    for block in BLOCK.finditer(text):
        joined = block["text"].replace("\\\n", " ")
        if block["session"]:
            lines += re.findall(r"^\$ (.*)$", joined, flags=re.MULTILINE)
        else:
            lines += joined.splitlines()
    run = [line for line in lines if line.strip() and not line.startswith(tuple(NOT_RUN))]
    return run if TRY in run else [TRY, *run]


def in_a_folder(line: str) -> str:
    """The same with a folder in place of a bucket."""
    return line.replace("s3://bucket/crops", "bucket")


def needs_what_is_missing(line: str) -> bool:
    return "s3://" in line and find_spec("lancedb") is None


def run_here(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command of ours in this process, which has imported torch already, and any other in a shell."""
    line, _, given = line.partition(" < ")
    if not line.startswith("promptreid "):
        return subprocess.run(["bash", "-c", line], check=False, timeout=60).returncode
    if not given:
        return main(shlex.split(line)[1:])
    with Path(given.strip()).open(encoding="utf-8") as typed, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", typed)
        return main(shlex.split(line)[1:])


@pytest.mark.parametrize("page", PASTED)
def test_commands_of_a_page_work_in_order_as_pasted(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(try_search, "PEOPLE", (20, 2, 3))
    for line in commands(page):
        if line.startswith("python ") or " && " in line or needs_what_is_missing(line):
            continue  # the long form runs them
        assert run_here(in_a_folder(line), monkeypatch) == 0, f"{line}\n{capsys.readouterr().err}"
