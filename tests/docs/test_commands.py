"""Commands that the documentation shows name targets, files and sub-commands that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    if not {"_build", "api", "drawn"} & set(page.relative_to(ROOT).parts) and page != DOCS / "benchmarks.md"
]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


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
