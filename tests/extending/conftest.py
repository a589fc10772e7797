"""Runs the examples of docs/extending.md: the very text of the page, not a copy of it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def example_of(section: str) -> str:
    """The Python of a section; each has exactly one block."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    [block] = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture
def run_example(reader_folder, tables_restored, tmp_path, monkeypatch) -> Callable[[str], SimpleNamespace]:
    """Runs the example of a section as a reader would, and gives the names that it defines."""

    def run(section: str) -> SimpleNamespace:
        shutil.copytree(reader_folder, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        names: dict[str, object] = {"__name__": "example"}
        exec(compile(example_of(section), f"{PAGE.name}, {section}", "exec"), names)
        return SimpleNamespace(**names)

    return run


@pytest.fixture
def examples() -> dict[str, str]:
    """The examples by section."""
    sections = re.findall(r"^## (An? .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {section: example_of(section) for section in sections}
