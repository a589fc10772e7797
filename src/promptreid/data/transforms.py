"""From a picture to the tensor that an encoder takes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

_REFERENCE_HEIGHT = 384


def train_transform(
    image_size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float], flip: bool = True
) -> Callable[[Any], Tensor]:
    """The field's augmentation: flip, pad and crop, random erasing.

    Padding is 10 pixels at a height of 384 and in proportion at others. Erased areas are 0 after normalisation,
    which is the mean colour.

    Args:
        image_size: (height, width) in pixels.
        mean: Mean per channel, as the model states it.
        std: Standard deviation per channel.
        flip: Mirror half of the pictures; turn it off where captions say left and right.

    Returns:
        A transform from a PIL image to a float32 tensor (3, H, W).

    Source:
        The recipe of IRRA (Jiang and Ye 2023, arXiv 2303.12501).
    """
    height, width = check_image_size(image_size)
    return v2.Compose(
        [
            _resize((height, width)),
            v2.RandomHorizontalFlip(0.5 if flip else 0.0),
            v2.Pad(max(1, round(10 * height / _REFERENCE_HEIGHT))),
            v2.RandomCrop((height, width)),
            *_to_tensor(mean, std),
            v2.RandomErasing(p=0.5, scale=(0.02, 0.4), value=0),
        ]
    )


def eval_transform(
    image_size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any], Tensor]:
    """Resize the whole picture, cutting nothing off a person, and normalise.

    Args:
        image_size: (height, width) in pixels.
        mean: Mean per channel, as the model states it.
        std: Standard deviation per channel.

    Returns:
        A transform from a PIL image to a float32 tensor (3, H, W).
    """
    return v2.Compose([_resize(check_image_size(image_size)), *_to_tensor(mean, std)])


def check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width), or refuse it.

    Raises:
        ValueError: It is not two positive integers.
    """
    height, width = image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size is {image_size}, expected (height, width) in pixels, both positive")
    return height, width


def _resize(image_size: tuple[int, int]) -> v2.Resize:
    return v2.Resize(list(image_size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _to_tensor(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
