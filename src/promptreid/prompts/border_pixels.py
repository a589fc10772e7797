"""Learnable pixels around the border of the image, for towers that have no token sequence."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from promptreid.prompts.kind import PromptKind
from promptreid.towers.tower import PixelTower


class BorderPixels(PromptKind):
    """Learnable pixels around the border of the image; zero at first, which is the bare model.

    They are added to the image at the tower's entrance.

    Args:
        tower: The tower they are for.
        length: Width of the border in pixels.

    Shape:
        - tokens: (1, N, channels) float32, N = H W - (H - 2 length)(W - 2 length)

    Raises:
        ValueError: The border is wider than half of the image.

    Source:
        Bahng et al. 2022, Exploring Visual Prompts for Adapting Large-Scale Models, arXiv 2203.17274.
    """

    tower: PixelTower
    pixels: Tensor

    def __init__(self, tower: PixelTower, length: int) -> None:
        super().__init__(tower, length, width=tower.channels)
        if 2 * length > min(tower.image_size):
            raise ValueError(
                f"length is {length}, and a border that wide covers more than images of {tower.image_size}; "
                f"give at most {min(tower.image_size) // 2}, 4 to 16 are usual"
            )
        height, width = tower.image_size
        border = torch.ones(height, width, dtype=torch.bool, device="cpu")  # their number depends on the values
        border[length : height - length, length : width - length] = False
        # Their indices in the flattened image, row by row.
        self.register_buffer("pixels", border.flatten().nonzero().flatten(), persistent=False)
        self.tokens: nn.Parameter = nn.Parameter(torch.zeros(1, len(self.pixels), tower.channels))

    def register_hooks(self) -> Iterator[RemovableHandle]:
        """Register the hook at the tower's entrance."""
        yield self.tower.entrance.register_forward_pre_hook(self._add)

    def _add(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Add the border to the image."""
        if not self.active:
            return None
        images: Tensor = args[0]
        height, width = self.tower.image_size
        values = self.tokens[0].t()
        canvas = values.new_zeros(values.shape[0], height * width).index_copy(1, self.pixels, values)
        return (images + canvas.view(1, -1, height, width).to(images.dtype), *args[1:])
