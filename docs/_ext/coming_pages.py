"""Leaves pages out of the index that are not written yet, so that the site builds from every commit."""

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
    "search",
    "training",
    "guides/onnx",
)


def _leave_out(app: Sphinx, docname: str, content: list[str]) -> None:
    if docname != "index":
        return
    absent = {name for name in COMING if not (Path(app.srcdir) / f"{name}.md").is_file()}
    content[0] = "\n".join(line for line in content[0].split("\n") if line.strip() not in absent)


def setup(app: Sphinx) -> dict[str, bool]:
    """Come before the page is parsed."""
    app.connect("source-read", _leave_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
