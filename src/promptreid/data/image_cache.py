"""Pictures decoded once: bytes of the training size in one memory-mapped file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PixelRows:
    """Rows of a file of pixels, read as they are needed; all processes share the memory.

    Args:
        path: The file.
        image_size: (height, width) of each picture.
    """

    def __init__(self, path: Path, image_size: tuple[int, int]) -> None:
        self.path = path
        self.image_size = image_size
        self._pixels: Any = None

    def __getitem__(self, row: int) -> Tensor:
        """The pixels of one picture, a copy, uint8 (3, H, W)."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, dtype=np.uint8, mode="r").reshape(-1, 3, *self.image_size)
        return torch.from_numpy(np.array(self._pixels[row]))

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a map would become its content: each worker opens the file itself.
        return {**self.__dict__, "_pixels": None}


class ImageCache:
    """Decoded pictures in a file. Made by `build_image_cache`.

    Args:
        pixels: The file's rows.
        rows: Where each picture is in the file.
        bad: Pictures that could not be decoded, and why.

    Attributes:
        pixels: The file's rows, which are all that loader workers need.
        bad: Pictures left out, with the reason.

    Shape:
        - an item: uint8 (3, H, W)
    """

    def __init__(self, pixels: PixelRows, *, rows: Mapping[Path, int], bad: Mapping[Path, str]) -> None:
        self.pixels = pixels
        self.bad: dict[Path, str] = dict(bad)
        self._rows = dict(rows)

    @property
    def path(self) -> Path:
        """The file."""
        return self.pixels.path

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.image_size

    def __len__(self) -> int:
        """Pictures that can be read from it."""
        return len(self._rows)

    def __contains__(self, path: Path) -> bool:
        return path in self._rows

    def __getitem__(self, path: Path) -> Tensor:
        """The pixels of a picture, a copy, uint8 (3, H, W)."""
        return self.pixels[int(self.rows([path])[0])]

    def rows(self, paths: Sequence[Path]) -> Tensor:
        """Where pictures are in `pixels`, (len(paths),) int64.

        Raises:
            KeyError: One is not in the cache.
        """
        absent = [path for path in paths if path not in self._rows]
        if absent:
            raise KeyError(
                f"{len(absent):,} of {len(paths):,} images are not in the cache {self.path}, such as {absent[0]}; "
                "build it for these images"
            )
        return torch.tensor([self._rows[path] for path in paths], dtype=torch.int64)


def read_manifest(path: Path) -> dict[str, str] | None:
    """Digests that could not be decoded, with reasons, of a complete cache; `None` if there is no complete one."""
    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        size = path.stat().st_size
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or manifest.get("bytes") != size or not isinstance(manifest.get("bad"), dict):
        return None
    return manifest["bad"]
