"""Writes the API reference, room by room, from the source tree, so that a new module appears without further work."""

from pathlib import Path

from sphinx.application import Sphinx

import promptreid

PACKAGE = Path(promptreid.__file__).parent
ROOMS = {
    "model": "Prompted models",
    "prompts": "Kinds of prompts",
    "towers": "Towers: any open_clip model",
    "data": "Datasets",
    "synthetic": "Synthetic pedestrians",
    "losses": "Losses",
    "training": "Stages and training",
    "adaptation": "The whole method in one call",
    "evaluation": "Evaluation",
    "retrieval": "Galleries and search",
    "hub": "Files and the Hub",
    "cli": "Command line",
    "demo": "Demo",
}
REST = ("errors", "files", "lazy", "version")


def modules(room: str) -> list[str]:
    """Every public module of a room, which is a package or a single file, sorted by name."""
    names: list[str] = []
    for path in sorted([*PACKAGE.glob(f"{room}.py"), *(PACKAGE / room).rglob("*.py")]):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(("promptreid", *parts)))
    return names


def page(title: str, names: list[str]) -> str:
    """One page: for each module a heading and everything it documents."""
    parts = [f"# {title}\n"]
    parts += [f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in names]
    return "\n".join(parts)


def public_names() -> str:
    """The table of the names that `promptreid` itself exports."""
    rows: list[str] = []
    for name in promptreid.__all__:
        thing = getattr(promptreid, name)
        if name.startswith("__"):
            continue
        role = "class" if isinstance(thing, type) else "func"
        first = (thing.__doc__ or "").strip().splitlines()[0]
        rows.append(f"| {{py:{role}}}`{name} <{thing.__module__}.{thing.__qualname__}>` | {first} |")
    return "\n".join(["| name | what it is |", "|---|---|", *sorted(rows, key=str.lower)])


def write_if_changed(path: Path, text: str) -> None:
    """Leave an unchanged page alone, so that Sphinx does not build it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_api(folder: Path) -> None:
    """The index and one page for each room."""
    pages = {room: page(title, modules(room)) for room, title in ROOMS.items()}
    pages["rest"] = page("Errors, files, lazy names, version", [name for stem in REST for name in modules(stem)])
    for room, text in pages.items():
        write_if_changed(folder / f"{room}.md", text)
    toctree = "\n".join(pages)
    write_if_changed(
        folder / "index.md",
        "# API reference\n\n"
        "These are the public names: `from promptreid import …`. The modules below, listed by room, are documented "
        "and typed too, but may move until version 1.0.\n\n"
        f"{public_names()}\n\n```{{toctree}}\n:maxdepth: 1\n\n{toctree}\n```\n",
    )


def _write(app: Sphinx) -> None:
    write_api(Path(app.srcdir) / "api")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for pages."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
