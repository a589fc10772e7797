"""Figures of features: how similar right and wrong pairs are, and a map of persons in the plane."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptreid.errors import spoken
from promptreid.evaluation.pictures.canvas import BLUE, GREEN, ORANGE, SKY, VERMILION, new_figure, save_figure
from promptreid.evaluation.splits import EncodedSplit

_BINS = 60
_CHUNK = 512
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", "#000000", "#F0E442")


def draw_similarities(path: str | Path, splits: Mapping[str, EncodedSplit]) -> Path:
    """Draw how similar captions are to right and to wrong images: one panel a state of the model.

    Right pairs are filled, wrong ones outlined, so that the figure reads without colour. Each histogram has an area
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
    histograms = {title: similarity_histograms(encoded) for title, encoded in splits.items()}
    figure = new_figure(3.2 * len(splits), 2.8)
    panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
    for axis, title in zip(panels, histograms, strict=True):
        draw_histogram(axis, title, histograms)
    panels[0].set_ylabel("density", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    return save_figure(figure, path)


def draw_histogram(axis: Any, title: str, histograms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Draw one of what `similarity_histograms` counted, by title, on axes that fit all of them."""
    edges = torch.linspace(-1, 1, _BINS + 1).tolist()
    used = torch.stack([right + wrong for right, wrong in histograms.values()]).sum(0).nonzero().flatten()
    right, wrong = (_density(counts) for counts in histograms[title])
    axis.stairs(right, edges, fill=True, color=GREEN, alpha=0.6, label="right pairs")
    axis.stairs(wrong, edges, color=VERMILION, linewidth=1.5, label="wrong pairs")
    axis.set_title(spoken(title), fontsize=10)
    axis.set_xlabel("cosine similarity", fontsize=9)
    axis.set_xlim(edges[int(used[0])], edges[int(used[-1]) + 1])
    axis.set_ylim(0, 1.05 * max(max(_density(counts)) for pair in histograms.values() for counts in pair))


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


def draw_feature_map(path: str | Path, splits: Mapping[str, EncodedSplit], *, persons: int = 8) -> Path:
    """Draw features of some persons on their first two principal components: one panel a state of the model.

    Discs are images, crosses are captions; a person has one colour. Every panel has components of its own, fitted to
    both kinds of all persons in the split, and says how much of the variance they show.

    Args:
        path: PNG file to write.
        splits: The same split encoded by each state, by its title.
        persons: How many, those of the lowest ids; 8 at most can be told apart.

    Returns:
        The file.

    Raises:
        ValueError: `splits` is empty, or `persons` is not from 1 to 8.
        MissingExtraError: matplotlib is not installed.
    """
    if not splits:
        raise ValueError("splits is empty, give at least one")
    if not 1 <= persons <= len(_COLOURS):
        raise ValueError(f"persons is {persons}, expected 1 to {len(_COLOURS)}: more colours cannot be told apart")
    figure = new_figure(3.2 * len(splits), 3.2)
    for axis, (title, encoded) in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits.items(), strict=True):
        images, texts, share = principal_components(encoded.image_features, encoded.text_features)
        chosen = encoded.image_ids.unique()[:persons].tolist()
        for person, colour in zip(chosen, _COLOURS, strict=False):
            own = images[encoded.image_ids == person]
            axis.scatter(own[:, 0], own[:, 1], s=18, color=colour, marker="o")
            own = texts[encoded.text_ids == person]
            axis.scatter(own[:, 0], own[:, 1], s=22, color=colour, marker="x", linewidths=1.2)
        axis.set_title(spoken(title), fontsize=10)
        axis.set_xlabel(f"two components: {share:.0%} of the variance", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle("● images   × captions   one colour a person", fontsize=9)
    return save_figure(figure, path)


def principal_components(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both on the first two principal components of their union, and the share of variance that these hold."""
    both = torch.cat([images, texts]).double()
    centred = both - both.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    shown = centred @ directions[:2].T
    total = float(lengths.square().sum())
    share = float(lengths[:2].square().sum()) / total if total else 0.0
    return shown[: len(images)], shown[len(images) :], share
