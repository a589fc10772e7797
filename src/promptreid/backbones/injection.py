"""Puts prompts into a tower's blocks and takes them out again, without touching the tower's code.

Before each block that owns prompts a forward pre-hook inserts them at the tower's slot and grows the masks; after
a block that is followed by new prompts, and after the last, a forward hook takes them out. Between blocks the
sequence has its own length, which is deep prompting by replacement (VPT-deep, Jia et al. 2022, arXiv 2203.12119),
and nothing is kept from block to block, so pooling, position embedding and checkpointing need no special care.
"""

import inspect
import itertools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn

from promptreid.backbones.growth import crop_mask, grow_mask, insert_tokens, remove_tokens, shift_positions
from promptreid.backbones.layout import runs_slow_when_frozen, set_sequence_first
from promptreid.backbones.towers import TokenTower
from promptreid.errors import AttachmentError

# Context variables, not attributes: each thread that infers has its own.
_bare: ContextVar[frozenset[int]] = ContextVar("promptreid_bare", default=frozenset())
_trimmed_lengths: ContextVar[tuple[tuple[int, int], ...]] = ContextVar("promptreid_trimmed_lengths", default=())
_keys = itertools.count()


class PromptTokens(Protocol):
    """The prompts of one tower, as the injection needs them."""

    length: int
    depth: int

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
        AttachmentError: The tower already carries prompts, is compiled, or is TorchScript.
    """

    def __init__(self, tower: TokenTower, prompts: PromptTokens, *, sequence_first: bool = True) -> None:
        self.tower = tower
        self.prompts = prompts
        self.key = next(_keys)
        self._handles: list[Any] = []
        self._sequence_first = sequence_first and runs_slow_when_frozen(tower)
        self._refuse_occupied()
        self._attach()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a deep copy a key of its own, so that disabling one does not disable the other."""
        self.__dict__.update(state)
        self.key = next(_keys)

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    @property
    def enabled(self) -> bool:
        """Whether prompts go in, in the calling thread."""
        return self.key not in _bare.get()

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, in the calling thread alone."""
        token = _bare.set(_bare.get() | {self.key})
        try:
            yield
        finally:
            _bare.reset(token)

    @contextmanager
    def trimmed(self, length: int) -> Generator[None, None, None]:
        """Let the tower see only the first `length` positions inside the block, in the calling thread alone."""
        token = _trimmed_lengths.set((*_trimmed_lengths.get(), (self.key, length)))
        try:
            yield
        finally:
            _trimmed_lengths.reset(token)

    @property
    def trimmed_length(self) -> int | None:
        """The length set by `trimmed`, or `None`."""
        for key, length in reversed(_trimmed_lengths.get()):
            if key == self.key:
                return length
        return None

    def detach(self) -> None:
        """Take every hook out and restore the tower's layout."""
        for handle in self._handles:
            handle.remove()
        if self._handles and self._sequence_first:
            set_sequence_first(self.tower, enable=False)
        self._handles = []

    def _refuse_occupied(self) -> None:
        for module in (self.tower.container, *self.tower.blocks):
            kinds = {type(hook) for hook in module._forward_pre_hooks.values()}  # pyright: ignore[reportPrivateUsage]
            if kinds & {TrimSequence, InsertPrompts}:
                raise AttachmentError(
                    f"this {self.tower.kind} already carries prompts, and two sets would stack. Call .detach() on "
                    "the first wrapper, or make the second from copy.deepcopy(clip)."
                )
            if getattr(module, "_compiled_call_impl", None) is not None:
                raise AttachmentError(
                    f"this {self.tower.kind} was compiled before prompts were attached, and compiled code ignores "
                    "them. Attach first, then call torch.compile on the wrapped model."
                )

    def _attach(self) -> None:
        if self._sequence_first:
            set_sequence_first(self.tower, enable=True)
        door = TrimSequence(self)
        self._handles.append(self.tower.container.register_forward_pre_hook(door, with_kwargs=True))
        last = len(self.tower.blocks) - 1
        for index, block in enumerate(self.tower.blocks):
            insert = InsertPrompts(self, index, block)
            self._handles.append(block.register_forward_pre_hook(insert, with_kwargs=True))
            if index == last or index + 1 < self.prompts.depth:
                self._handles.append(block.register_forward_hook(RemovePrompts(self)))


class TrimSequence:
    """Forward pre-hook of the blocks' container: cuts the batch to its longest caption.

    It stands at the container and not at the first block, so that a block recomputed by gradient checkpointing is
    given the trimmed sequence again.
    """

    def __init__(self, injection: PromptInjection) -> None:
        self.injection = injection

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the container's arguments, cut."""
        length = self.injection.trimmed_length
        if length is None or length >= args[0].shape[1]:
            return None
        cut = {name: crop_mask(value, length=length) for name, value in kwargs.items()}
        return (args[0][:, :length], *(crop_mask(value, length=length) for value in args[1:])), cut


class InsertPrompts:
    """Forward pre-hook of one block: inserts that block's prompts and grows the masks."""

    def __init__(self, injection: PromptInjection, index: int, block: nn.Module) -> None:
        self.injection = injection
        self.index = index
        names = list(inspect.signature(block.forward).parameters)
        self.sequence_name = names[0]
        self.mask_places = {name: names.index(name) for name in injection.tower.mask_arguments if name in names}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the block's arguments with prompts in them."""
        prompts = self.injection.prompts
        if prompts.length == 0 or not self.injection.enabled:
            return None
        positional, named = list(args), dict(kwargs)
        holder: Any = positional if positional else named
        first = 0 if positional else self.sequence_name
        sequence: Tensor = holder[first]
        if self.index < prompts.depth:
            holder[first] = sequence = self._insert(sequence)
        length = sequence.shape[self.injection.tower.sequence_axis] - prompts.length
        for name, place in self.mask_places.items():
            if name in named:
                named[name] = self._grow(named[name], length)
            elif place < len(positional):
                positional[place] = self._grow(positional[place], length)
        return tuple(positional), named

    def _insert(self, sequence: Tensor) -> Tensor:
        tower, prompts = self.injection.tower, self.injection.prompts
        axis = tower.sequence_axis
        if self.index == 0 and prompts.shifts_captions and tower.positions is not None:
            sequence = shift_positions(sequence, tower.positions, slot=tower.slot, count=prompts.length, axis=axis)
        return insert_tokens(sequence, prompts.layer(self.index), slot=tower.slot, axis=axis)

    def _grow(self, mask: Tensor | None, length: int) -> Tensor | None:
        tower = self.injection.tower
        count = self.injection.prompts.length
        return grow_mask(mask, length=length, slot=tower.slot, count=count, causal=tower.causal)


class RemovePrompts:
    """Forward hook of a block that is the last one or is followed by new prompts: takes the prompts out."""

    def __init__(self, injection: PromptInjection) -> None:
        self.injection = injection

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Return the block's output without prompts."""
        count = self.injection.prompts.length
        if count == 0 or not self.injection.enabled:
            return None
        tower = self.injection.tower
        return remove_tokens(output, slot=tower.slot, count=count, axis=tower.sequence_axis)
