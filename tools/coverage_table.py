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
from dataclasses import dataclass
from pathlib import Path

import open_clip
import zoo
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, load_clip
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
those of [Kinds of prompts](prompts.md): {kinds}.

## In short

{summary}

## What is refused, and why

Beside a text prefix, an image tower without blocks may have no prompts: `vision_length=0`.

{refused}

## Every architecture

| model | image tower | image slot | image pooling | text tower | text slot | text pooling | captions cut | kinds |
|---|---|---|---|---|---|---|---|---|
"""


KINDS = {
    "independent": PromptConfig(),
    "kept": PromptConfig(text_depth=1, vision_depth=1),
    "coupled": PromptConfig(kind="coupled"),
    "prefix": PromptConfig(kind="prefix"),
    "grouped": PromptConfig(kind="grouped", groups=("a", "b")),
}


@dataclass(frozen=True)
class Model:
    """An architecture: both towers, and of each kind that it does not take the reason."""

    vision: TokenTower | PixelTower
    text: TextTower
    refused: dict[str, str]

    @property
    def kinds(self) -> str:
        """Which kinds it takes."""
        return f"all but {', '.join(self.refused)}" if self.refused else "all"


def describe(name: str) -> Model:
    """Describe an architecture."""
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clip = load_clip(name, image_size=(224, 224))
    reasons = {kind: refusal(clip, config) for kind, config in KINDS.items()}
    refused = {kind: reason for kind, reason in reasons.items() if reason is not None}
    return Model(find_vision_tower(clip), find_text_tower(clip), refused)


def refusal(clip: nn.Module, config: PromptConfig) -> str | None:
    """Why a model does not take prompts that are set up like this; `None` if it does."""
    try:
        PromptedCLIP(clip, config, initialize=False, base_fingerprint=()).detach()
    except ValueError as error:
        return str(error)
    return None


def refusals(models: list[Model]) -> str:
    """Each reason, with how many models it concerns."""
    counts = Counter((kind, reason) for model in models for kind, reason in model.refused.items())
    rows = [f"| {kind} | {count} | {reason} |" for (kind, reason), count in sorted(counts.items())]
    return "\n".join(["| kind | models | message |", "|---|---|---|", *rows])


def slot_of(vision: TokenTower | PixelTower) -> str:
    """Where prompts go in an image tower."""
    if isinstance(vision, PixelTower):
        return "border pixels" + ("; attention pool as an option" if vision.attention_pool is not None else "")
    first = {0: "first in the sequence", 1: "after the class token"}
    return first.get(vision.slot, f"after {vision.slot} tokens")


def summary(towers: list[Model]) -> str:
    """How many models there are of each kind."""
    lines = ["| tower | models |", "|---|---|"]
    for word, kinds in (
        ("image", [each.vision.kind for each in towers]),
        ("text", [each.text.kind for each in towers]),
    ):
        lines += [f"| {word}: `{kind}` | {count} |" for kind, count in Counter(kinds).most_common()]
    lines += [
        f"| kinds of prompts: {kinds} | {count} |" for kinds, count in Counter(row.kinds for row in towers).items()
    ]
    exact = Counter(each.text.trim != "never" for each in towers)
    lines += [f"| captions cut | {exact[True]} |", f"| captions never cut | {exact[False]} |"]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    names = zoo.names()
    towers = [describe(name) for name in names]
    rows = [
        f"| {name} | `{each.vision.kind}` | {slot_of(each.vision)} | {each.vision.pooling} | `{each.text.kind}` | "
        f"after the first token | {each.text.pooling} | {TRIMS[each.text.trim]} | {each.kinds} |"
        for name, each in zip(names, towers, strict=True)
    ]
    head = HEAD.format(
        count=len(names),
        version=open_clip.__version__,
        kinds=", ".join(KINDS),
        summary=summary(towers),
        refused=refusals(towers),
    )
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
