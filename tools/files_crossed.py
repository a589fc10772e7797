"""Count the files that one search and one `load_prompts` pass through: how far a reader has to walk.

    python tools/files_crossed.py

Counted are the files of this package whose code runs during the call, imports apart. `returns` counts how often the
call comes back to a file that it had left.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import promptreid
from promptreid import load_prompts

PACKAGE = str(Path(promptreid.__file__).parent)
SHIPPED = Path(PACKAGE).rglob("prompt_config.json")


def files_crossed(call: Callable[[], Any]) -> dict[str, int]:
    """How many files of the package `call` runs code of, and how often it returns to one that it had left."""
    order: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(PACKAGE) or frame.f_code.co_name == "<module>":
            return
        if not order or order[-1] != name:
            order.append(name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {"files": len(set(order)), "returns": len(order) - len(set(order))}


def main() -> None:
    """Print both counts."""
    from promptreid.cli.main import main as run

    prompts = next(SHIPPED).parent
    load_prompts(prompts)  # so that lazy imports are done
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        crops = Path(scratch, "crops")
        draw(crops)
        gallery = str(Path(scratch, "gallery"))
        run(["index", str(crops), "--output", gallery, "--model", str(prompts)])
        command = ["search", gallery, "a woman in a red coat", "-k", "1"]
        run(command)
        counts = {
            "search": files_crossed(lambda: run(command)),
            "load_prompts": files_crossed(lambda: load_prompts(prompts)),
        }
    print(json.dumps(counts))


def draw(folder: Path) -> None:
    """Two plain crops."""
    from PIL import Image

    folder.mkdir()
    for name, colour in (("a", (200, 30, 30)), ("b", (30, 30, 200))):
        Image.new("RGB", (48, 96), colour).save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
