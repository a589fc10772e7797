"""The map of the code in CONTRIBUTING.md names every room, in the order of imports, and paths that exist."""

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "promptreid"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[str]:
    """The first cell of each row of the table under a heading."""
    section = CONTRIBUTING.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (.*?) \|", section, re.MULTILINE)[1:]


def rooms_on_the_map() -> list[str]:
    return [room for row in rows("Map of the code") for room in re.findall(r"`([a-z]+)(?:\.py)?`", row)]


def test_map_names_every_room_and_no_other():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert sorted(rooms_on_the_map()) == sorted(folders | files)


def test_map_goes_from_what_may_be_imported_to_what_imports_it():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    level = {
        room: number
        for number, layer in enumerate(reversed(layers))
        for room in re.findall(r"promptreid\.([a-z]+)", layer)
    }
    levels = [level[room] for room in rooms_on_the_map() if room in level]
    assert len(levels) >= 12
    assert levels == sorted(levels)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/extending.md", "docs/paper.md"])
def test_paths_that_a_page_names_exist(page):
    named = set(re.findall(r"`([\w./]+(?:/|\.py|\.md))`", (ROOT / page).read_text(encoding="utf-8")))
    paths = {name for name in named if "/" in name}
    assert paths
    assert not [name for name in sorted(paths) if not any((base / name).exists() for base in (ROOT, PACKAGE))]


def test_every_extension_point_of_the_extending_page_has_its_row():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    points = [heading.split(" ", 1)[1].lower() for heading in re.findall(r"^## (An? .+)$", page, re.MULTILINE)]
    assert len(points) == 10
    assert rows("I want to add …")[: len(points)] == points
