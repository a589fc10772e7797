"""Lets docstrings use Markdown's fenced code blocks beside reStructuredText."""

from typing import Any

from sphinx.application import Sphinx


def fenced_to_directive(lines: list[str]) -> list[str]:
    """Turn every fenced block into a `code-block` directive."""
    out: list[str] = []
    fence: str | None = None
    for line in lines:
        text = line.strip()
        if fence is None and text.startswith("```"):
            fence = line[: len(line) - len(line.lstrip())]
            out += [f"{fence}.. code-block:: {text[3:] or 'text'}", ""]
        elif fence is not None and text == "```":
            fence = None
            out.append("")
        else:
            out.append(f"   {line}" if fence is not None and text else line)
    return out


def _replace_fences(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = fenced_to_directive(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before napoleon, which listens to the same event."""
    app.connect("autodoc-process-docstring", _replace_fences, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
