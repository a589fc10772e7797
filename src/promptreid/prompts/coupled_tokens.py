"""Image prompts that are learned projections of the text prompts."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.config import NORMAL_STD, Initialization
from promptreid.towers.tower import TokenTower


class CoupledTokens(BlockTokens):
    """Prompts in the blocks of one tower, projected from those of another: `weight_k @ (text_k / scale_k) + bias_k`.

    Each of the first J blocks has its own projection, so a gradient of either tower reaches the text prompts.
    The constant `scale_k` gives the text prompts a root mean square of 0.02 when they start, which is how MaPLe draws
    them: the projection then starts and learns alike however large the text prompts are. It is no further freedom,
    as the projection could hold it.

    Args:
        tower: The tower they are for.
        source: The prompts of the other tower, which has them as its own parameters; length and depth are theirs.
        position_embedding: As for `BlockTokens`.
        sequence_first: As for `BlockTokens`.

    Shape:
        - weight: (J, D, D of the source), bias: (J, D), scale: (J,), float32; zero, zero and one until `start`

    Raises:
        ValueError: The source has more prompts than the tower has positions, or is deeper than it has blocks.

    Source:
        Khattak et al. 2023, MaPLe: Multi-modal Prompt Learning, arXiv 2210.03117, section 3.2: the coupling function
        is a linear layer for each block.
    """

    scale: Tensor

    def __init__(
        self,
        tower: TokenTower,
        source: BlockTokens,
        *,
        position_embedding: bool = False,
        sequence_first: bool = True,
    ) -> None:
        self._source_width = source.width
        super().__init__(
            tower,
            source.length,
            depth=source.depth,
            position_embedding=position_embedding,
            sequence_first=sequence_first,
        )
        self._source = (source,)  # a tuple hides the module from registration

    def _make_parameters(self) -> None:
        self.weight: nn.Parameter = nn.Parameter(torch.zeros(self.depth, self.width, self._source_width))
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(self.depth, self.width))
        self.register_buffer("scale", torch.ones(self.depth))

    def start(self, initialization: Initialization | None, run: Callable[[], Any]) -> None:
        """Draw the projections, so that prompts start as N(0, 0.02); the source's must have started.

        Args:
            initialization: `None` leaves them as they are, for a loader that sets them.
            run: Not needed.
        """
        if self.length == 0 or initialization is None:
            return
        with torch.no_grad():
            size = self._source[0].tokens.square().mean(dim=(1, 2)).sqrt()
            self.scale.copy_(torch.where(size > 0, size / NORMAL_STD, 1))
            self.weight.normal_(std=self._source_width**-0.5)

    def _learned(self, index: int) -> Tensor:
        text = self._source[0].tokens[index]
        with torch.autocast(text.device.type, enabled=False):  # prompts are float32, and cast where they are inserted
            return F.linear(text / self.scale[index], self.weight[index], self.bias[index])
