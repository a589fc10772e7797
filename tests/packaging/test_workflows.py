"""The workflows run what people and .ci/run run: targets of the Makefile."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from promptreid import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):(?!=)", MAKEFILE, flags=re.MULTILINE))
# What a fresh machine needs before make can run, and what must come before anything is installed.
OTHER_STEPS = {
    "choco install --yes --no-progress make",
    'python -m pip install "uv>=0.7"',
    "python tools/check_release.py",
}
PROMISED = [
    line.rpartition(" ")[2]
    for line in SETTINGS["project"]["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
]


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def commands(path):
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


def tool(name, *words):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / name, *words], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_step_is_a_target_of_the_makefile(path):
    found = commands(path)
    assert found
    for command in found:
        words = shlex.split(command)
        targets = {word for word in words[1:] if "=" not in word}
        assert command in OTHER_STEPS or (words[0] == "make" and targets <= TARGETS), command


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_and_may_only_read(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    used = [step["uses"] for job in content["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", name) for name in used)


def test_every_promised_python_is_tested():
    (path,) = (path for path in WORKFLOWS if path.stem == "tests")
    assert jobs(path)["linux"]["strategy"]["matrix"]["python"] == PROMISED
    assert SETTINGS["project"]["requires-python"] == f">={PROMISED[0]}"
    assert {"macos-latest", "windows-latest"} == set(jobs(path)["other-systems"]["strategy"]["matrix"]["system"])


def test_only_the_job_that_publishes_may_have_a_token_and_an_environment_guards_it():
    (path,) = (path for path in WORKFLOWS if path.stem == "release")
    having = {name: job for name, job in jobs(path).items() if "id-token" in job.get("permissions", {})}
    assert having.keys() == {"publish"}
    assert having["publish"]["environment"] == "release"
    assert having["publish"]["needs"] == "build"
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_ci_runs_what_the_readme_says():
    (line,) = re.findall(r"^make (.+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(line.split()) <= TARGETS
    assert f"`make {line}`" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_install_names_every_tool_of_the_groups_with_what_they_include():
    shown = tool("install.py", "--dry-run", "--groups", "dev,browser").stdout
    for name in ("furo>=", "ruff>=", "playwright>=", "[train,viz,hf,parquet,onnx]"):
        assert name in shown
    assert "include-group" not in shown


def test_install_for_the_cpu_takes_torch_from_uv():
    first, second = tool("install.py", "--dry-run", "--cpu").stdout.splitlines()
    assert "-m pip install --quiet uv" in first
    assert "-m uv pip install" in second
    assert "--torch-backend cpu" in second


def test_install_of_an_unknown_group_names_those_there_are():
    failed = tool("install.py", "--dry-run", "--groups", "developers")
    assert failed.returncode == 1
    assert "no dependency group 'developers'; it has audit, browser, dev, docs, notebook" in failed.stderr


@pytest.fixture
def release(tmp_path):
    """A tree that is ready to be released as 9.9.9, and the check of it."""
    (tmp_path / "src" / "promptreid").mkdir(parents=True)
    (tmp_path / "tools").mkdir()
    script = (ROOT / "tools" / "check_release.py").read_text(encoding="utf-8")
    (tmp_path / "tools" / "check_release.py").write_text(script, encoding="utf-8")
    (tmp_path / "src" / "promptreid" / "version.py").write_text('__version__ = "9.9.9"\n', encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text("version: 9.9.9\ndate-released: 2030-01-01\n", encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [9.9.9] - 2030-01-01\n\n## [9.9.8] - 2029-01-01\n")

    def check(tag):
        return subprocess.run(
            [sys.executable, tmp_path / "tools" / "check_release.py", tag], capture_output=True, text=True, check=False
        )

    return tmp_path, check


def test_release_that_agrees_with_its_tag_passes(release):
    _, check = release
    assert check("v9.9.9").returncode == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("CITATION.cff", "9.9.9", "9.9.8", "CITATION.cff says 9.9.8, version.py says 9.9.9"),
        ("CITATION.cff", "2030-01-01", "2029-12-31", "released on 2029-12-31, CHANGELOG.md says 2030-01-01"),
        ("CHANGELOG.md", "## [9.9.9]", "## [9.9.10]", "CHANGELOG.md says 9.9.10"),
        ("CHANGELOG.md", "## [9.9.9]", "## Unreleased\n\n## [9.9.9]", "still has a section Unreleased"),
        ("src/promptreid/version.py", "9.9.9", "9.9.10", "the tag is 'v9.9.9', expected 'v9.9.10'"),
    ],
)
def test_release_that_contradicts_itself_is_refused(release, file, old, new, said):
    root, check = release
    text = (root / file).read_text(encoding="utf-8")
    (root / file).write_text(text.replace(old, new), encoding="utf-8")
    refused = check("v9.9.9")
    assert refused.returncode == 1
    assert said in refused.stdout


def test_the_version_is_one_that_a_tag_can_name():
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?", __version__)
