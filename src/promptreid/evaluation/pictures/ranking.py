"""A figure of what was found: query sentences, ranked crops, right or wrong."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from promptreid.data.images import open_image
from promptreid.defaults import NUM_HITS
from promptreid.errors import DatasetError, printable
from promptreid.evaluation.pictures.canvas import GREEN, GREY, VERMILION, new_figure, save_figure
from promptreid.evaluation.splits import EncodedSplit

_LINES = 3  # of a sentence, so that the crops below it keep their size
_LETTERS_PER_INCH = 13.0  # of 9 points, on average; a Chinese one is as wide as two


@dataclass(frozen=True)
class Ranking:
    """The ranking for one sentence.

    Attributes:
        caption: The sentence.
        paths: Crops, the best first.
        scores: Their similarities.
        right: Which of them show the person described; `None` where nobody knows, as in a search.
    """

    caption: str
    paths: Sequence[Path]
    scores: Sequence[float]
    right: Sequence[bool] | None = None


def rank_captions(encoded: EncodedSplit, captions: Sequence[int], *, k: int = NUM_HITS) -> list[Ranking]:
    """Rank a split's images for some of its captions.

    Args:
        encoded: Features of the split.
        captions: Which captions, by their positions in `encoded.captions`.
        k: Crops a caption.
    """
    rankings: list[Ranking] = []
    for caption in captions:
        scores = encoded.image_features @ encoded.text_features[caption]
        order = scores.sort(descending=True, stable=True).indices[:k].tolist()
        rankings.append(
            Ranking(
                encoded.captions[caption],
                [encoded.split.records[index].path for index in order],
                [float(scores[index]) for index in order],
                [bool(encoded.image_ids[index] == encoded.text_ids[caption]) for index in order],
            )
        )
    return rankings


def draw_ranking(path: str | Path, rankings: Sequence[Ranking], *, title: str = "") -> Path:
    """Draw one row a sentence: right crops framed green with a tick, wrong ones orange with a cross.

    Where nobody knows what is right the frames are grey. Below each crop are its score and the name of its file; a file
    that cannot be read any more is an empty frame that says so. A sentence of more than three lines is cut.

    Args:
        path: PNG file to write.
        rankings: At least one.
        title: Above the rows.

    Returns:
        The file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: `rankings` is empty.
    """
    if not rankings:
        raise ValueError("rankings is empty, give at least one")
    columns = max(4, *(len(ranking.paths) for ranking in rankings))
    width = 1.05 * columns
    sentences = [_wrapped(f"“{ranking.caption}”", width) for ranking in rankings]
    heights = [2.6 + 0.15 * len(lines) for lines in sentences]
    figure = new_figure(width, sum(heights) + (0.4 if title else 0))
    if title:
        figure.suptitle(title, fontsize=11)
    rows: Any = figure.subfigures(len(rankings), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, ranking, lines in zip(rows, rankings, sentences, strict=True):
        row.suptitle("\n".join(lines), fontsize=9, wrap=True, x=0.01, ha="left")
        axes = row.subplots(1, columns, squeeze=False)[0]
        for rank, axis in enumerate(axes):
            axis.axis("off")
            if rank < len(ranking.paths):
                _draw_crop(axis, ranking, rank)
    return save_figure(figure, path)


def _draw_crop(axis: Any, ranking: Ranking, rank: int) -> None:
    # The mark repeats what the colour says, and the dashes too.
    right = None if ranking.right is None else ranking.right[rank]
    colour, mark = {None: (GREY, ""), True: (GREEN, "✓ "), False: (VERMILION, "✗ ")}[right]
    axis.axis("on")
    axis.set_xticks([])
    axis.set_yticks([])
    try:
        image = open_image(ranking.paths[rank])
    except DatasetError:
        axis.set_box_aspect(2)
        axis.text(0.5, 0.5, "cannot\nbe read", fontsize=8, color=GREY, ha="center", va="center")
    else:
        axis.imshow(image, aspect="auto")
        axis.set_box_aspect(image.height / image.width)
    for spine in axis.spines.values():
        dashes = (0, (3, 1)) if right is False else "-"  # with ends that stick out they would meet
        spine.set(color=colour, linewidth=3, linestyle=dashes, capstyle="butt")
    axis.set_xlabel(f"{mark}{ranking.scores[rank]:.2f}\n", fontsize=8, color=colour)
    place = {"xy": (0.5, 0), "xytext": (0, -15), "xycoords": "axes fraction", "textcoords": "offset points"}
    axis.annotate(_shortened(ranking.paths[rank]), **place, fontsize=5, color=GREY, ha="center", va="top")
    axis.set_title(str(rank + 1), fontsize=7, pad=2)


def _wrapped(sentence: str, inches: float) -> list[str]:
    """The lines of a sentence, the last one ending in … where there would be more."""
    wide = sum(east_asian_width(letter) in "WF" for letter in sentence)
    per_line = int(_LETTERS_PER_INCH * inches * len(sentence) / (len(sentence) + wide))
    lines = textwrap.wrap(sentence, per_line)
    if len(lines) > _LINES:
        last = lines[_LINES - 1]
        if len(last) > per_line - 2:
            last = last[: per_line - 2].rpartition(" ")[0] or last[: per_line - 2]
        lines = [*lines[: _LINES - 1], f"{last}…”"]
    return lines


def _shortened(path: Path, longest: int = 24) -> str:
    """The file's name, its middle left out where it would not fit below a crop."""
    name = printable(path.name)
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[1 - longest // 2 :]}"
