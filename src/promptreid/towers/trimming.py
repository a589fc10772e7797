"""Leaves out what no feature is made of: captions are cut to the longest, the last block to the pooled token."""

import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import (
    CustomTransformer,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from promptreid.towers.growth import keep_positions
from promptreid.towers.modes import is_traced
from promptreid.towers.tower import TextTower, TokenTower, Tower

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(nn.modules.module, f"_global{name}") for name in _HOOKS]
# Attributes of a text or image tower that say what its feature is made of.
_POOLING = ("pool_type", "text_pool_type", "attn_pool")
# Models and towers whose methods make a feature of the token that the tower's description names.
_USUAL = {CLIP, CustomTextCLIP, CoCa, VisionTransformer, TextTransformer, Transformer, CustomTransformer}
# Layers behind the blocks.
_BEHIND = ("ln_post", "ln_final", "text_projection")
# Layers of a block that treat every token by itself, and attention, besides open_clip's own and PEFT's.
_BY_TOKEN = {
    nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, nn.LayerNorm, nn.GELU, nn.SiLU, nn.ReLU, nn.Dropout,
    nn.Identity, nn.Sequential, nn.MultiheadAttention, nn.ModuleDict, nn.ModuleList, nn.ParameterDict,
}  # fmt: skip

# What holds in the calling thread, each with the key of its object and a number; of a key, the last one counts.
_VALUES: ContextVar[tuple[tuple[int, int, Any], ...]] = ContextVar("promptreid_values", default=())


class ThreadValue:
    """A value that one object has only in the calling thread; a deep copy of the object has its own.

    It is read when a hook runs, so several threads can use one model.
    """

    _keys: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        self.key = next(self._keys)
        self._traced: Any = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a deep copy its own key, so that setting one does not set the other."""
        self.__dict__.update(state)
        self.key: int = next(self._keys)

    def get(self) -> Any:
        """The value, or `None` if this thread has set none."""
        if self._traced is not None:
            return self._traced
        for key, _, value in reversed(_VALUES.get()):
            if key == self.key:
                return value
        return None

    def set(self, value: Any) -> None:
        """Set the value in place of every one before; `None` for no value.

        Compiled code cannot set what belongs to a thread. In it the value is kept here, until it is set to `None`.
        """
        compiling = torch.compiler.is_compiling()
        self._traced = value if compiling else None
        if compiling:
            return
        others = tuple(entry for entry in _VALUES.get() if entry[0] != self.key)
        _VALUES.set(others if value is None else (*others, (self.key, 0, value)))

    @contextmanager
    def held(self, value: Any) -> Generator[None, None, None]:
        """Set the value inside the block, which may end after others that began in it, as in generators."""
        # The same numbers in every call: compiled code depends on them, and would be compiled again for others.
        number = 1 + max((number for key, number, _ in _VALUES.get() if key == self.key), default=0)
        held = self.key, number, value
        _VALUES.set((*_VALUES.get(), held))
        try:
            yield
        finally:
            # By identity: a generator may end in another thread, whose own entry has the same key and number.
            _VALUES.set(tuple(entry for entry in _VALUES.get() if entry is not held))


class CaptionTrim:
    """Cuts the batches of a text tower to their longest caption, where no feature changes by it.

    In towers that take one length of tokens it is a hook at the blocks' container. It does not stand at the first
    block, so that a block recomputed by gradient checkpointing gets the same sequence and mask again.

    Args:
        tower: The tower.
        clip: The model that it is in; captions of one with methods of your own are not cut.
    """

    def __init__(self, tower: TextTower, clip: nn.Module) -> None:
        self.tower = tower
        self._clip = clip
        self._length = ThreadValue()
        self._handle: Any = None
        if tower.trim in ("end", "class_at_end"):
            # In front of other hooks, because prompts count the positions that are left.
            self._handle = tower.container.register_forward_pre_hook(self._cut, prepend=True, with_kwargs=True)

    @contextmanager
    def cut(self, tokens: Tensor, *, enable: bool = True) -> Generator[Tensor, None, None]:
        """Give the tokens to encode inside the block: if `enable`, cut, or with the tower set to cut them itself.

        Shape:
            - tokens: (B, L) int64
        """
        tower = self.tower
        if not enable or not (tower.trim == "slice" or _are_usual(tower.module, tower.container, self._clip)):
            yield tokens
            return
        longest = tower.longest_caption(tokens)
        if tower.trim == "slice":
            yield tokens[:, :longest]
        else:
            with self._length.held(longest):
                yield tokens

    def remove(self) -> None:
        """Take the hook out."""
        if self._handle is not None:
            self._handle.remove()

    def _cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        length: int | None = self._length.get()
        if length is None:
            return None
        sequence: Tensor = args[0]
        full = sequence.shape[1]
        kept = list(range(min(length, full)))
        if self.tower.trim == "class_at_end":
            # open_clip's mask of the padding is shifted by one position, so one position of padding is seen as well.
            kept = [*range(min(length + 1, full - 1)), full - 1]
        if len(kept) == full:
            return None
        index = torch.tensor(kept, device=sequence.device)
        cut = {name: keep_positions(value, index, length=full) for name, value in kwargs.items()}
        rest = (keep_positions(value, index, length=full) for value in args[1:])
        return (sequence.index_select(1, index), *rest), cut


class LastBlock:
    """Lets the last block of a tower compute the token of each sequence that the feature is made of, and no other.

    Keys and values are those of all tokens; query, projection, norm, MLP and residual are the one token's, with the
    same value and gradients. The output has the token at every position, for the tower's own pooling to find. This
    holds only inside `reading`, so all other callers of the tower get every token. So do all callers if the difference
    could be seen or could matter: with foreign hooks, replaced methods and layers, or gradient checkpointing.

    Args:
        tower: The tower; one that pools more than a token, or has other blocks than open_clip's usual ones, stays as
            it is.
        position: From a position in the bare sequence the one in the blocks; `None` if it is not known.
        clip: The model that the tower is in.
    """

    def __init__(self, tower: Tower, position: Callable[[Any], Any], clip: nn.Module) -> None:
        self.tower: Any = tower
        self._clip = clip
        self._position = position
        self._read = ThreadValue()
        self._block: Any = tower.blocks[-1] if isinstance(tower, TokenTower) else None
        # A forward in the block's own attributes is a replacement already.
        usual = type(self._block) is ResidualAttentionBlock and "forward" not in vars(self._block)
        self._replaces: bool = usual and not hasattr(self._block, "ln_1_kv") and position(0) is not None
        self._pooling = self._pooling_now()
        if self._replaces:
            vars(self._block)["forward"] = self._forward

    @contextmanager
    def reading(self, position: Tensor | int | None) -> Generator[None, None, None]:
        """Compute inside the block only the token at this position of the bare sequence, or every one for `None`.

        Shape:
            - position: (B,) int64, or one for all
        """
        alone = self.alone(position)
        with nullcontext() if alone is None else self._read.held(alone):  # compiled code can hold nothing
            yield

    def alone(self, position: Tensor | int | None) -> Tensor | int | None:
        """The same position, or `None` where every token must be computed, as in a graph that is traced or compiled."""
        empty = isinstance(position, Tensor) and position.shape[0] == 0
        return position if self._replaces and not (is_traced() or empty or self._must_be_whole()) else None

    def remove(self) -> None:
        """Remove the block's replacement."""
        if self._replaces:
            vars(self._block).pop("forward", None)
        self._replaces = False

    def _pooling_now(self) -> list[Any]:
        values = [getattr(getattr(self.tower, "module", None), name, None) for name in _POOLING]
        return [value if isinstance(value, str) else value is None for value in values]

    def _must_be_whole(self) -> bool:
        """Whether something but the tower's pooling could depend on the other tokens of the block."""
        tower, block = self.tower, self._block
        if getattr(tower.module, "output_tokens", False) or self._pooling_now() != self._pooling:
            return True
        # A block that is computed again in the backward pass is not inside `reading` any more.
        container = tower.container
        if getattr(container, "grad_checkpointing", False) or container.resblocks[-1] is not block:
            return True
        if not _are_usual(tower.module, container, self._clip):
            return True
        behind = [layer for name in _BEHIND if isinstance(layer := getattr(tower.module, name, None), nn.Module)]
        parts = [part for module in (block, *behind) for part in module.modules()]
        if not all(type(part) in _BY_TOKEN or _package_of(type(part)) in ("open_clip", "peft") for part in parts):
            return True
        modules = [tower.module, container, *tower.module.children(), *parts]
        calls = [call for module in modules for name in _HOOKS for call in vars(module)[name].values()]
        calls += [vars(part)["forward"] for part in parts if "forward" in vars(part)]
        calls += [call for hooks in _GLOBAL_HOOKS for call in hooks.values()]
        return not all(_is_own(call) for call in calls)

    def _forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """As `ResidualAttentionBlock`, whose arguments these are; inside `reading`, only for that token."""
        block = self._block
        read: Tensor | int | None = None if is_traced() else self._read.get()
        if read is None:
            return type(block).forward(block, q_x, k_x, v_x, attn_mask=attn_mask)
        axis, position = self.tower.sequence_axis, self._position(read)
        every = block.ln_1(q_x)
        mask = None if attn_mask is None else _mask_of(attn_mask, position, heads=block.attn.num_heads)
        attended = block.attention(_token_at(every, position, axis=axis), every, every, attn_mask=mask)
        token = _token_at(q_x, position, axis=axis) + block.ls_1(attended)
        token = token + block.ls_2(block.mlp(block.ln_2(token)))
        return token.repeat_interleave(q_x.shape[axis], dim=axis)


def _package_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _are_usual(*modules: nn.Module) -> bool:
    """Whether all are open_clip's own, without a method of anybody else's in place of one of theirs."""
    return all(_is_usual_kind(type(module)) for module in modules) and not any(
        callable(value) and callable(getattr(type(module), name, None)) and not _is_own(value)
        for module in modules
        for name, value in vars(module).items()
    )


def _is_usual_kind(kind: type) -> bool:
    """Whether a class is one of open_clip's, or a subclass with no methods but `__init__`, as FSDP's are."""
    for each in kind.__mro__:
        if each in _USUAL:
            return True
        own = [name for name, value in vars(each).items() if callable(value) or isinstance(value, property)]
        if own not in ([], ["__init__"]) and not each.__module__.startswith("torch.distributed."):
            return False
    return False


def _is_own(call: Any) -> bool:
    """Whether a hook or a replaced method is promptreid's."""
    call = call.func if isinstance(call, partial) else call
    return _package_of(type(getattr(call, "__self__", call))) == __name__.partition(".")[0]


def _token_at(sequence: Tensor, position: Tensor | int, *, axis: int) -> Tensor:
    """The token of each sequence at a position: (1, B, D) for `axis=0`, (B, 1, D) for `axis=1`."""
    if isinstance(position, int):
        return sequence.narrow(axis, position % sequence.shape[axis], 1)
    each = torch.arange(len(position), device=position.device)
    return sequence[(position, each) if axis == 0 else (each, position)].unsqueeze(axis)


def _mask_of(mask: Tensor, position: Tensor | int, *, heads: int) -> Tensor:
    """The row of an attention mask, (L, L) or (B heads, L, L), at a position: (1, L) or (B heads, 1, L)."""
    if isinstance(position, int):
        return mask.narrow(-2, position % mask.shape[-2], 1)
    position = position.repeat_interleave(heads)
    return (mask[position] if mask.ndim == 2 else mask[torch.arange(len(mask)), position]).unsqueeze(1)
