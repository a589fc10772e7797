"""The README's Python runs as it stands, and its commands are those that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_snippets_to_run():
    assert SNIPPETS


def test_commands_that_the_readme_names_are_targets():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number, tmp_path, monkeypatch):
    from promptreid.synthetic import write_generated

    monkeypatch.chdir(tmp_path)
    write_generated("crops", num_identities=(4, 2, 2), seed=0)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {})


def test_commands_of_the_readme_work_in_order_as_pasted(tmp_path, monkeypatch, capsys):
    import shlex

    from promptreid.cli import try_search
    from promptreid.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(try_search, "PEOPLE", (40, 2, 3))
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("promptreid ")]
    assert lines[0].startswith("promptreid try ")
    commands = [line.split()[1] for line in lines]
    assert commands == ["try", "index", "search", "check", "train", "evaluate", "push"]
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    for snippet in SNIPPETS[:1]:
        exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize("page", ["index", "searching", "serving"])
def test_commands_of_a_page_work_in_order_on_what_try_draws(page, tmp_path, monkeypatch, capsys):
    import shlex

    from promptreid.cli import try_search
    from promptreid.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(try_search, "PEOPLE", (2, 1, 3))
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^\$ promptreid (.*)$", "\n".join(blocks), flags=re.MULTILINE)
    assert lines
    for line in ["try", *lines]:
        assert main(shlex.split(line)) == 0, capsys.readouterr().err
