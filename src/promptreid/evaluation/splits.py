"""A split after encoding."""

from dataclasses import dataclass

from torch import Tensor

from promptreid.data.records import ReIDSplit


@dataclass(frozen=True)
class EncodedSplit:
    """Features of every image and caption of a split, of unit length, on the CPU.

    Attributes:
        split: What was encoded.
        image_features: (images, E) float32.
        text_features: (captions, E) float32.
        image_ids: (images,) int64, the annotation's person numbers.
        text_ids: (captions,) int64.
        captions: The sentences, in the order of `text_features`.
    """

    split: ReIDSplit
    image_features: Tensor
    text_features: Tensor
    image_ids: Tensor
    text_ids: Tensor
    captions: list[str]
