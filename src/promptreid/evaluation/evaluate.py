"""Scores a model on a split, both ways."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from promptreid.data.dataset import CaptionsOnly, ImagesOnly
from promptreid.data.records import ReIDSplit
from promptreid.encoders.clip import PromptedCLIP
from promptreid.evaluation.metrics import RetrievalMetrics, compute_metrics


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


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split.

    Attributes:
        text_to_image: Captions search images.
        image_to_text: Images search captions.
    """

    text_to_image: RetrievalMetrics
    image_to_text: RetrievalMetrics

    def as_dict(self) -> dict[str, Any]:
        """Text to image by name, and the same nested under `image_to_text`; fractions."""
        return {**self.text_to_image.as_dict(), "image_to_text": self.image_to_text.as_dict()}


def encode_split(
    model: PromptedCLIP, split: ReIDSplit, *, batch_size: int = 64, num_workers: int = 0, progress: bool = True
) -> EncodedSplit:
    """Encode every image and every caption of a split once, on the model's device.

    Args:
        model: The model; its train or eval mode is put back afterwards.
        split: The images and captions.
        batch_size: Items at a time.
        num_workers: Processes that load images.
        progress: Show progress bars.

    Returns:
        The features.

    Raises:
        DatasetError: An image cannot be read.
    """
    images = ImagesOnly(split, transform=model.eval_transform)
    captions = CaptionsOnly(split, tokenizer=model.tokenizer)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        image_features = _encode(
            model.encode_image, images, f"images of {split.name}", model, batch_size, num_workers, progress
        )
        text_features = _encode(
            model.encode_text, captions, f"captions of {split.name}", model, batch_size, 0, progress
        )
    finally:
        for module, training in modes.items():
            module.training = training
    return EncodedSplit(split, image_features, text_features, images.person_ids, captions.person_ids, captions.captions)


def evaluate(
    model: PromptedCLIP, split: ReIDSplit, *, batch_size: int = 64, num_workers: int = 0, progress: bool = True
) -> Evaluation:
    """Score a model on a split, text to image and image to text.

    Args:
        model: The model.
        split: The images and captions, usually `dataset.test`.
        batch_size: Items at a time.
        num_workers: Processes that load images.
        progress: Show progress bars.

    Returns:
        Rank-1/5/10, mAP and mINP of both directions, as fractions.

    Raises:
        DatasetError: An image cannot be read.
        ValueError: Features are not finite.
    """
    return score(encode_split(model, split, batch_size=batch_size, num_workers=num_workers, progress=progress))


def score(encoded: EncodedSplit) -> Evaluation:
    """Score features that are there already."""
    images, texts = encoded.image_features, encoded.text_features
    return Evaluation(
        compute_metrics(texts, images, encoded.text_ids, encoded.image_ids),
        compute_metrics(images, texts, encoded.image_ids, encoded.text_ids),
    )


def _encode(
    encode: Callable[..., Tensor],
    items: Dataset[Tensor],
    name: str,
    model: PromptedCLIP,
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> Tensor:
    device = next(model.parameters()).device
    loader = DataLoader(items, batch_size=batch_size, num_workers=num_workers, pin_memory=device.type == "cuda")
    features: list[Tensor] = []
    bar = tqdm(loader, desc=f"encoding {name}", unit="batch", disable=not progress, leave=False, delay=1)
    with torch.inference_mode():
        for batch in bar:
            features.append(encode(batch.to(device, non_blocking=True), normalize=True).float().cpu())
    return torch.cat(features)
