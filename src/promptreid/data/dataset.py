"""Torch datasets over a split: pairs to train on, images and captions to evaluate on."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptreid.data.captions import Tokenizer, mirror_caption, tokenize_captions
from promptreid.data.image_cache import ImageCache, PixelRows
from promptreid.data.images import open_image
from promptreid.data.records import ReIDSplit, check_split, files_identity
from promptreid.data.transforms import TrainTransform
from promptreid.errors import DatasetError, listed


class PackedPaths:
    """A sequence of paths that holds no Python object for each.

    A list of paths is copied into every worker piece by piece, because counting references writes to it; tensors are
    shared, whether workers are forked or spawned.

    Args:
        paths: The paths.

    Example:
        >>> packed = PackedPaths([Path("imgs/a.jpg"), Path("imgs/b.jpg")])
        >>> packed[1], len(packed)
        ('imgs/b.jpg', 2)
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = torch.frombuffer(bytearray(b"".join(encoded) or b"\0"), dtype=torch.uint8)
        lengths = torch.tensor([0, *(len(path) for path in encoded)], dtype=torch.int64)
        self._ends = lengths.cumsum(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index : index + 2].tolist()
        return os.fsdecode(self._bytes[start:end].numpy().tobytes())


Transform = Callable[[Any], Tensor]

Sides = Literal["swap", "keep", "ignore"]


class CaptionedImages(Dataset[dict[str, Tensor]]):
    """Every (image, caption) pair of a split, to train on.

    Captions are tokenised once, here. What a loader worker needs (paths, tokens, labels) is kept in tensors, so that
    workers share their memory instead of copying it.

    Args:
        split: The images.
        transform: From an image to a tensor (3, H, W), such as `model.train_transform`; it gets a PIL image, or
            with a cache uint8 (3, H, W).
        tokenizer: From captions to token ids (B, L).
        cache: Decoded images from `build_image_cache`; those it found bad are left out.
        token_cache: Folder to keep the token ids in.
        augment_tokens: From token ids (L,) to others, such as `TokenDeletion`; it gets a copy each time.
        sides: What is done where a `TrainTransform` would mirror the image of a caption that says left or right:
            `"swap"` exchanges the words, `"keep"` leaves the image as it is, `"ignore"` mirrors the image only,
            as the field does. Another transform does not tell when it mirrors, and its captions stay as they are.
        groups: Cameras that a model has prompts for (`model.groups`); items then say whose image they are.

    Shape:
        - images: (3, H, W) float32; tokens: (L,) int64; person_ids: () int64, label of `split.labels`, in
          [0, split.num_identities)
        - groups: () int64, position of the camera in `groups`, -1 for another one

    Raises:
        DatasetError: The split is empty.
        ValueError: `sides` is invalid, or the cache is of another size than the transform's.
        KeyError: An image is not in the cache.
    """

    def __init__(
        self,
        split: ReIDSplit,
        *,
        transform: Transform,
        tokenizer: Tokenizer,
        cache: ImageCache | None = None,
        token_cache: str | Path | None = None,
        augment_tokens: Callable[[Tensor], Tensor] | None = None,
        sides: Sides = "swap",
        groups: Sequence[str] = (),
    ) -> None:
        check_split(split)
        if sides not in ("swap", "keep", "ignore"):
            raise ValueError(f"sides is {sides!r}, expected 'swap', 'keep' or 'ignore'")
        labels = split.labels  # of all persons, also one whose only image is left out: what else knows them stays valid
        if cache is not None and cache.bad:
            split = split.without(cache.bad)
        self.files: _ImageFiles = _ImageFiles(split, transform, cache)
        self.augment_tokens = augment_tokens
        captions = split.captions
        mirrored = self._mirrored_captions(captions, transform, sides)
        self.tokens: Tensor = tokenize_captions([*captions, *mirrored.values()], tokenizer, cache_dir=token_cache)
        # Row of each caption's mirrored form in `tokens`: its own if it names no side, -1 if it must not be mirrored.
        self._mirrored_row: Tensor = torch.arange(len(captions), dtype=torch.int32)
        rows = torch.tensor(list(mirrored), dtype=torch.int64)
        never = sides == "keep"
        self._mirrored_row[rows] = -1 if never else torch.arange(len(rows), dtype=torch.int32) + len(captions)
        counts = torch.tensor([len(record.captions) for record in split.records])
        self.images: Tensor = torch.arange(len(split)).repeat_interleave(counts)
        self.person_ids: Tensor = torch.tensor([labels[record.person_id] for record in split.records])
        self.groups: Tensor | None = _groups_of(split, groups) if groups else None

    def __len__(self) -> int:
        return len(self.images)

    def identity(self) -> dict[str, Any]:
        """The identity of this data for resumed runs: annotation, image files and transforms."""
        return {
            "captions": [self.tokens, self.images, self._mirrored_row],
            "person_ids": self.person_ids,
            "images": files_identity([self.files.paths[index] for index in range(len(self.files.paths))]),
            "transform": self.files.transform,
            "augment_tokens": self.augment_tokens,
            **({} if self.groups is None else {"groups": self.groups}),
        }

    @property
    def pair_person_ids(self) -> Tensor:
        """Label of each pair, (pairs,) int64: what an `IdentitySampler` takes."""
        return self.person_ids[self.images]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = int(self.images[index])
        transform, row = self.files.transform, range(len(self))[index]
        if isinstance(transform, TrainTransform):
            other = int(self._mirrored_row[row])
            mirror = transform.draw_mirror() and other >= 0
            row = other if mirror else row
            pixels = transform(self.files.read(image), mirror=mirror)
        else:
            pixels = self.files[image]
        tokens = self.tokens[row].to(torch.int64)  # a copy: what augments it cannot reach the table
        if self.augment_tokens is not None:
            tokens = self.augment_tokens(tokens)
        item = {"images": pixels, "tokens": tokens, "person_ids": self.person_ids[image]}
        return item if self.groups is None else {**item, "groups": self.groups[image]}

    @staticmethod
    def _mirrored_captions(captions: list[str], transform: Transform, sides: Sides) -> dict[int, str]:
        """The captions that change when the image is mirrored, by index, where that can happen at all."""
        if sides == "ignore" or not isinstance(transform, TrainTransform) or transform.mirror == 0:
            return {}
        changed = ((index, mirror_caption(caption)) for index, caption in enumerate(captions))
        return {index: caption for index, caption in changed if caption != captions[index]}


def _groups_of(split: ReIDSplit, groups: Sequence[str]) -> Tensor:
    """Position of each image's camera in `groups`, or -1 for any other, with one warning that counts these."""
    positions = {name: position for position, name in enumerate(groups)}
    found = [positions.get(record.camera or "", -1) for record in split.records]
    if others := found.count(-1):
        warnings.warn(
            f"{others:,} of {len(found):,} images of the {split.name} split come from none of the "
            f"cameras {listed(tuple(groups))} or have no camera; they train the mean of all groups' prompts",
            stacklevel=3,
        )
    return torch.tensor(found, dtype=torch.int64)


class ImagesOnly(Dataset[Tensor]):
    """Every image of a split once, (3, H, W); `person_ids` (images,) int64 holds the annotation's numbers.

    Args:
        split: The images.
        transform: From an image to a tensor, such as `model.eval_transform`.
        cache: Decoded images from `build_image_cache`.

    Raises:
        DatasetError: The split is empty.
    """

    def __init__(self, split: ReIDSplit, *, transform: Transform, cache: ImageCache | None = None) -> None:
        check_split(split)
        self.files: _ImageFiles = _ImageFiles(split, transform, cache)
        self.person_ids: Tensor = torch.tensor([record.person_id for record in split.records])

    def __len__(self) -> int:
        return len(self.person_ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.files[index]


class CaptionsOnly(Dataset[Tensor]):
    """Every caption of a split once, (L,) int64; `person_ids` (captions,) int64 holds the annotation's numbers."""

    def __init__(self, split: ReIDSplit, *, tokenizer: Tokenizer, token_cache: str | Path | None = None) -> None:
        check_split(split)
        self.captions: list[str] = split.captions
        self.tokens: Tensor = tokenize_captions(self.captions, tokenizer, cache_dir=token_cache)
        self.person_ids: Tensor = torch.tensor([record.person_id for record in split.records for _ in record.captions])

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index].to(torch.int64)


class _ImageFiles:
    """The images of a split by index, from files or from a cache."""

    def __init__(self, split: ReIDSplit, transform: Transform, cache: ImageCache | None) -> None:
        if not len(split):
            raise DatasetError(f"the {split.name} split has no images")
        size = getattr(transform, "image_size", None)
        if cache is not None and size is not None and tuple(size) != cache.image_size:
            raise ValueError(
                f"the cache holds images of {cache.image_size}, but the transform makes {tuple(size)}; build the cache "
                "for that size"
            )
        resized = getattr(transform, "interpolation", None)
        if cache is not None and resized not in (None, cache.pixels.interpolation):
            raise ValueError(
                f"the cache holds images resized by {cache.pixels.interpolation} interpolation, the transform takes "
                f"{resized}; build the cache with interpolation={resized!r}"
            )
        paths = split.paths
        self.transform: Transform = transform
        self.pixels: PixelRows | None = None if cache is None else cache.pixels
        self.rows: Tensor | None = None if cache is None else cache.rows(paths)
        self.paths: PackedPaths = PackedPaths(paths)

    def read(self, index: int) -> Any:
        """A PIL image, or uint8 (3, H, W) from the cache."""
        if self.pixels is None or self.rows is None:
            return open_image(self.paths[index])
        return self.pixels[int(self.rows[index])]

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.read(index))
