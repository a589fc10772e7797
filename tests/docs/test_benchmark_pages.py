"""The page of benchmarks says what the scripts and the committed results say, and nothing else."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pages(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    import benchmark_pages

    yield benchmark_pages
    sys.modules.pop("benchmark_pages", None)
    sys.modules.pop("reference_pages", None)


def test_page_shows_the_figures_of_each_benchmark_with_their_machine(pages, tmp_path):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    program = '"""{}\n\npython benchmarks/{}.py\n"""\nif __name__ == "__main__":\n    pass\n'
    (tmp_path / "benchmarks" / "speed.py").write_text(program.format("How fast it is.", "speed"))
    (tmp_path / "benchmarks" / "size.py").write_text(program.format("How large it is.", "size"))
    (tmp_path / "benchmarks" / "helper.py").write_text('"""Not a program."""\n')
    content = {"ratio": {"with | cache": 4.1798, "range": [2.3, 12]}, "machine": "x86_64", "date": "2026-11-25"}
    (results / "speed.json").write_text(json.dumps(content))

    pages.write_benchmarks(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    speed, size = page.index("## `benchmarks/speed.py`"), page.index("## `benchmarks/size.py`")
    assert size < speed
    assert "**No figures are committed.**" in page[size:speed]
    assert "How fast it is." in page[speed:]
    assert "python benchmarks/speed.py" in page[speed:]
    assert "`benchmarks/results/speed.json` (date 2026-11-25; machine x86_64):" in page[speed:]
    assert "| ratio · with \\| cache | 4.18 |" in page[speed:]
    assert "| ratio · range | 2.3, 12 |" in page[speed:]
    assert "helper" not in page


def test_results_belong_to_the_program_of_the_longest_name(pages, tmp_path):
    (tmp_path / "results" / "gpu").mkdir(parents=True)
    (tmp_path / "results" / "growth-store").mkdir()
    for name in ("growth.py", "growth_store.py"):
        (tmp_path / name).touch()
    for name in ("growth", "growth_cpu", "growth_store", "growths", "gpu/growth_store_big", "growth-store/summary"):
        (tmp_path / "results" / f"{name}.json").touch()

    def names(program):
        return {path.relative_to(tmp_path / "results").as_posix() for path in pages.results_of(program, tmp_path)}

    assert names("growth") == {"growth.json", "growth_cpu.json"}
    assert names("growth_store") == {"growth_store.json", "gpu/growth_store_big.json", "growth-store/summary.json"}


def test_machine_and_versions_of_a_record_stand_in_one_line(pages, tmp_path):
    machine = {"processor": "A Chip", "threads": 2, "gpu": None}
    content = {"ratio": 2.0, "machine": machine, "versions": {"torch": "2.14"}, "date": "2026-11-26"}
    (tmp_path / "new.json").write_text(json.dumps(content))
    shown = pages.figures(tmp_path / "new.json", tmp_path)
    assert "`new.json` (date 2026-11-26; processor A Chip; threads 2; torch 2.14):" in shown
    assert "| ratio | 2 |" in shown


def test_commands_stand_in_blocks_and_prose_does_not(pages):
    found = pages.paragraphs("\n    python a.py  # one\n    python a.py --two\n\nWhat it is\nabout.\n")
    assert [pages.paragraph(part) for part in found] == [
        "```text\npython a.py  # one\npython a.py --two\n```\n",
        "What it is\nabout.\n",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (68126, "68,126"), (1234567.8, "1,234,568"), (True, "True"), (None, "None"), ("a|b", "a|b")],
)
def test_written_numbers_keep_four_digits(pages, value, text):
    assert pages.written(value) == text


def test_lists_of_tables_are_numbered(pages):
    assert pages.flatten([{"a": 1}, {"a": 2}], "x") == [("x · 1 · a", "1"), ("x · 2 · a", "2")]


def test_long_files_are_cut_with_a_count(pages, tmp_path):
    path = tmp_path / "long.json"
    path.write_text(json.dumps({f"figure {number}": number for number in range(75)}))
    assert "… and 15 more in the file." in pages.figures(path, tmp_path)
