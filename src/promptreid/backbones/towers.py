"""What a prompt must know of a tower, whatever its family."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class TokenTower:
    """A Transformer tower as a prompt sees it: a row of blocks that a token sequence passes through.

    One is made by `promptreid.backbones.vision.find_vision_tower` or
    `promptreid.backbones.text.find_text_tower`; nothing outside `backbones/` reads an attribute of open_clip's.

    Attributes:
        kind: Family and class, such as `"open_clip.VisionTransformer"`.
        container: The module that iterates over the blocks; it takes and returns (B, L, D).
        blocks: The Transformer blocks, first to last.
        width: D, the size of one token.
        length: L, tokens in the sequence without prompts.
        slot: Position at which prompts are inserted.
        position_owner: Module that holds the learned position embedding, (L, D), or `None` if there is none.
        grid: (rows, columns) of patches for images, `None` for text.
        mask_arguments: Block arguments that hold an attention mask growing with the sequence.
        causal: Whether a token may only look back.
        exact_trim: Whether a batch may be cut to its longest caption without changing any feature.
    """

    kind: str
    container: nn.Module
    blocks: tuple[nn.Module, ...]
    width: int
    length: int
    slot: int
    position_owner: nn.Module | None = None
    grid: tuple[int, int] | None = None
    mask_arguments: tuple[str, ...] = ("attn_mask",)
    causal: bool = False
    exact_trim: bool = False

    @property
    def sequence_axis(self) -> int:
        """Axis of the sequence inside the blocks: 1 for (B, L, D), 0 for (L, B, D); read at call time."""
        return 1 if getattr(self.container, "batch_first", True) else 0

    @property
    def positions(self) -> Tensor | None:
        """The learned position embedding, (L, D), looked up anew so that replaced parameters are seen."""
        owner: Any = self.position_owner
        return None if owner is None else owner.positional_embedding
