"""Writes the page of benchmarks: what each measures, its command, and the figures that are committed.

It reads the scripts and `benchmarks/results/` as they are, so that no figure on it can go stale.
"""

import ast
import json
import re
import textwrap
from pathlib import Path

from reference_pages import write_if_changed
from sphinx.application import Sphinx

INTRODUCTION = """# Benchmarks

Every figure in these pages comes from a command in the repository. These are the commands, and the figures that were
committed to `benchmarks/results/`, as the build found them there. A benchmark without figures here has **not** been run
for the record. Each compares variants in turn in one run: ratios carry over to another machine, seconds do not.

The study of the method itself is on another page: [Evidence](evidence.md).
"""
MOST_ROWS = 60
_CONTEXT = ("date", "machine", "processor", "threads", "versions", "python", "torch", "torchvision", "open_clip")


def flatten(value: object, name: str = "") -> list[tuple[str, str]]:
    """Every number and word of a JSON value, with the names that lead to it; a short list stays in one piece.

    Example:
        >>> flatten({"a": {"b": 0.123456}, "c": [1, 2]})
        [('a · b', '0.1235'), ('c', '1, 2')]
    """
    if isinstance(value, dict):
        pairs = [(f"{name} · {key}" if name else str(key), inner) for key, inner in value.items()]
        return [row for key, inner in pairs for row in flatten(inner, key)]
    if isinstance(value, list):
        if all(not isinstance(inner, dict | list) for inner in value) and len(value) <= 8:
            return [(name, ", ".join(written(inner) for inner in value))]
        return [row for number, inner in enumerate(value, start=1) for row in flatten(inner, f"{name} · {number}")]
    return [(name, written(value))]


def written(value: object) -> str:
    """A number with four significant digits and thousands separators; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def figures(path: Path, root: Path) -> str:
    """The figures of one file as a table, and what they were made with."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        content = {"results": content}
    context = {key: content[key] for key in _CONTEXT if content.get(key) is not None}
    grouped = [flatten(value, "" if isinstance(value, dict) else key) for key, value in context.items()]
    rows = flatten({key: value for key, value in content.items() if key not in _CONTEXT})
    table = "\n".join(f"| {cell(name)} | {cell(value)} |" for name, value in rows[:MOST_ROWS])
    more = f"\n\n… and {len(rows) - MOST_ROWS} more in the file." if len(rows) > MOST_ROWS else ""
    stamp = "; ".join(f"{name} {value}" for group in grouped for name, value in group if value != "None")
    file = path.relative_to(root).as_posix()
    return f"`{file}`{f' ({stamp})' if stamp else ''}:\n\n| figure | value |\n|---|---|\n{table}{more}\n"


def section(path: Path, root: Path) -> str:
    """One benchmark, or nothing if the file is not a program."""
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    if docstring is None or "__main__" not in source:
        return ""
    name = path.relative_to(root).as_posix()
    first, _, rest = docstring.partition("\n")
    shown = [figures(result, root) for result in results_of(path.stem, root / "benchmarks")] or [
        "**No figures are committed.**\n"
    ]
    return "\n".join([f"## `{name}`\n", f"{first}\n", *map(paragraph, paragraphs(rest)), *shown])


def results_of(program: str, benchmarks: Path) -> list[Path]:
    """The committed files of a program: named like it, or it and a variant, or the summary in a folder of its own."""
    others = {path.stem for path in benchmarks.glob("*.py")} - {program}
    results = benchmarks / "results"
    found = [
        path
        for path in sorted([*results.glob(f"{program}*.json"), *results.glob(f"gpu/{program}*.json")])
        if f"{path.stem}_".startswith(f"{program}_")
        and not any(len(other) > len(program) and f"{path.stem}_".startswith(f"{other}_") for other in others)
    ]
    return [*found, *results.glob(f"{program.replace('_', '-')}/summary.json")]


def paragraphs(text: str) -> list[str]:
    """What empty lines separate."""
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def paragraph(text: str) -> str:
    """Prose as it is, commands as a block."""
    is_code = text.startswith(("    ", "python ", "make "))
    return f"```text\n{textwrap.dedent(text)}\n```\n" if is_code else f"{text}\n"


def write_benchmarks(root: Path, page: Path) -> None:
    """The page, from the scripts and results of a repository."""
    sections = [section(path, root) for path in sorted((root / "benchmarks").glob("*.py"))]
    write_if_changed(page, "\n".join([INTRODUCTION, *filter(None, sections)]))


def _write(app: Sphinx) -> None:
    source = Path(app.srcdir)
    write_benchmarks(source.parent, source / "benchmarks.md")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the page before Sphinx looks for pages."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
