"""Keeps the index in step with the pages that are there, so that the site builds from every commit."""

from pathlib import Path

from sphinx.application import Sphinx

COMING = (
    "backbones",
    "command_line",
    "coverage",
    "data",
    "demo",
    "evaluation",
    "evidence",
    "generated",
    "hub",
    "losses",
    "searching",
    "training",
    "guides/onnx",
)


def _mend_index(app: Sphinx, docname: str, content: list[str]) -> None:
    """Drop pages that are not there, and add those at the top that the index does not name."""
    if docname != "index":
        return
    folder = Path(app.srcdir)
    absent = {name for name in COMING if not (folder / f"{name}.md").is_file()}
    lines = [line for line in content[0].split("\n") if line.strip() not in absent]
    unnamed = sorted(path.stem for path in folder.glob("*.md") if path.stem not in {*lines, "index", "README"})
    place = lines.index("changelog")
    content[0] = "\n".join([*lines[:place], *unnamed, *lines[place:]])


def setup(app: Sphinx) -> dict[str, bool]:
    """Come before the page is parsed."""
    app.connect("source-read", _mend_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
