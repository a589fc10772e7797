"""How a model is made and runs for a while: in eval mode, sequence first, by thread, on captions that are cut."""

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from threading import RLock
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from open_clip import hf_model
from torch import Tensor, nn

from promptreid.towers.growth import keep_positions
from promptreid.towers.tower import TextTower, TokenTower

_replacing = RLock()


@contextmanager
def evaluating(module: nn.Module) -> Generator[None, None, None]:
    """Put a module and everything in it into eval mode inside the block, and each back into its own mode afterwards.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     print([part.training for part in model])
        [False, False]
        >>> [part.training for part in model]
        [True, False]
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def recomputed_activations(clip: nn.Module, *, enable: bool) -> Generator[None, None, None]:
    """Let the towers compute activations again in the backward pass inside the block, if `enable`.

    Raises:
        ValueError: A tower does not support it; says which.
    """
    if not enable:
        yield
        return
    model: Any = clip
    if not can_reach_prompts(clip):
        raise ValueError(
            "gradient checkpointing of a Hugging Face text tower skips its prompts before transformers 5; install "
            "transformers>=5, or leave gradient_checkpointing off"
        )
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"{type(clip).__name__} has a tower without gradient checkpointing ({error}); leave gradient_checkpointing "
            "off, or give chunk_size to train in smaller pieces"
        ) from error
    try:
        yield
    finally:
        model.set_grad_checkpointing(False)


def is_traced() -> bool:
    """Whether a graph is being made of what runs: it cannot look at values, and has one shape for every batch."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@contextmanager
def constants_when_traced(clip: nn.Module) -> Generator[None, None, None]:
    """Let `torch.jit.trace` take the weights of `clip` for constants, which may not require gradients.

    The encoders do not list the weights of the model that they refer to, so in a trace of one they are constants.
    """
    trained = [each for each in clip.parameters() if each.requires_grad] if torch.jit.is_tracing() else []
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True


def can_reach_prompts(clip: nn.Module) -> bool:
    """Whether recomputed blocks run their hooks: not in Hugging Face's towers before transformers 5."""
    text: Any = getattr(clip, "text", None)
    tower: Any = getattr(text, "transformer", None)
    return hasattr(tower, "activation_checkpointing_enable") or not hasattr(tower, "gradient_checkpointing_enable")


def runs_slow_when_frozen(tower: TokenTower) -> bool:
    """Whether every block attends through a batch-first `nn.MultiheadAttention`.

    With `batch_first=True` it gives its projection a transposed view. With a weight that needs no gradient PyTorch
    then expands the weight once for every position instead of folding the view, so a frozen tower becomes many times
    slower. Run sequence-first, the same weights give the same values without the copy.
    """
    attentions = [getattr(block, "attn", None) for block in tower.blocks]
    return bool(getattr(tower.container, "batch_first", False)) and all(
        isinstance(attention, nn.MultiheadAttention) and attention.batch_first for attention in attentions
    )


def set_sequence_first(tower: TokenTower, *, enable: bool) -> None:
    """Switch the tower's blocks between (L, B, D), if `enable`, and (B, L, D)."""
    attentions: list[Any] = [block.attn for block in tower.blocks]
    # PEFT's layers only show the layout of the attention that they stand in for.
    modules: list[Any] = [tower.container, *(getattr(each, "base_layer", each) for each in attentions)]
    for module in modules:
        module.batch_first = not enable


# Of every object in the calling thread, by its key.
_VALUES: ContextVar[tuple[tuple[int, Any], ...]] = ContextVar("promptreid_values", default=())


class ThreadValue:
    """A value that one object has in the calling thread alone; a deep copy of the object has its own.

    It is read when a hook runs, so several threads can use one model.
    """

    _keys: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        self.key = next(self._keys)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a deep copy a key of its own, so that setting one does not set the other."""
        self.__dict__.update(state)
        self.key: int = next(self._keys)

    def get(self) -> Any:
        """The value, or `None` if this thread has set none."""
        for key, value in _VALUES.get():
            if key == self.key:
                return value
        return None

    def set(self, value: Any) -> Any:
        """Set the value; returns the token that resets it."""
        others = tuple(entry for entry in _VALUES.get() if entry[0] != self.key)
        return _VALUES.set((*others, (self.key, value)))

    @contextmanager
    def held(self, value: Any) -> Generator[None, None, None]:
        """Set the value inside the block."""
        token = self.set(value)
        try:
            yield
        finally:
            _VALUES.reset(token)


class CaptionTrim:
    """Cuts the batches of a text tower to their longest caption, where no feature changes by it.

    In towers that take one length of tokens it is a hook at the blocks' container. It does not stand at the first
    block, so that a block recomputed by gradient checkpointing gets the same sequence and mask again.

    Args:
        tower: The tower.
    """

    def __init__(self, tower: TextTower) -> None:
        self.tower = tower
        self._length = ThreadValue()
        self._handle: Any = None
        if tower.trim in ("end", "class_at_end"):
            # In front of other hooks, because prompts count the positions that are left.
            self._handle = tower.container.register_forward_pre_hook(self._cut, prepend=True, with_kwargs=True)

    @contextmanager
    def cut(self, tokens: Tensor) -> Generator[Tensor, None, None]:
        """Give the tokens to encode inside the block, cut or with the tower set to cut them itself.

        Shape:
            - tokens: (B, L) int64
        """
        longest = self.tower.longest_caption(tokens)
        if self.tower.trim == "slice":
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


@contextmanager
def without_remote_code() -> Generator[None, None, None]:
    """Keep open_clip from letting transformers run a repository's code, and from asking at a terminal whether it may.

    open_clip says nothing of `trust_remote_code`, and transformers then asks, and runs what it is allowed to.
    """
    with _replacing:  # open_clip's module is changed meanwhile
        real = {name: getattr(hf_model, name) for name in ("AutoConfig", "AutoModel") if hasattr(hf_model, name)}
        makers = ("from_pretrained", "from_config")
        for name, auto in real.items():
            safe = {
                each: partial(getattr(auto, each), trust_remote_code=False) for each in makers if hasattr(auto, each)
            }
            setattr(hf_model, name, SimpleNamespace(**safe))
        try:
            yield
        finally:
            for name, auto in real.items():
                setattr(hf_model, name, auto)
