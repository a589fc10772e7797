"""A picture of what was found: query sentences, ranked crops, right or wrong."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptreid.data.dataset import open_image
from promptreid.errors import MissingExtraError
from promptreid.evaluation.evaluate import EncodedSplit
from promptreid.files import write_bytes_atomically

# Okabe and Ito's bluish green and vermilion: told apart by colour-blind readers, and the mark repeats it.
RIGHT, WRONG = "#009E73", "#D55E00"


@dataclass(frozen=True)
class Ranking:
    """What one sentence found.

    Attributes:
        caption: The sentence.
        paths: Crops, the best first.
        scores: Their similarities.
        right: Which of them show the person described.
    """

    caption: str
    paths: Sequence[Path]
    scores: Sequence[float]
    right: Sequence[bool]


def rank_captions(encoded: EncodedSplit, captions: Sequence[int], *, k: int = 10) -> list[Ranking]:
    """Rank a split's images for some of its captions.

    Args:
        encoded: Features of the split.
        captions: Which captions, by their place in `encoded.captions`.
        k: Crops a caption.
    """
    rankings: list[Ranking] = []
    for place in captions:
        scores = encoded.image_features @ encoded.text_features[place]
        order = scores.sort(descending=True, stable=True).indices[:k].tolist()
        rankings.append(
            Ranking(
                encoded.captions[place],
                [encoded.split.records[index].path for index in order],
                [float(scores[index]) for index in order],
                [bool(encoded.image_ids[index] == encoded.text_ids[place]) for index in order],
            )
        )
    return rankings


def draw_ranking(path: str | Path, rankings: Sequence[Ranking], *, title: str = "") -> Path:
    """Draw one row a sentence: right crops framed green with a tick, wrong ones red with a cross.

    Args:
        path: PNG file to write.
        rankings: At least one.
        title: Above the rows.

    Returns:
        The file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: `rankings` is empty.
        DatasetError: A crop cannot be read.
    """
    if not rankings:
        raise ValueError("rankings is empty, give at least one")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError('drawing needs matplotlib: pip install "promptreid[viz]"') from error
    columns = max(len(ranking.paths) for ranking in rankings)
    figure = Figure(
        figsize=(1.05 * columns, 2.75 * len(rankings) + (0.4 if title else 0)), dpi=150, layout="constrained"
    )
    if title:
        figure.suptitle(title, fontsize=11)
    rows: Any = figure.subfigures(len(rankings), 1, squeeze=False)[:, 0]
    for row, ranking in zip(rows, rankings, strict=True):
        row.suptitle(f"“{ranking.caption}”", fontsize=9, wrap=True, x=0.01, ha="left")
        axes = row.subplots(1, columns, squeeze=False)[0]
        for rank, axis in enumerate(axes):
            axis.axis("off")
            if rank < len(ranking.paths):
                _draw_crop(axis, ranking, rank)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_bytes_atomically(Path(path), stream.getvalue())
    return Path(path)


def _draw_crop(axis: Any, ranking: Ranking, rank: int) -> None:
    right = ranking.right[rank]
    colour = RIGHT if right else WRONG
    image = open_image(ranking.paths[rank])
    axis.axis("on")
    axis.imshow(image, aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_box_aspect(image.height / image.width)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=3, linestyle="-" if right else (0, (3, 1)))
    axis.set_xlabel(f"{'✓' if right else '✗'} {ranking.scores[rank]:.2f}", fontsize=8, color=colour)
    axis.set_title(str(rank + 1), fontsize=7, pad=2)
