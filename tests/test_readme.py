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


def test_no_code_is_cut_where_a_repository_shows_the_readme():
    # 830 pixels, 16 of margin on both sides, letters of 8.2.
    blocks = re.findall(r"^```.*?^```", README, flags=re.DOTALL | re.MULTILINE)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 97]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number, tmp_path, monkeypatch, capsys):
    from promptreid.synthetic import write_generated

    monkeypatch.chdir(tmp_path)
    write_generated("crops", num_identities=(4, 2, 2), seed=0)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), {})
    assert "(100.000%)" not in capsys.readouterr().out  # before a stage has frozen anything it would say nothing
