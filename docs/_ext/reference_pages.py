"""Writes the API reference, room by room, from the source tree as it is: a new module needs nobody's doing."""

from pathlib import Path

from sphinx.application import Sphinx

import promptreid

PACKAGE = Path(promptreid.__file__).parent
ROOMS = {
    "model": "Prompted models",
    "prompts": "Kinds of prompts",
    "towers": "Towers: any open_clip model",
    "data": "Data sets",
    "synthetic": "Synthetic pedestrians",
    "losses": "Losses",
    "training": "Stages and training",
    "evaluation": "Evaluation",
    "retrieval": "Galleries and pictures",
    "hub": "Files and the Hub",
    "cli": "Command line",
    "demo": "Demo",
}
ALONE = ("errors", "files", "version")


def modules(folder: Path) -> list[str]:
    """Every public module of a package or a file, in the order of their names."""
    if folder.is_file():
        return [f"promptreid.{folder.stem}"]
    names: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(("promptreid", *parts)))
    return names


def page(title: str, names: list[str]) -> str:
    """One page: a heading a module, and all that it documents."""
    parts = [f"# {title}\n"]
    parts += [f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in names]
    return "\n".join(parts)


def public_names() -> str:
    """The table of what `promptreid` itself offers."""
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
    """Leave a page alone that has not changed, so that Sphinx does not build it anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_api(folder: Path) -> None:
    """The index and a page a room."""
    rooms = {room: title for room, title in ROOMS.items() if (PACKAGE / room).exists()}
    for room, title in rooms.items():
        write_if_changed(folder / f"{room}.md", page(title, modules(PACKAGE / room)))
    alone = [name for stem in ALONE for name in modules(PACKAGE / f"{stem}.py")]
    write_if_changed(folder / "rest.md", page("Errors, files, version", alone))
    toctree = "\n".join([*rooms, "rest"])
    write_if_changed(
        folder / "index.md",
        "# API reference\n\n"
        "These names are the public ones: `from promptreid import …`. What is below them, by room, is documented "
        "and typed too, but may move until version 1.0.\n\n"
        f"{public_names()}\n\n```{{toctree}}\n:maxdepth: 1\n\n{toctree}\n```\n",
    )


def _write(app: Sphinx) -> None:
    write_api(Path(app.srcdir) / "api")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for pages."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
