"""Torch data sets over a split: pairs to train on, images and captions to evaluate on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptreid.data.pictures import open_image
from promptreid.data.records import ReIDSplit

__all__ = ["CaptionedImages", "CaptionsOnly", "ImagesOnly", "open_image"]

Transform = Callable[[Any], Tensor]
Tokenizer = Callable[[list[str]], Tensor]


class CaptionedImages(Dataset[dict[str, Tensor]]):
    """Every (image, caption) pair of a split, to train on.

    Captions are tokenised once, here. Paths and labels are kept as one array each, so that loader workers share
    their memory.

    Args:
        split: The images.
        transform: From a PIL image to a tensor (3, H, W).
        tokenizer: From captions to token ids (B, L).

    Shape:
        - images: (3, H, W) float32; tokens: (L,) int64; person_ids: () int64, label in [0, num_identities)
    """

    def __init__(self, split: ReIDSplit, *, transform: Transform, tokenizer: Tokenizer) -> None:
        self.split = split
        self.transform = transform
        self.tokens: Tensor = tokenizer([caption for record in split.records for caption in record.captions])
        counts = torch.tensor([len(record.captions) for record in split.records])
        self.images: Tensor = torch.arange(len(split)).repeat_interleave(counts)
        self.person_ids: Tensor = torch.tensor([split.labels[record.person_id] for record in split.records])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = int(self.images[index])
        return {
            "images": self.transform(open_image(self.split.records[image].path)),
            "tokens": self.tokens[index],
            "person_ids": self.person_ids[image],
        }


class ImagesOnly(Dataset[Tensor]):
    """Every image of a split once, (3, H, W); `person_ids` (images,) int64 holds the annotation's numbers."""

    def __init__(self, split: ReIDSplit, *, transform: Transform) -> None:
        self.split = split
        self.transform = transform
        self.person_ids: Tensor = torch.tensor([record.person_id for record in split.records])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(open_image(self.split.records[index].path))


class CaptionsOnly(Dataset[Tensor]):
    """Every caption of a split once, (L,) int64; `person_ids` (captions,) int64 holds the annotation's numbers."""

    def __init__(self, split: ReIDSplit, *, tokenizer: Tokenizer) -> None:
        self.captions: list[str] = [caption for record in split.records for caption in record.captions]
        self.tokens: Tensor = tokenizer(self.captions)
        self.person_ids: Tensor = torch.tensor([record.person_id for record in split.records for _ in record.captions])

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index]
