"""Prompt tokens in the blocks of a Transformer tower.

Before each block that owns prompts a forward pre-hook inserts them at the tower's slot and grows the masks; after
a block that is followed by new prompts, and after the last, a forward hook takes them out. Between blocks the
sequence has its own length, which is deep prompting by replacement (VPT-deep, Jia et al. 2022, arXiv 2203.12119),
and nothing is kept from block to block, so pooling, position embedding and checkpointing need no special care.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from promptreid.errors import AttachmentError
from promptreid.prompts.config import (
    INITIALIZATIONS,
    NOISE_SHARE,
    NORMAL_STD,
    TEXT_SLOTS,
    Initialization,
    TextSlot,
)
from promptreid.prompts.kind import PromptKind, checked_depth
from promptreid.towers.growth import (
    grow_bias,
    grow_mask,
    grow_rotary,
    insert_tokens,
    mask_before_end,
    put_in_front,
    remove_tokens,
    sample_grid_positions,
    shift_positions,
    take_from_front,
)
from promptreid.towers.initial_states import mean_states, start_states
from promptreid.towers.modes import is_traced
from promptreid.towers.tower import TextTower, TokenTower, runs_slow_when_frozen, set_sequence_first
from promptreid.towers.trimming import ThreadValue
from promptreid.values import check_choice


class BlockTokens(PromptKind):
    """The learnable prompts of one tower of blocks.

    Args:
        tower: The tower they are for.
        length: P, prompts per block.
        depth: J, number of first blocks that own prompts; `None` for every block.
        position_embedding: Add the tower's own position embedding to each prompt.
        slot: Where in a caption they act.
        sequence_first: Run the blocks as (L, B, D) where that keeps frozen weights fast; `detach` undoes it.

    Shape:
        - tokens: (J, P, D) float32, zero until `start`

    Raises:
        ValueError: More prompts than the tower has positions, deeper than it has blocks, or a position or slot that
            the tower does not have.
    """

    tower: TokenTower

    def __init__(
        self,
        tower: TokenTower,
        length: int,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
        slot: TextSlot = "after_start",
        sequence_first: bool = True,
    ) -> None:
        super().__init__(tower, length, width=tower.width)
        check_choice("slot", slot, TEXT_SLOTS)
        self.depth: int = checked_depth(tower, depth)
        self.position_embedding = position_embedding
        self.before_end: bool = slot == "before_end"
        self._check_size()
        self._check_options()
        self._sequence_first: bool = sequence_first and runs_slow_when_frozen(tower)
        self._caption_ends: ThreadValue = ThreadValue()
        self._inserted_in_front: ThreadValue = ThreadValue()
        self._make_parameters()

    def _make_parameters(self) -> None:
        self.tokens: nn.Parameter = nn.Parameter(torch.zeros(self.depth, self.length, self.width))

    def _check_size(self) -> None:
        tower = self.tower
        longest = tower.length - tower.slot
        if self.length > longest:
            raise ValueError(
                f"length is {self.length}, but this {tower.kind} has a sequence of {tower.length} tokens and room for "
                f"at most {longest} prompts; 1 to 16 are usual"
            )

    def _check_options(self) -> None:
        tower = self.tower
        if self.position_embedding and tower.position_owner is None:
            raise ValueError(
                f"position_embedding is True, but this {tower.kind} has no learned position embedding that prompts "
                "could be given; leave it at False"
            )
        if self.before_end and not (isinstance(tower, TextTower) and tower.causal and tower.end_pooled):
            raise ValueError(
                f'slot is "before_end", but this {tower.kind} (pooling: {tower.pooling}) does not look back from the '
                'end of the caption, so the slot would change nothing; leave it at "after_start"'
            )
        if self.before_end and self.position_embedding:
            raise ValueError(
                'slot is "before_end" and position_embedding is True: the positions of prompts are those after the '
                'start token; choose slot="after_start" or position_embedding=False'
            )
        if tower.drops_blocks and self.depth < len(tower.blocks):
            raise ValueError(
                f"depth is {self.depth}, but this {tower.kind} skips whole blocks while training, and prompts that "
                "continue from one block to the next would be lost with a block; leave depth out, or set layerdrop "
                "to 0"
            )

    def start(self, initialization: Initialization | None, run: Callable[[], Any]) -> None:
        """Give the prompts their first values.

        Args:
            initialization: As in `PromptConfig`; `None` leaves them as they are, for a loader that sets them.
            run: Sends a few inputs through the tower, for the initialisation from hidden states.

        Raises:
            ValueError: The initialisation is unknown.
        """
        if initialization is not None:
            check_choice("initialization", initialization, INITIALIZATIONS)
        if self.length == 0 or initialization is None:
            return
        with torch.no_grad(), self.disabled():
            if initialization == "normal":
                self.tokens.normal_(std=NORMAL_STD)
            elif initialization == "mean_state":
                self.tokens.copy_(mean_states(self.tower, run, count=self.length)[: self.depth])
            else:
                states = start_states(self.tower, run, count=self.length)[: self.depth].to(self.tokens)
                noise = NOISE_SHARE * states.std(dim=-1, keepdim=True) * torch.randn_like(states)
                self.tokens.copy_(states + noise)

    def layer(self, index: int) -> Tensor:
        """Prompts of block `index`, (P, D) float32."""
        return self._placed(self._learned(index))

    def _placed(self, tokens: Tensor) -> Tensor:
        """Prompts with their positions, where they get some: (..., P, D)."""
        tower = self.tower
        positions = tower.positions
        if not self.position_embedding or positions is None or self.length == 0:
            return tokens
        if tower.grid is not None:
            return tokens + sample_grid_positions(positions, grid=tower.grid, count=self.length)
        return tokens + positions[tower.slot : tower.slot + self.length]

    def layer_for(self, index: int, sequence: Tensor) -> Tensor:
        """Prompts of block `index` for a batch that enters it: (P, D), or (B, P, D) where they differ by image."""
        return self.layer(index)

    def _learned(self, index: int) -> Tensor:
        """Prompts of block `index` without positions, (P, D) float32."""
        return self.tokens[index]

    @property
    def in_front(self) -> bool:
        """Whether prompts are currently before all tokens, which saves copies of the sequence.

        They do in eval mode without gradients, where the blocks treat all positions alike and every block has prompts
        of its own, so that a single block decides; features differ by rounding. Otherwise prompts are at the tower's
        slot: in training a pass without gradients must draw the same dropout as the pass with them. In a block they
        are where they were put, even if another thread switches the mode meanwhile.
        """
        if is_traced():
            return False
        inserted: bool | None = self._inserted_in_front.get()
        return self._may_be_in_front() if inserted is None else inserted

    def _may_be_in_front(self) -> bool:
        tower = self.tower
        alone = self.depth >= len(tower.blocks)
        encoding = not (torch.is_grad_enabled() or tower.container.training)
        return encoding and alone and tower.unordered and tower.sequence_axis == 0

    def choose_slot(self) -> None:
        """Choose where the prompts of a block are that begins to run in this thread."""
        if self.tower.unordered and not is_traced():
            self._inserted_in_front.set(self._may_be_in_front())

    def position(self, bare: Any) -> Any:
        """Positions in the blocks of tokens of the bare sequence, after the prompts or not."""
        return bare + self.length * (bare >= (0 if self.in_front else self.tower.slot)) if self.active else bare

    def register_hooks(self) -> Iterator[RemovableHandle]:
        """Register the hooks of every block, and stand in for methods that no hook reaches."""
        tower = self.tower
        if self._sequence_first:
            set_sequence_first(tower, enable=True)
        if self.before_end and self.length and isinstance(tower, TextTower) and tower.embedding is not None:
            # At the blocks' container and not at the first block, so that a block recomputed by gradient checkpointing
            # is given the same sequence and mask again.
            yield tower.embedding.register_forward_pre_hook(self._note_caption_ends)
            yield tower.container.register_forward_pre_hook(self._hide_before_end, with_kwargs=True)
        last = len(tower.blocks) - 1
        for index, block in enumerate(tower.blocks):
            yield block.register_forward_pre_hook(InsertTokens(self, index, block), with_kwargs=True)
            if index == last or index + 1 < self.depth:
                yield block.register_forward_hook(self._remove)
        if self.length == 0:
            return
        for bias in tower.relative_biases:
            vars(bias)["get_bias"] = partial(self._grown_bias, bias)
        if self.depth < len(tower.blocks) and hasattr(tower.container, "forward_intermediates"):
            vars(tower.container)["forward_intermediates"] = self._refuse_intermediates

    def detach(self) -> None:
        """Take every hook out and restore the tower's methods and layout."""
        if self.attached:
            for bias in self.tower.relative_biases:
                vars(bias).pop("get_bias", None)
            vars(self.tower.container).pop("forward_intermediates", None)
            if self._sequence_first:
                set_sequence_first(self.tower, enable=False)
        super().detach()

    def extra_repr(self) -> str:
        """Number and width of the prompts, for `print(model)`."""
        return f"{super().extra_repr()} in {self.depth} blocks"

    def _remove(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return a block's output without prompts; of a tuple, the first element is the sequence."""
        if not self.active:
            return None
        if isinstance(output, tuple):
            return (self._without_prompts(output[0]), *output[1:])
        return self._without_prompts(output)

    def _without_prompts(self, sequence: Tensor) -> Tensor:
        tower, count = self.tower, self.length
        in_front = self.in_front
        if tower.unordered and not is_traced():
            self._inserted_in_front.set(None)
        if in_front:
            return take_from_front(sequence, count=count)
        if tower.sequence_axis == 0 and not torch.is_grad_enabled() and not is_traced():
            # The few tokens before the slot are moved up to the rest, which spares a copy of all of them.
            sequence[count : count + tower.slot] = sequence[: tower.slot].clone()
            return sequence[count:]
        return remove_tokens(sequence, slot=tower.slot, count=count, axis=tower.sequence_axis)

    def _grown_bias(self, bias: nn.Module) -> Tensor:
        """A relative position bias with room for the prompts; it is made inside the block, where no hook reaches it."""
        kind: Any = type(bias)
        value: Tensor = kind.get_bias(bias)
        if not self.active:
            return value
        grown = grow_bias(value, length=value.shape[-1], slot=self.tower.slot, count=self.length)
        return value if grown is None else grown

    def _refuse_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse `forward_intermediates` where its sequences would hold prompts; run it where the tower is bare."""
        tower = self.tower
        if self.active:
            raise AttachmentError(
                f"prompts continue from block to block of this {tower.kind} (depth {self.depth} of "
                f"{len(tower.blocks)}), so its intermediate sequences hold them. Leave depth out, so that every block "
                "has its own prompts, or call forward_intermediates inside disabled()"
            )
        kind: Any = type(tower.container)
        return kind.forward_intermediates(tower.container, *args, **kwargs)

    def _note_caption_ends(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note where the captions of this batch end, which the blocks cannot see."""
        tower: Any = self.tower
        self._caption_ends.set(tower.caption_end(args[0]))

    def _hide_before_end(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let prompts act as if they were right before the caption's end.

        Prompts carry no position, so where they are only decides which token sees which. They are put in
        after the start token as always, and this mask, one for each caption, shows them only to the end token and
        what follows it.
        """
        ends: Tensor | None = self._caption_ends.get()
        self._caption_ends.set(None)
        if ends is None or not self.active:
            return None
        tower: Any = self.tower
        sequence: Tensor = args[0]
        mask = mask_before_end(ends, length=sequence.shape[1], slot=tower.slot, count=self.length)
        mask = mask.repeat_interleave(tower.heads, dim=0).to(sequence.dtype)
        return (sequence,), {**kwargs, "attn_mask": mask}


class InsertTokens:
    """Forward pre-hook of one block: inserts that block's prompts and grows what goes with the sequence."""

    def __init__(self, prompts: BlockTokens, index: int, block: nn.Module) -> None:
        self.prompts = prompts
        self.index = index
        names = list(inspect.signature(block.forward).parameters)
        tower = prompts.tower
        growing = (*tower.mask_arguments, *tower.bias_arguments, *tower.rotary_arguments, *tower.count_arguments)
        self.sequence_name: str = names[0]
        self.positions: dict[str, int] = {name: names.index(name) for name in growing if name in names}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the block's arguments with prompts in them."""
        prompts = self.prompts
        if not prompts.active:
            return None
        positional, named = list(args), dict(kwargs)
        holder: Any = positional if positional else named
        first = 0 if positional else self.sequence_name
        sequence: Tensor = holder[first]
        if self.index < prompts.depth:
            holder[first] = sequence = self._insert(sequence)
        length = sequence.shape[prompts.tower.sequence_axis] - prompts.length
        for name, position in self.positions.items():
            if name in named:
                named[name] = self._grow(name, named[name], length)
            elif position < len(positional):
                positional[position] = self._grow(name, positional[position], length)
        return tuple(positional), named

    def _insert(self, sequence: Tensor) -> Tensor:
        prompts, tower = self.prompts, self.prompts.tower
        axis, positions = tower.sequence_axis, tower.positions
        prompts.choose_slot()
        tokens = prompts.layer_for(self.index, sequence)
        if self.index == 0 and prompts.position_embedding and isinstance(tower, TextTower) and positions is not None:
            # The caption makes room for the prompts in the position table too.
            sequence = shift_positions(
                sequence, positions, slot=tower.slot, count=prompts.length, axis=axis, behind=tower.behind
            )
        if prompts.in_front:
            return put_in_front(sequence, tokens)
        return insert_tokens(sequence, tokens, slot=tower.slot, axis=axis)

    def _grow(self, name: str, value: Tensor | None, length: int) -> Tensor | None:
        prompts, tower = self.prompts, self.prompts.tower
        count = prompts.length
        if name in tower.rotary_arguments:
            return grow_rotary(value, length=length - tower.prefix, slot=tower.slot - tower.prefix, count=count)
        if name in tower.count_arguments:
            return None if value is None else torch.arange(length + count, device=value.device)
        if name in tower.bias_arguments:
            return grow_bias(value, length=length, slot=tower.slot, count=count)
        if prompts.before_end and (value is None or value.shape[-1] != length + count):
            raise AttachmentError(
                'prompts with slot="before_end" need the mask that the whole text tower makes; forward_intermediates '
                'and single blocks bypass it. Use encode_text, or slot="after_start".'
            )
        slot = 0 if prompts.in_front else tower.slot
        return grow_mask(value, length=length, slot=slot, count=count, causal=tower.causal)
