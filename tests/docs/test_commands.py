"""Commands that the documentation shows name targets, files and sub-commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

from promptreid.cli.main import UsageError, build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    if not {"_build", "api", "drawn"} & set(page.relative_to(ROOT).parts) and page != DOCS / "benchmarks.md"
]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def shell_blocks(page):
    return re.findall(r"^```(?:console|bash)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    named = {
        word for line in re.findall(r"(?:`|^|\$ |&& )make ([a-z -]+)", text, re.MULTILINE) for word in line.split()
    }
    assert named <= TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_scripts_exist(page):
    scripts = set(re.findall(r"\b((?:examples|benchmarks|tools|tests)/[\w/]+\.py)\b", page.read_text(encoding="utf-8")))
    assert not sorted(script for script in scripts if not (ROOT / script).is_file())


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_ours_take_the_arguments_that_are_shown(page, tmp_path, monkeypatch):
    lines = re.findall(r"^(?:\$ )?promptreid (.*)$", "\n".join(shell_blocks(page)), flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(re.split(" [<>] ", line)[0], comments=True)
        for word in words:  # the folders that a reader has
            if re.fullmatch(r"[\w-]+(/[\w-]+)*/?", word) and not word.startswith("-"):
                (tmp_path / word).mkdir(parents=True, exist_ok=True)
        build_parser().parse_args(words)  # ends the test if it does not know them


def test_there_are_commands_of_ours_to_check():
    assert any("promptreid search" in block for page in PAGES for block in shell_blocks(page))
    with pytest.raises(UsageError, match="no-such-option"):
        build_parser().parse_args(["search", "gallery", "a man", "--no-such-option"])
