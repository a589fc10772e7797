"""Writes docs/coverage.md: where prompts go in every architecture that open_clip names.

    python tools/coverage_table.py            # write it
    python tools/coverage_table.py --check    # fail if it is out of date

Every model is built with shrunken layers and described by what the library finds in it, so the table says what the
code does.
"""

import argparse
import sys
import warnings
from collections import Counter
from pathlib import Path

import open_clip
import zoo
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.prompts.config import PROMPT_FORMS
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.towers.tower import PixelTower, TextTower, TokenTower

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
TRIMS = {
    "never": "no: what follows the caption is attended to or pooled",
    "end": "yes",
    "class_at_end": "yes, keeping the class token",
    "slice": "yes, fewer token ids",
}
HEAD = """# Which models take prompts

Every architecture that `open_clip.list_models()` names takes prompts in both encoders: {count} in open_clip
{version}. This page is written by `python tools/coverage_table.py`, from the models themselves.

*Slot* is where prompts are inserted: after how many tokens of the sequence, or on the image's border. *Captions
cut* says whether a batch is cut to its longest caption. It is cut only where that changes no feature. *Kinds* are
those of `PromptConfig(kind=…)`; coupled prompts need an image tower with a token sequence.

## In short

{summary}

## Every architecture

| model | image tower | image slot | image pooling | text tower | text slot | text pooling | captions cut | kinds |
|---|---|---|---|---|---|---|---|---|
"""


def describe(name: str) -> tuple[TokenTower | PixelTower, TextTower, str]:
    """Both towers of an architecture, and the kinds of prompts that it takes."""
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clip = load_clip(name, image_size=(224, 224))
    return find_vision_tower(clip), find_text_tower(clip), ", ".join(kind for kind in PROMPT_FORMS if takes(clip, kind))


def takes(clip: nn.Module, kind: str) -> bool:
    """Whether a model takes a kind of prompts."""
    try:
        PromptedCLIP(clip, PromptConfig(kind=kind), initialize=False, base_fingerprint=()).detach()
    except ValueError:
        return False
    return True


def slot_of(vision: TokenTower | PixelTower) -> str:
    """Where prompts go in an image tower."""
    if isinstance(vision, PixelTower):
        return "border pixels" + ("; attention pool as an option" if vision.attention_pool is not None else "")
    first = {0: "first in the sequence", 1: "after the class token"}
    return first.get(vision.slot, f"after {vision.slot} tokens")


def summary(towers: list[tuple[TokenTower | PixelTower, TextTower, str]]) -> str:
    """How many models there are of each kind."""
    lines = ["| tower | models |", "|---|---|"]
    for index, word in ((0, "image"), (1, "text")):
        counts = Counter(pair[index].kind for pair in towers)
        lines += [f"| {word}: `{kind}` | {count} |" for kind, count in counts.most_common()]
    lines += [f"| kinds of prompts: {kinds} | {count} |" for kinds, count in Counter(row[2] for row in towers).items()]
    exact = Counter(text.trim != "never" for _, text, _ in towers)
    lines += [f"| captions cut | {exact[True]} |", f"| captions never cut | {exact[False]} |"]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    names = zoo.names()
    towers = [describe(name) for name in names]
    rows = [
        f"| {name} | `{vision.kind}` | {slot_of(vision)} | {vision.pooling} | `{text.kind}` | after the first token | "
        f"{text.pooling} | {TRIMS[text.trim]} | {kinds} |"
        for name, (vision, text, kinds) in zip(names, towers, strict=True)
    ]
    head = HEAD.format(count=len(names), version=open_clip.__version__, summary=summary(towers))
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    arguments = parser.parse_args()
    text = page()
    if arguments.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is out of date; run python tools/coverage_table.py")
        return
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
