"""Prompts that are keys and values of the attention of each block, and no tokens of the sequence."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from promptreid.prompts.config import (
    INITIALIZATIONS,
    NOISE_SHARE,
    NORMAL_STD,
    Initialization,
)
from promptreid.prompts.kind import PromptKind, checked_depth
from promptreid.towers.attention import SelfAttention, attentions_of, block_states
from promptreid.towers.tower import TokenTower, runs_slow_when_frozen, set_sequence_first
from promptreid.values import check_choice


class AttentionPrefix(PromptKind):
    """Learned keys and values beside those of a block: `softmax(Q [K_p; K]ᵀ / √d) [V_p; V]` in every head.

    Nothing is added to the sequence, so only attention computes with them: no MLP, norm or projection does. They are
    what attention itself uses, after its projections, norms of keys and rotary turns; every token may look at them, in
    a causal tower the start token too.

    Args:
        tower: The tower they are for.
        length: P, keys and values per block.
        depth: J, number of first blocks that own some; the others have none. `None` for every block.
        sequence_first: As for `BlockTokens`.

    Shape:
        - keys, values: (J, P, D) float32, D the width of all heads together; zero until `start`

    Raises:
        ValueError: Deeper than the tower has blocks, or the keys and values of its blocks cannot be reached.

    Source:
        Li and Liang 2021, Prefix-Tuning, arXiv 2101.00190; in this form He et al. 2022, Towards a Unified View of
        Parameter-Efficient Transfer Learning, arXiv 2110.04366, equation 5.
    """

    tower: TokenTower

    def __init__(
        self, tower: TokenTower, length: int, *, depth: int | None = None, sequence_first: bool = True
    ) -> None:
        depth = checked_depth(tower, depth)
        attentions = attentions_of(tower) if length else ()
        super().__init__(tower, length, width=attentions[0].width if attentions else tower.width)
        self.depth: int = depth
        self._attentions: tuple[SelfAttention, ...] = attentions[: self.depth]
        self._sequence_first: bool = sequence_first and runs_slow_when_frozen(tower)
        self.keys: nn.Parameter = nn.Parameter(torch.zeros(self.depth, length, self.width))
        self.values: nn.Parameter = nn.Parameter(torch.zeros(self.depth, length, self.width))

    def start(self, initialization: Initialization | None, run: Callable[[], Any]) -> None:
        """Give keys and values their first values.

        Args:
            initialization: `"normal"`, N(0, 0.02); `"start_state"`, the block's own keys and values of the token
                before the slot with a little noise; `"mean_state"`, their means over equal stretches of the sequence.
                `None` leaves them as they are, for a loader that sets them.
            run: Sends a few inputs through the tower.

        Raises:
            ValueError: The initialisation is unknown, or `"mean_state"` is of more prompts than there are positions.
        """
        if initialization is not None:
            check_choice("initialization", initialization, INITIALIZATIONS)
        if self.length == 0 or initialization is None:
            return
        with torch.no_grad():
            if initialization == "normal":
                self.keys.normal_(std=NORMAL_STD)
                self.values.normal_(std=NORMAL_STD)
                return
            for index, states in enumerate(block_states(self.tower, self._attentions, run)):
                self.keys[index], self.values[index] = self._first(states, initialization)

    def _first(self, states: Tensor, initialization: Initialization) -> Tensor:
        """Keys and values of a block from those that it makes of a few inputs: (2, B, L, D) to (2, P, D)."""
        slot = self.tower.slot
        if initialization == "mean_state":
            positions = states.shape[2] - slot
            if self.length > positions:
                raise ValueError(
                    f'length is {self.length}, but "mean_state" makes each prompt of a stretch of its own, and the '
                    f"sequence of this {self.tower.kind} has {positions} positions for them; give at most {positions}, "
                    'or choose "start_state" or "normal"'
                )
            stretches = states[:, :, slot:].tensor_split(self.length, dim=2)
            return torch.stack([part.mean(dim=(1, 2)) for part in stretches], dim=1)
        own = states[:, :, max(slot - 1, 0)].mean(dim=1, keepdim=True).expand(-1, self.length, -1)
        return own + NOISE_SHARE * own.std(dim=-1, keepdim=True) * torch.randn_like(own)

    def position(self, bare: Any) -> Any:
        """The same: nothing is added to the sequence."""
        return bare

    def register_hooks(self) -> Iterator[RemovableHandle]:
        """Stand in for the attention of every block that has keys and values of its own; no hook reaches them."""
        if self._sequence_first:
            set_sequence_first(self.tower, enable=True)
        if self.length:
            for index, attention in enumerate(self._attentions):
                vars(attention.module)["forward"] = partial(self._attend, index)
        return iter(())

    def detach(self) -> None:
        """Restore every block's own attention, and the tower's layout."""
        if self.attached:
            for attention in self._attentions:
                vars(attention.module).pop("forward", None)
            if self._sequence_first:
                set_sequence_first(self.tower, enable=False)
        super().detach()

    def extra_repr(self) -> str:
        """Number and width, for `print(model)`."""
        return f"{super().extra_repr()} in {self.depth} blocks"

    def _attend(self, index: int, *args: Any, **kwargs: Any) -> Any:
        attention = self._attentions[index]
        if not self.active:
            kind: Any = type(attention.module)
            return kind.forward(attention.module, *args, **kwargs)
        return attention.attend(partial(self._extend, index), *args, **kwargs)

    def _extend(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        heads = self._attentions[index].heads
        own, own_values = (
            rearrange(part[index], "p (h d) -> h p d", h=heads).to(keys.dtype).expand(keys.shape[0], -1, -1, -1)
            for part in (self.keys, self.values)
        )
        return torch.cat([own, keys], dim=2), torch.cat([own_values, values], dim=2)
