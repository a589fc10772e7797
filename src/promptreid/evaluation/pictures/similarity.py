"""Histograms of the similarity of right and wrong pairs."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from promptreid.evaluation.pictures.canvas import GREEN, VERMILION, new_figure, save_figure
from promptreid.evaluation.splits import EncodedSplit

_BINS = 60
_CHUNK = 512


def draw_similarities(path: str | Path, splits: Mapping[str, EncodedSplit]) -> Path:
    """Draw how similar captions are to right and to wrong images: one panel a state of the model.

    Right pairs are filled, wrong ones outlined, so that the picture reads without colour. Each histogram has an area
    of one; the panels share their axis.

    Args:
        path: PNG file to write.
        splits: The same split encoded by each state, by its title, such as before stage 1, after it, after stage 2.

    Returns:
        The file.

    Raises:
        ValueError: `splits` is empty.
        MissingExtraError: matplotlib is not installed.
    """
    if not splits:
        raise ValueError("splits is empty, give at least one")
    counted = {title: similarity_histograms(encoded) for title, encoded in splits.items()}
    figure = new_figure(3.2 * len(splits), 2.8)
    panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    edges = torch.linspace(-1, 1, _BINS + 1).tolist()
    used = torch.stack([right + wrong for right, wrong in counted.values()]).sum(0).nonzero().flatten()
    for axis, (title, (right, wrong)) in zip(panels, counted.items(), strict=True):
        axis.stairs(_density(right), edges, fill=True, color=GREEN, alpha=0.6, label="right pairs")
        axis.stairs(_density(wrong), edges, color=VERMILION, linewidth=1.5, label="wrong pairs")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("cosine similarity", fontsize=9)
        axis.set_xlim(edges[int(used[0])], edges[int(used[-1]) + 1])
    panels[0].set_ylabel("density", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def similarity_histograms(encoded: EncodedSplit, *, bins: int = _BINS) -> tuple[Tensor, Tensor]:
    """Counts of right and of wrong pairs in equal bins from -1 to 1: (bins,) float64 each."""
    right, wrong = torch.zeros(bins, dtype=torch.float64), torch.zeros(bins, dtype=torch.float64)
    for rows in torch.arange(len(encoded.text_ids)).split(_CHUNK):
        scores = (encoded.text_features[rows] @ encoded.image_features.T).clamp(-1, 1)
        same = encoded.text_ids[rows, None] == encoded.image_ids
        right += torch.histc(scores[same], bins, -1, 1)
        wrong += torch.histc(scores[~same], bins, -1, 1)
    return right, wrong


def _density(counts: Tensor) -> list[float]:
    return (counts / counts.sum().clamp(min=1) * len(counts) / 2).tolist()
