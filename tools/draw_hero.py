"""Draws the README's first figure: two sentences that the shipped prompts answer well, and five crops each.

The people are the 200 test persons of a drawn set (800 crops and 1,600 sentences, seed 0). Of the sentences of at most
twenty words, two with the highest average precision are taken, one a person.

python tools/draw_hero.py                # docs/pictures/hero.png; under a minute
"""

import argparse
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from promptreid import load_prompts
from promptreid.data import load_dataset
from promptreid.evaluation.evaluate import EncodedSplit, encode_split, score
from promptreid.evaluation.pictures.canvas import GREEN, VERMILION, save_figure
from promptreid.evaluation.pictures.ranking import Ranking, rank_captions
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import tiny_prompts

HERO = Path(__file__).parents[1] / "docs" / "pictures" / "hero.png"
IDENTITIES, SENTENCES, WORDS, CROPS = (600, 100, 200), 2, 20, 5
INK, PAPER, ENLARGED = "#1f2328", "#ffffff", 4  # the crops are 48 × 112 pixels


def main() -> None:
    """Draw people, rank them, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERO, help="PNG file; default %(default)s")
    parser.add_argument("--identities", type=int, nargs=3, default=IDENTITIES, help="persons; default %(default)s")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_generated(folder, num_identities=tuple(settings.identities), seed=0, progress=False)
        encoded = encode_split(load_prompts(tiny_prompts()), load_dataset(data).test, progress=False)
        scores: Any = score(encoded, per_query=True).text_to_image
        precisions = scores.queries.average_precision
        print(f"{int((precisions == 1).sum())} of {len(precisions):,} sentences are answered without a mistake;")
        print(f"the first crop is right for {scores.rank1:.1%}")
        chosen = best_sentences(encoded, precisions)
        draw(settings.output, rank_captions(encoded, chosen, k=CROPS), counts(encoded, chosen))


def best_sentences(encoded: EncodedSplit, precisions: Any) -> list[int]:
    """The short sentences that are answered best, by their average precisions, one a person."""
    short = [number for number, text in enumerate(encoded.captions) if len(text.split()) <= WORDS]
    by_person: dict[int, int] = {}
    for number in sorted(short, key=lambda number: -float(precisions[number])):
        by_person.setdefault(int(encoded.text_ids[number]), number)
    return list(by_person.values())[:SENTENCES]


def counts(encoded: EncodedSplit, chosen: list[int]) -> list[str]:
    """How many of all crops are right, for each sentence."""
    right = [int((encoded.image_ids == encoded.text_ids[number]).sum()) for number in chosen]
    return [f"{number} of {len(encoded.image_ids)} crops are right" for number in right]


def draw(path: Path, rankings: list[Ranking], notes: list[str]) -> None:
    """One row a sentence: the sentence in large letters, then the crops."""
    figure = Figure(figsize=(11, 3.55 * len(rankings)), dpi=150, facecolor=PAPER)
    grid: Any = figure.subplots(len(rankings), CROPS + 1, width_ratios=[2.1, *[1] * CROPS], squeeze=False)
    for axes, ranking, note in zip(grid, rankings, notes, strict=True):
        axes[0].axis("off")
        text = f"“{textwrap.fill(ranking.caption, 21)}”"
        axes[0].text(0, 0.98, text, fontsize=17, color=INK, va="top", linespacing=1.35, transform=axes[0].transAxes)
        axes[0].text(0, 0.02, note, fontsize=12, color=INK, transform=axes[0].transAxes)
        for rank, axis in enumerate(axes[1:]):
            draw_crop(axis, ranking.paths[rank], is_right=bool(ranking.right and ranking.right[rank]))
    figure.subplots_adjust(left=0.015, right=0.99, top=0.985, bottom=0.055, wspace=0.09, hspace=0.13)
    save_figure(figure, path)
    with Image.open(path) as image:  # a third of the bytes, and nobody sees it
        image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


def draw_crop(axis: Any, path: Path, *, is_right: bool) -> None:
    """A crop in a frame; a word repeats what the colour says."""
    with Image.open(path) as image:
        large = image.convert("RGB").resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.LANCZOS)
    axis.imshow(large, aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    colour, word = (GREEN, "✓ right") if is_right else (VERMILION, "✗ wrong")
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=4, linestyle="-" if is_right else (0, (3, 1)), capstyle="butt")
    axis.set_xlabel(word, fontsize=12, color=colour)


if __name__ == "__main__":
    main()
