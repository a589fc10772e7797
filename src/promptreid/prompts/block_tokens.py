"""Puts prompts into a tower's blocks and takes them out again, without touching the tower's code.

Before each block that owns prompts a forward pre-hook inserts them at the tower's slot and grows the masks; after
a block that is followed by new prompts, and after the last, a forward hook takes them out. Between blocks the
sequence has its own length, which is deep prompting by replacement (VPT-deep, Jia et al. 2022, arXiv 2203.12119),
and nothing is kept from block to block, so pooling, position embedding and checkpointing need no special care.
"""

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from promptreid.errors import AttachmentError
from promptreid.prompts.caption_hooks import HidePromptsBeforeEnd, NoteCaptionEnds, TrimSequence
from promptreid.prompts.switch import Switch
from promptreid.towers.growth import (
    grow_bias,
    grow_mask,
    grow_rotary,
    insert_tokens,
    put_in_front,
    remove_tokens,
    shift_positions,
    take_from_front,
)
from promptreid.towers.memory_layout import runs_slow_when_frozen, set_sequence_first
from promptreid.towers.tower import TextTower, TokenTower, refuse_compiled


class PromptTokens(Protocol):
    """The prompts of one tower, as the injection needs them."""

    length: int
    depth: int
    before_end: bool

    @property
    def shifts_captions(self) -> bool:
        """Whether the caption moves on in the position table to make room for the prompts."""
        ...

    def layer(self, index: int) -> Tensor:
        """Prompts of block `index`, (P, D)."""
        ...


class PromptInjection:
    """The hooks that carry one set of prompts through one tower.

    Args:
        tower: Where the prompts go.
        prompts: What goes in.
        sequence_first: Run the blocks as (L, B, D) where that keeps frozen weights fast; `detach` undoes it.

    Raises:
        AttachmentError: The tower already carries prompts, or is compiled.
    """

    def __init__(self, tower: TokenTower, prompts: PromptTokens, *, sequence_first: bool = True) -> None:
        self.tower = tower
        self.prompts = prompts
        self.switch: Switch = Switch()
        self._handles: list[Any] = []
        self._sequence_first = sequence_first and runs_slow_when_frozen(tower)
        self._refuse_occupied()
        self._attach()

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    @property
    def in_front(self) -> bool:
        """Whether prompts stand before all tokens just now, which spares copies of the sequence.

        So it is in eval mode without gradients, where places are all alike to the blocks, and every block has prompts
        of its own, so that one block alone decides; features differ by rounding. Else prompts stand at the tower's
        slot: in training a pass without gradients must draw the dropout of the pass with them.
        """
        tower = self.tower
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        alone = self.prompts.depth >= len(tower.blocks)
        encoding = not (torch.is_grad_enabled() or tower.container.training or traced)
        return encoding and alone and tower.unordered and tower.sequence_axis == 0

    @property
    def slot(self) -> int:
        """Position of the first prompt just now."""
        return 0 if self.in_front else self.tower.slot

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, in the calling thread alone."""
        with self.switch.off():
            yield

    def detach(self) -> None:
        """Take every hook out and restore the tower's layout."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            for bias in self.tower.relative_biases:
                bias.__dict__.pop("get_bias", None)
            self.tower.container.__dict__.pop("forward_intermediates", None)
            if self._sequence_first:
                set_sequence_first(self.tower, enable=False)
        self._handles = []

    def _refuse_occupied(self) -> None:
        refuse_compiled(self.tower.container, *self.tower.blocks)
        for block in self.tower.blocks:
            kinds = {type(hook) for hook in block._forward_pre_hooks.values()}  # pyright: ignore[reportPrivateUsage]
            if InsertPrompts in kinds:
                raise AttachmentError(
                    f"this {self.tower.kind} already carries prompts, and two sets would stack. Call .detach() on "
                    "the first wrapper, or take copy.deepcopy(clip) of the bare model before wrapping."
                )

    def _attach(self) -> None:
        if self._sequence_first:
            set_sequence_first(self.tower, enable=True)
        if isinstance(self.tower, TextTower) and self.tower.trim in ("end", "class_at_end"):
            self._hook(self.tower.container, TrimSequence(self.switch, self.tower))
        if self.prompts.before_end and self.prompts.length:
            self._attach_before_end()
        last = len(self.tower.blocks) - 1
        for index, block in enumerate(self.tower.blocks):
            self._hook(block, InsertPrompts(self, index, block))
            if index == last or index + 1 < self.prompts.depth:
                self._handles.append(block.register_forward_hook(RemovePrompts(self)))
        if self.prompts.length:
            self._replace_methods()

    def _replace_methods(self) -> None:
        """Stand in for methods that no hook reaches."""
        for bias in self.tower.relative_biases:
            bias.__dict__["get_bias"] = GrownBias(self, bias)
        container = self.tower.container
        if self.prompts.depth < len(self.tower.blocks) and hasattr(container, "forward_intermediates"):
            container.__dict__["forward_intermediates"] = RefusedIntermediates(self)

    def _attach_before_end(self) -> None:
        tower: Any = self.tower
        note = NoteCaptionEnds(self.switch, tower)
        self._handles.append(tower.embedding.register_forward_pre_hook(note))
        heads = int(tower.blocks[0].attn.num_heads)
        self._hook(tower.container, HidePromptsBeforeEnd(self.switch, tower, count=self.prompts.length, heads=heads))

    def _hook(self, module: nn.Module, hook: Any) -> None:
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


class InsertPrompts:
    """Forward pre-hook of one block: inserts that block's prompts and grows what goes with the sequence."""

    def __init__(self, injection: PromptInjection, index: int, block: nn.Module) -> None:
        self.injection = injection
        self.index = index
        names = list(inspect.signature(block.forward).parameters)
        tower = injection.tower
        growing = (*tower.mask_arguments, *tower.bias_arguments, *tower.rotary_arguments)
        self.sequence_name: str = names[0]
        self.places: dict[str, int] = {name: names.index(name) for name in growing if name in names}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the block's arguments with prompts in them."""
        prompts = self.injection.prompts
        if prompts.length == 0 or not self.injection.switch.on:
            return None
        positional, named = list(args), dict(kwargs)
        holder: Any = positional if positional else named
        first = 0 if positional else self.sequence_name
        sequence: Tensor = holder[first]
        if self.index < prompts.depth:
            holder[first] = sequence = self._insert(sequence)
        length = sequence.shape[self.injection.tower.sequence_axis] - prompts.length
        for name, place in self.places.items():
            if name in named:
                named[name] = self._grow(name, named[name], length)
            elif place < len(positional):
                positional[place] = self._grow(name, positional[place], length)
        return tuple(positional), named

    def _insert(self, sequence: Tensor) -> Tensor:
        tower, prompts = self.injection.tower, self.injection.prompts
        axis = tower.sequence_axis
        if self.index == 0 and prompts.shifts_captions and tower.positions is not None:
            sequence = shift_positions(sequence, tower.positions, slot=tower.slot, count=prompts.length, axis=axis)
        if self.injection.in_front:
            return put_in_front(sequence, prompts.layer(self.index))
        return insert_tokens(sequence, prompts.layer(self.index), slot=tower.slot, axis=axis)

    def _grow(self, name: str, value: Tensor | None, length: int) -> Tensor | None:
        tower, prompts = self.injection.tower, self.injection.prompts
        count = prompts.length
        if name in tower.rotary_arguments:
            return grow_rotary(value, length=length - tower.prefix, slot=tower.slot - tower.prefix, count=count)
        if name in tower.bias_arguments:
            return grow_bias(value, length=length, slot=tower.slot, count=count)
        if prompts.before_end and (value is None or value.shape[-1] != length + count):
            raise AttachmentError(
                'prompts with slot="before_end" need the mask that the whole text tower makes; forward_intermediates '
                'and single blocks go past it. Use encode_text, or slot="after_start".'
            )
        return grow_mask(value, length=length, slot=self.injection.slot, count=count, causal=tower.causal)


class RemovePrompts:
    """Forward hook of a block that is the last one or is followed by new prompts: takes the prompts out."""

    def __init__(self, injection: PromptInjection) -> None:
        self.injection = injection

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the block's output without prompts; of a tuple, the first element is the sequence."""
        count = self.injection.prompts.length
        if count == 0 or not self.injection.switch.on:
            return None
        if isinstance(output, tuple):
            return (self._remove(output[0], count), *output[1:])
        return self._remove(output, count)

    def _remove(self, sequence: Tensor, count: int) -> Tensor:
        tower = self.injection.tower
        if self.injection.in_front:
            return take_from_front(sequence, count=count)
        if tower.sequence_axis == 0 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The few tokens before the slot are moved up to the rest, which spares a copy of all of them.
            sequence[count : count + tower.slot] = sequence[: tower.slot].clone()
            return sequence[count:]
        return remove_tokens(sequence, slot=tower.slot, count=count, axis=tower.sequence_axis)


class GrownBias:
    """Stands in for the `get_bias` of a relative position bias: the same, with room for the prompts.

    The bias is made inside the block, where no hook reaches it.
    """

    def __init__(self, injection: PromptInjection, bias: nn.Module) -> None:
        self.injection = injection
        self.bias = bias

    def __call__(self) -> Tensor:
        """The bias between all positions, (1, heads, L + P, L + P)."""
        kind: Any = type(self.bias)
        value: Tensor = kind.get_bias(self.bias)
        tower, count = self.injection.tower, self.injection.prompts.length
        if not self.injection.switch.on:
            return value
        grown = grow_bias(value, length=value.shape[-1], slot=tower.slot, count=count)
        return value if grown is None else grown


class RefusedIntermediates:
    """Stands in for the `forward_intermediates` of blocks that pass prompts on, which would return prompts as well."""

    def __init__(self, injection: PromptInjection) -> None:
        self.injection = injection

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it where the tower is bare; refuse it where it is not."""
        tower = self.injection.tower
        if self.injection.switch.on:
            raise AttachmentError(
                f"prompts go on from block to block of this {tower.kind} (depth {self.injection.prompts.depth} of "
                f"{len(tower.blocks)}), so its intermediate sequences hold them. Leave depth out, so that every block "
                "has its own prompts, or call forward_intermediates inside disabled()"
            )
        kind: Any = type(tower.container)
        return kind.forward_intermediates(tower.container, *args, **kwargs)
