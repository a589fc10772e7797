"""Images and captions that stay in a device's memory, and the augmentation of whole batches there."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from promptreid import PromptedCLIP
from promptreid.data.dataset import CaptionedImages, ImagesOnly
from promptreid.data.records import ReIDSplit
from promptreid.data.transforms import TrainTransform, fit_image
from promptreid.evaluation.evaluate import EncodedSplit
from promptreid.towers.modes import evaluating

DRAWS = (
    25  # random numbers of an image: two of its shift, one whether it is erased, two of where, ten pairs of the size
)
AREA, RATIO = (0.02, 0.4), (0.3, 3.3)  # of erased boxes, as in TrainTransform


def augment(pixels: Tensor, transform: TrainTransform, *, mirror: Tensor, draws: Tensor) -> Tensor:
    """What `TrainTransform` makes of each image from the same random numbers, for a whole batch on any device.

    Args:
        pixels: uint8 (B, 3, H, W).
        transform: Its sizes and statistics.
        mirror: bool (B,), on the CPU.
        draws: In [0, 1), (B, 25), on the CPU.

    Returns:
        float32 (B, 3, H, W), normalised.
    """
    size, height, width = len(pixels), *pixels.shape[2:]
    padding, device = transform.padding, pixels.device
    down, right = ((draws[:, column] * (2 * padding + 1)).to(torch.int64) for column in (0, 1))
    across = torch.arange(width) + right[:, None] - padding  # column of the (mirrored) image; outside it is black
    rows = torch.arange(height) + down[:, None] - padding
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((across >= 0) & (across < width))[:, None, :]
    across = torch.where(mirror[:, None], width - 1 - across, across)
    index = rows.clamp(0, height - 1)[:, :, None] * width + across.clamp(0, width - 1)[:, None, :]
    index = index.view(size, 1, -1).to(device, non_blocking=True).expand(-1, 3, -1)
    out = pixels.view(size, 3, -1).gather(2, index).view(pixels.shape).float()
    out *= inside[:, None].to(device, non_blocking=True)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (transform.mean, transform.std))
    out = out.mul_(1 / (255 * std)).sub_(mean / std)
    return out * ~_erased(draws, height, width)[:, None].to(device, non_blocking=True)


def _erased(draws: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are erased, bool (B, H, W): the first box drawn that fits, in half of the images."""
    draws = draws.double()
    share, shape = draws[:, 5::2], draws[:, 6::2]
    area = (AREA[0] + share * (AREA[1] - AREA[0])) * height * width
    ratio = (math.log(RATIO[0]) + shape * math.log(RATIO[1] / RATIO[0])).exp()
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall > 0) & (tall < height) & (wide > 0) & (wide < width)
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    tall, wide = tall.gather(1, first), wide.gather(1, first)
    top, left = (draws[:, 3:4] * (height - tall + 1)).floor(), (draws[:, 4:5] * (width - wide + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    box = ((rows >= top) & (rows < top + tall))[:, :, None] & ((columns >= left) & (columns < left + wide))[:, None, :]
    return box & ((draws[:, 2] < 0.5) & fits.any(dim=1))[:, None, None]


class ResidentPairs:
    """Training pairs in a device's memory.

    Args:
        split: The images and captions.
        model: Its sizes, statistics and tokenizer.
        device: Where.
    """

    def __init__(self, split: ReIDSplit, model: PromptedCLIP, device: str) -> None:
        self.transform: TrainTransform = model.train_transform
        pairs = CaptionedImages(split, transform=self.transform, tokenizer=model.tokenizer)
        self.pixels = _pixels(split, model).to(device)
        self.tokens = pairs.tokens.to(torch.int64).to(device)
        self.images, self.person_ids = pairs.images, pairs.person_ids
        self._mirrored_row = pairs._mirrored_row.to(torch.int64)
        self.device = device

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One pass in random order: images, tokens and labels; what does not fill a batch is left out.

        All random numbers are the CPU's, so a run is the same pairs, mirrored and cut alike, on any device.
        """
        for rows in torch.randperm(len(self), generator=generator).split(batch_size):
            if len(rows) < batch_size:
                return
            images = self.images[rows]
            others = self._mirrored_row[rows]
            mirror = (torch.rand(batch_size, generator=generator) < self.transform.mirror) & (others >= 0)
            draws = torch.rand(batch_size, DRAWS, generator=generator)
            pixels = augment(self.pixels[images.to(self.device)], self.transform, mirror=mirror, draws=draws)
            tokens = self.tokens[torch.where(mirror, others, rows).to(self.device)]
            yield pixels, tokens, self.person_ids[images].to(self.device)


class ResidentSplit:
    """A split to score, in a device's memory.

    Args:
        split: The images and captions.
        model: Its sizes, statistics and tokenizer.
        device: Where.
    """

    def __init__(self, split: ReIDSplit, model: PromptedCLIP, device: str) -> None:
        self.split = split
        transform = model.train_transform
        pixels = _pixels(split, model).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
        self.images = pixels.mul_(1 / (255 * std)).sub_(mean / std).to(device)
        self.captions = [caption for record in split.records for caption in record.captions]
        self.tokens = model.tokenizer(self.captions).to(device)
        self.image_ids = torch.tensor([record.person_id for record in split.records])
        self.text_ids = self.image_ids.repeat_interleave(
            torch.tensor([len(record.captions) for record in split.records])
        )

    def encode(self, model: PromptedCLIP, *, batch_size: int = 256) -> EncodedSplit:
        """Unit features of all images and captions, on the CPU."""
        with torch.inference_mode(), evaluating(model):
            images = [model.encode_image(part, normalize=True) for part in self.images.split(batch_size)]
            texts = [model.encode_text(part, normalize=True) for part in self.tokens.split(batch_size)]
        features = (torch.cat(parts).float().cpu() for parts in (images, texts))
        return EncodedSplit(self.split, *features, self.image_ids, self.text_ids, self.captions)


def _pixels(split: ReIDSplit, model: PromptedCLIP) -> Tensor:
    """Every image of a split at the model's size, uint8 (images, 3, H, W)."""
    transform = model.train_transform
    images = ImagesOnly(split, transform=lambda image: fit_image(image, transform.image_size, transform.interpolation))
    return torch.stack([images[index] for index in range(len(images))])
