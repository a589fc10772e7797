"""What pyproject.toml, CITATION.cff and the code say of one another."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

import promptreid

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "promptreid"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
FOR_TYPES_ALONE = {"typing_extensions"}  # torch brings it
OF_OBJECTS_GIVEN = {"datasets"}  # whoever gives one of its datasets has it
IMPORT_NAMES = {"open_clip_torch": "open_clip", "pillow": "PIL"}
RENAMED = {"export"}


def requirements(lines: list[str]) -> set[str]:
    names = {re.split(r"[<>=!~;\[ ]", line)[0] for line in lines}
    return {IMPORT_NAMES.get(name, name) for name in names}


def imports(path: Path) -> set[str]:
    """Top-level names of all packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"promptreid"}


def test_every_import_is_a_dependency_or_in_an_extra():
    extras = {name for lines in PROJECT["optional-dependencies"].values() for name in requirements(lines)}
    declared = requirements(PROJECT["dependencies"]) | FOR_TYPES_ALONE | OF_OBJECTS_GIVEN | extras
    undeclared = {str(path.relative_to(SOURCE)): imports(path) - declared for path in sorted(SOURCE.rglob("*.py"))}
    assert not {path: names for path, names in undeclared.items() if names}


def test_extras_that_errors_name_exist():
    named = {
        extra
        for path in SOURCE.rglob("*.py")
        for group in re.findall(r"promptreid\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named
    assert named <= PROJECT["optional-dependencies"].keys() - RENAMED


def test_every_dependency_has_a_lower_bound():
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    assert not [line for line in lines if ">=" not in line and not line.startswith("promptreid[")]


def test_extra_all_holds_every_extra_for_users():
    (line,) = PROJECT["optional-dependencies"]["all"]
    everything = set(re.search(r"\[(.*)\]", line)[1].split(","))
    assert everything == PROJECT["optional-dependencies"].keys() - {"all"} - RENAMED


def test_make_sbom_writes_the_version_where_pyproject_has_a_dynamic_one():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (made,) = re.findall(
        r"^\tsed \"s/(.+?)/version", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    written = re.sub(made, 'version = "9.9.9"', text, flags=re.MULTILINE)
    assert tomllib.loads(written)["project"]["version"] == "9.9.9"


def test_citation_is_valid_and_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == promptreid.__version__
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    [paper] = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2401.02173"
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Tan", "Dai", "Zhang"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_valid_forms(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form.keys() == {"blank_issues_enabled"}
        return
    assert form.keys() >= {"name", "description", "body"}
    assert all(item["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes") for item in form["body"])
    labels = [item["attributes"]["label"] for item in form["body"] if item["type"] != "markdown"]
    assert len(labels) == len(set(labels)) > 0
