"""From an image to the tensor that an encoder takes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from promptreid.values import check_choice

INTERPOLATIONS = ("bicubic", "bilinear")
_REFERENCE_HEIGHT = 384
_ERASE_PROBABILITY, _ERASE_AREA, _ERASE_RATIO, _ERASE_ATTEMPTS = 0.5, (0.02, 0.4), (0.3, 3.3), 10


class EvalTransform:
    """Resizes the whole image, cutting nothing off a person, and normalises it.

    Args:
        image_size: (height, width) in pixels.
        mean: Mean per channel, as the model states it.
        std: Standard deviation per channel.
        interpolation: How images are resized, as the model states it: `"bicubic"` or `"bilinear"`, with antialiasing.

    Shape:
        - input: a PIL image, or uint8 (3, h, w)
        - output: (3, H, W) float32

    Example:
        >>> EvalTransform((2, 1), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(Image.new("RGB", (1, 2))).flatten()
        tensor([-1., -1., -1., -1., -1., -1.])

    Raises:
        ValueError: The size is not two positive integers, the statistics are not three numbers each, or the
            interpolation is unknown.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
    ) -> None:
        self.interpolation: str = check_interpolation(interpolation)
        self.image_size: tuple[int, int] = check_image_size(image_size)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean is {tuple(mean)} and std {tuple(std)}, expected three numbers each, std positive")
        self.mean: tuple[float, ...] = tuple(mean)
        self.std: tuple[float, ...] = tuple(std)
        self._scale = torch.tensor([1 / (255 * value) for value in std]).view(3, 1, 1)
        self._shift = torch.tensor([a / b for a, b in zip(mean, std, strict=True)]).view(3, 1, 1)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """The image, normalised, (3, H, W)."""
        return self._normalize_(fit_image(image, self.image_size, self.interpolation).to(torch.float32, copy=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.image_size}, mean={self.mean}, std={self.std}, {self.interpolation})"

    def _normalize_(self, pixels: Tensor) -> Tensor:
        """(value / 255 - mean) / std in two passes over the memory, in place."""
        return pixels.mul_(self._scale).sub_(self._shift).contiguous()


class TrainTransform(EvalTransform):
    """The field's augmentation: mirror, pad and crop, erase.

    Padding is black, 10 pixels at a height of 384 and in proportion at others. Erased areas are 0 after
    normalisation, which is the mean colour. Mirroring and cropping are done on bytes, before they become floats:
    the values are those of torchvision's `RandomHorizontalFlip`, `Pad`, `RandomCrop`, `ToDtype`, `Normalize` and
    `RandomErasing` one after another, in a fraction of the time. Random numbers are torch's.

    Args:
        image_size: (height, width) in pixels.
        mean: Mean per channel, as the model states it.
        std: Standard deviation per channel.
        mirror: Share of images that are mirrored; `CaptionedImages` takes care of captions that say left and right.
        interpolation: As in `EvalTransform`.

    Raises:
        ValueError: `mirror` is not in [0, 1], or as for `EvalTransform`.

    Source:
        The recipe of IRRA (Jiang and Ye 2023, arXiv 2303.12501).
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        mirror: float = 0.5,
        interpolation: str = "bicubic",
    ) -> None:
        super().__init__(image_size, mean=mean, std=std, interpolation=interpolation)
        if not 0 <= mirror <= 1:
            raise ValueError(f"mirror is {mirror}, expected a share from 0 to 1")
        self.mirror = mirror
        self.padding: int = max(1, round(10 * image_size[0] / _REFERENCE_HEIGHT))

    def draw_mirror(self) -> bool:
        """Whether the next image is to be mirrored; give it to the call, to know it beforehand."""
        return float(torch.rand(())) < self.mirror

    def __call__(self, image: Image.Image | Tensor, *, mirror: bool | None = None) -> Tensor:
        """The image, augmented and normalised, (3, H, W); `mirror` is drawn if None."""
        pixels = fit_image(image, self.image_size, self.interpolation)
        mirrored = self.draw_mirror() if mirror is None else mirror
        draws: list[float] = torch.rand(5 + 2 * _ERASE_ATTEMPTS).tolist()
        span = 2 * self.padding + 1
        shifts = int(draws[0] * span) - self.padding, int(draws[1] * span) - self.padding
        out = self._normalize_(shift_image(pixels, *shifts, mirror=mirrored))
        if draws[2] < _ERASE_PROBABILITY:
            self._erase_(out, draws[3:])
        return out

    def _erase_(self, out: Tensor, draws: list[float]) -> None:
        """Random Erasing (Zhong et al. 2017, arXiv 1708.04896): the first box drawn that fits; none if none does."""
        height, width = self.image_size
        for attempt in range(_ERASE_ATTEMPTS):
            share, shape = draws[2 + 2 * attempt : 4 + 2 * attempt]
            area = (_ERASE_AREA[0] + share * (_ERASE_AREA[1] - _ERASE_AREA[0])) * height * width
            ratio = math.exp(math.log(_ERASE_RATIO[0]) + shape * math.log(_ERASE_RATIO[1] / _ERASE_RATIO[0]))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < tall < height and 0 < wide < width:
                top, left = int(draws[0] * (height - tall + 1)), int(draws[1] * (width - wide + 1))
                out[:, top : top + tall, left : left + wide] = 0
                return


def train_transform(
    image_size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = True,
    interpolation: str = "bicubic",
) -> TrainTransform:
    """A `TrainTransform` that mirrors half of the images, or with `flip=False` none.

    Example:
        >>> transform = train_transform((96, 48), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> transform(Image.new("RGB", (60, 170))).shape
        torch.Size([3, 96, 48])
    """
    return TrainTransform(image_size, mean=mean, std=std, mirror=0.5 if flip else 0.0, interpolation=interpolation)


eval_transform = EvalTransform


def fit_image(image: Any, image_size: tuple[int, int], interpolation: str = "bicubic") -> Tensor:
    """An image as bytes of the size that training takes, resized with antialiasing.

    Args:
        image: A PIL image, or uint8 (3, h, w).
        image_size: (height, width) in pixels.
        interpolation: `"bicubic"` or `"bilinear"`.

    Returns:
        uint8 (3, H, W); the input itself if it has that size.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(image, Image.Image):
        image = functional.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        what = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"the image is {what}, expected a PIL image or a uint8 tensor (3, height, width)")
    if tuple(image.shape[1:]) == image_size:
        return image
    mode = InterpolationMode(interpolation)
    return functional.resize(image, list(image_size), interpolation=mode, antialias=True)


def shift_image(pixels: Tensor, down: int, right: int, *, mirror: bool = False) -> Tensor:
    """Pad with black and crop: the image moved up by `down` and left by `right` pixels.

    Args:
        pixels: uint8 (3, H, W).
        down: Rows to leave out above; if negative, black rows to add.
        right: The same for columns on the left.
        mirror: Mirror it first.

    Returns:
        float32 (3, H, W), values 0 to 255.
    """
    height, width = pixels.shape[1:]
    out = torch.zeros(pixels.shape)
    top, left = max(0, -down), max(0, -right)
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    first = max(0, right)
    if mirror:  # columns first … of the mirrored image are these of the image
        part = pixels[:, max(0, down) :, width - first - columns : width - first][:, :rows].flip(-1)
    else:
        part = pixels[:, max(0, down) :, first : first + columns][:, :rows]
    out[:, top : top + rows, left : left + columns] = part
    return out


def check_interpolation(interpolation: str) -> str:
    """Return how images are resized, or refuse it.

    Raises:
        ValueError: It is neither `"bicubic"` nor `"bilinear"`.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    return interpolation


def check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width), or refuse it.

    Raises:
        ValueError: It is not two positive integers.
    """
    height, width = image_size
    if min(height, width) < 1:
        raise ValueError(f"image_size is {image_size}, expected (height, width) in pixels, both positive")
    return height, width
