"""How prompts are set up, and the learnable tensors of one tower."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from promptreid.backbones.growth import sample_grid_positions
from promptreid.backbones.towers import TokenTower

Initialization = Literal["start_state", "mean_state", "normal"]
INITIALIZATIONS: tuple[str, ...] = ("start_state", "mean_state", "normal")
_NORMAL_STD = 0.02
# Equal prompts would be given equal gradients and stay equal; this share of noise tells them apart.
_NOISE_SHARE = 0.2


@dataclass(frozen=True)
class PromptConfig:
    """Which prompts a model carries; saved with them.

    Args:
        text_length: P, prompts before the caption's first word in each block; 0 leaves the text tower bare.
        vision_length: P, prompts after the class token in each block; 0 leaves the image tower bare.
        text_depth: Number of first blocks that own prompts; the last ones' propagate on. `None`: every block.
        vision_depth: The same for images.
        position_embedding: Add the tower's own position embedding to prompts (the paper's ablation).
        text_initialization: `"start_state"`, each block's own hidden state of the start token with a little noise;
            `"mean_state"`, each block's own mean hidden state; or `"normal"`, N(0, 0.02).
        vision_initialization: The same for images. The defaults are those that change the features of the bare
            model least, as `benchmarks/prompt_initialization.py` measures.

    Raises:
        ValueError: A length is negative, a depth is below 1, or the initialisation is unknown.
        TypeError: A length or depth is not an integer.

    Example:
        >>> PromptConfig(text_length=4, vision_length=4).text_length
        4
    """

    text_length: int = 4
    vision_length: int = 4
    text_depth: int | None = None
    vision_depth: int | None = None
    position_embedding: bool = False
    text_initialization: Initialization = "start_state"
    vision_initialization: Initialization = "normal"

    def __post_init__(self) -> None:
        for name in ("text_length", "vision_length"):
            check_integer(name, getattr(self, name), minimum=0)
        for name in ("text_depth", "vision_depth"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        for name in ("text_initialization", "vision_initialization"):
            if getattr(self, name) not in INITIALIZATIONS:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(INITIALIZATIONS)}")


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Refuse a `value` that is not an integer of at least `minimum`, naming the argument."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer of at least {minimum}")
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected at least {minimum}")


class Prompts(nn.Module):
    """The learnable prompts of one tower.

    Args:
        tower: The tower they are for.
        length: P, prompts a block.
        depth: J, number of first blocks that own prompts; `None` for every block.
        position_embedding: Add the tower's own position embedding to each prompt.

    Shape:
        - tokens: (J, P, D) float32

    Raises:
        ValueError: More prompts than the tower has positions, or deeper than it has blocks.
    """

    def __init__(
        self,
        tower: TokenTower,
        length: int,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
    ) -> None:
        super().__init__()
        check_integer("length", length, minimum=0)
        blocks = len(tower.blocks)
        if depth is not None:
            check_integer("depth", depth, minimum=1)
        if depth is not None and depth > blocks:
            raise ValueError(f"depth is {depth}, but this {tower.kind} has {blocks} blocks; give 1 to {blocks}")
        longest = tower.length - tower.slot
        if length > longest:
            raise ValueError(
                f"length is {length}, but this {tower.kind} has a sequence of {tower.length} tokens and room for "
                f"at most {longest} prompts; 1 to 16 are usual"
            )
        self.tower = tower
        self.length = length
        self.depth = blocks if depth is None else depth
        self.position_embedding = position_embedding
        self.tokens = nn.Parameter(torch.zeros(self.depth, length, tower.width))

    @property
    def shifts_captions(self) -> bool:
        """Whether the caption moves on in the position table to make room for the prompts."""
        return self.position_embedding and self.tower.grid is None and self.length > 0

    def start(self, states: Tensor | None = None, *, noise: bool = False) -> None:
        """Set the prompts to hidden states (blocks, P, D), with `noise` if they are all alike; or draw them."""
        with torch.no_grad():
            if states is None:
                self.tokens.normal_(std=_NORMAL_STD)
                return
            own = states[: self.depth].to(self.tokens)
            if noise:
                own = own + _NOISE_SHARE * own.std(dim=-1, keepdim=True) * torch.randn_like(own)
            self.tokens.copy_(own)

    def layer(self, index: int) -> Tensor:
        """Prompts of block `index`, (P, D) float32."""
        tokens = self.tokens[index]
        positions = self.tower.positions
        if not self.position_embedding or positions is None or self.length == 0:
            return tokens
        if self.tower.grid is not None:
            return tokens + sample_grid_positions(positions, grid=self.tower.grid, count=self.length)
        return tokens + positions[self.tower.slot : self.tower.slot + self.length]
