"""How prompts are set up, and the learnable tensors of one tower."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from promptreid.prompts.border_pixels import border_places
from promptreid.towers.growth import sample_grid_positions
from promptreid.towers.tower import PixelTower, TextTower, TokenTower

Initialization = Literal["start_state", "mean_state", "normal"]
INITIALIZATIONS: tuple[str, ...] = ("start_state", "mean_state", "normal")
TextSlot = Literal["after_start", "before_end"]
TEXT_SLOTS: tuple[str, ...] = ("after_start", "before_end")
VisionPlace = Literal["auto", "attention_pool"]
VISION_PLACES: tuple[str, ...] = ("auto", "attention_pool")
_NORMAL_STD = 0.02
# Equal prompts would be given equal gradients and stay equal; this share of noise tells them apart.
_NOISE_SHARE = 0.2


@dataclass(frozen=True)
class PromptConfig:
    """Which prompts a model carries; saved with them.

    Args:
        text_length: P, prompts before the caption's first word in each block; 0 leaves the text tower bare.
        vision_length: P, prompts after the class token in each block; 0 leaves the image tower bare. In towers
            without a token sequence it is the width in pixels of the learnable border.
        text_depth: Number of first blocks that own prompts; the last ones' propagate on. `None`: every block.
        vision_depth: The same for images.
        position_embedding: Add the tower's own position embedding to prompts (the paper's ablation).
        text_initialization: `"start_state"`, each block's own hidden state of the start token with a little noise;
            `"mean_state"`, each block's own mean hidden state; or `"normal"`, N(0, 0.02).
        vision_initialization: The same for images. The defaults are those that change the features of the bare
            model least, as `benchmarks/prompt_initialization.py` measures. A border of pixels starts at zero.
        text_slot: `"after_start"`, before the caption's first word, or `"before_end"`, after its last one.
        vision_place: `"auto"`: in the blocks, or on the image's border where there are none; `"attention_pool"`: in
            the attention pool of a ModifiedResNet (RN50, RN101, …).

    Raises:
        ValueError: A length is negative, a depth is below 1, or a name is unknown.
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
    text_slot: TextSlot = "after_start"
    vision_place: VisionPlace = "auto"

    def __post_init__(self) -> None:
        for name in ("text_length", "vision_length"):
            check_integer(name, getattr(self, name), minimum=0)
        for name in ("text_depth", "vision_depth"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        for name in ("text_initialization", "vision_initialization"):
            check_choice(name, getattr(self, name), INITIALIZATIONS)
        check_choice("text_slot", self.text_slot, TEXT_SLOTS)
        check_choice("vision_place", self.vision_place, VISION_PLACES)


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Refuse a `value` that is not an integer of at least `minimum`, naming the argument."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer of at least {minimum}")
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected at least {minimum}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a `value` that is none of `choices`, naming the argument."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


class Prompts(nn.Module):
    """The learnable prompts of one tower of blocks.

    Args:
        tower: The tower they are for.
        length: P, prompts a block.
        depth: J, number of first blocks that own prompts; `None` for every block.
        position_embedding: Add the tower's own position embedding to each prompt.
        slot: Where in a caption they act.

    Shape:
        - tokens: (J, P, D) float32

    Raises:
        ValueError: More prompts than the tower has positions, deeper than it has blocks, or a position or slot that
            the tower does not have.
    """

    def __init__(
        self,
        tower: TokenTower,
        length: int,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
        slot: TextSlot = "after_start",
    ) -> None:
        super().__init__()
        check_integer("length", length, minimum=0)
        check_choice("slot", slot, TEXT_SLOTS)
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
        self.depth: int = blocks if depth is None else depth
        self.position_embedding = position_embedding
        self.before_end: bool = slot == "before_end"
        self._check_fit()
        self.tokens: nn.Parameter = nn.Parameter(torch.zeros(self.depth, length, tower.width))

    def _check_fit(self) -> None:
        kind = self.tower.kind
        if self.position_embedding and self.tower.position_owner is None:
            raise ValueError(
                f"position_embedding is True, but this {kind} has no learned position embedding that prompts could "
                "be given; leave it at False"
            )
        if self.before_end and not (isinstance(self.tower, TextTower) and self.tower.causal and self.tower.end_pooled):
            raise ValueError(
                f'slot is "before_end", but this {kind} (pooling: {self.tower.pooling}) does not look back from the '
                'end of the caption, so the slot would change nothing; leave it at "after_start"'
            )
        if self.before_end and self.position_embedding:
            raise ValueError(
                'slot is "before_end" and position_embedding is True: the positions of prompts are those after the '
                'start token; choose slot="after_start" or position_embedding=False'
            )
        if self.tower.drops_blocks and self.depth < len(self.tower.blocks):
            raise ValueError(
                f"depth is {self.depth}, but this {kind} skips whole blocks while training, and prompts that go on "
                f"from one block to the next would be lost with a block; leave depth out, or set layerdrop to 0"
            )

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


class BorderPrompts(nn.Module):
    """Learnable pixels around the border of the image; zero at first, which is the bare model.

    Args:
        tower: The tower they are for.
        length: Width of the border in pixels.

    Shape:
        - tokens: (1, N, channels) float32, N the number of pixels on the border

    Raises:
        ValueError: The border is as wide as the image.
    """

    places: Tensor

    def __init__(self, tower: PixelTower, length: int) -> None:
        super().__init__()
        check_integer("length", length, minimum=0)
        if 2 * length > min(tower.image_size):
            raise ValueError(
                f"length is {length}, and a border of so many pixels covers more than images of {tower.image_size}; "
                f"give at most {min(tower.image_size) // 2}, 4 to 16 are usual"
            )
        self.length = length
        self.depth = 1
        self.register_buffer("places", border_places(tower.image_size, width=length), persistent=False)
        self.tokens: nn.Parameter = nn.Parameter(torch.zeros(1, len(self.places), tower.channels))


class PoolPrompts(nn.Module):
    """Learnable tokens in the attention pool at the end of a ModifiedResNet, drawn from N(0, 0.02).

    Args:
        tower: The tower they are for, one with an attention pool.
        length: P, how many.

    Shape:
        - tokens: (1, P, D) float32
    """

    def __init__(self, tower: PixelTower, length: int) -> None:
        super().__init__()
        check_integer("length", length, minimum=0)
        pool: Any = tower.attention_pool
        self.length = length
        self.depth = 1
        self.tokens: nn.Parameter = nn.Parameter(
            _NORMAL_STD * torch.randn(1, length, int(pool.positional_embedding.shape[1]))
        )
