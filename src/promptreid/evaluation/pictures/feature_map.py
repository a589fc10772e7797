"""A map of image and text features in the plane."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from promptreid.evaluation.pictures.canvas import BLUE, GREEN, ORANGE, SKY, VERMILION, new_figure, save_figure
from promptreid.evaluation.splits import EncodedSplit

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, "#CC79A7", "#000000", "#F0E442")


def draw_feature_map(path: str | Path, splits: Mapping[str, EncodedSplit], *, persons: int = 8) -> Path:
    """Draw features of some persons on their first two principal components: one panel a state of the model.

    Discs are images, crosses are captions; a person has one colour. Every panel has components of its own, fitted to
    both kinds of all persons in the split, and says how much of the variance they show.

    Args:
        path: PNG file to write.
        splits: The same split encoded by each state, by its title.
        persons: How many, the first in the split; 8 at most can be told apart.

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
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"two components: {share:.0%} of the variance", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle("● images   × captions   one colour a person", fontsize=9)
    return save_figure(figure, path)


def principal_components(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both on the first two principal components of their union, and the share of variance these hold.

    Shape:
        - images: (G, E), texts: (Q, E); returns: (G, 2), (Q, 2)
    """
    both = torch.cat([images, texts]).double()
    centred = both - both.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    shown = centred @ directions[:2].T
    total = float(lengths.square().sum())
    share = float(lengths[:2].square().sum()) / total if total else 0.0
    return shown[: len(images)], shown[len(images) :], share
