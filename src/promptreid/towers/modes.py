"""What a model does for a while: runs in eval mode, computes activations again, is traced, is made."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from threading import RLock
from types import SimpleNamespace
from typing import Any

import torch
from open_clip import hf_model
from torch import nn

# Attributes of modules that compute activations again, and transformers' handles of its hooks for that.
_EMBEDDING_HOOKS = "_require_grads_hooks"
_CHECKPOINTING = (
    *("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func"),
    *("_require_grads_hook", _EMBEDDING_HOOKS),
)

_replacing = RLock()
_evaluated_lock = RLock()
# Of modules that are in eval mode for a while, what each block that they are in puts back: the newest block last.
_evaluated: dict[nn.Module, list[dict[nn.Module, bool]]] = {}


@contextmanager
def evaluating(module: nn.Module) -> Generator[None, None, None]:
    """Put a module and everything in it into eval mode inside the block, and each back into its own mode afterwards.

    Threads that are in such blocks side by side share the mode, and the last one puts it back: a block that ends before
    a newer one leaves that to it.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     print([part.training for part in model])
        [False, False]
        >>> [part.training for part in model]
        [True, False]
    """
    modes: dict[nn.Module, bool] = {}
    with _evaluated_lock:
        for part in module.modules():
            modes[part] = part.training
            _evaluated.setdefault(part, []).append(modes)
        module.eval()
    try:
        yield
    finally:
        with _evaluated_lock:
            for part, training in modes.items():
                blocks = _evaluated[part]
                position = next(index for index, block in enumerate(blocks) if block is modes)
                if newer := blocks[position + 1 :]:
                    newer[0][part] = training
                else:
                    part.training = training
                del blocks[position]
                if not blocks:
                    del _evaluated[part]


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
    with _checkpointing_restored(clip):
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, NotImplementedError, AssertionError) as error:
            raise ValueError(
                f"{type(clip).__name__} has a tower without gradient checkpointing ({error}); leave "
                "gradient_checkpointing off, or give chunk_size to train in smaller pieces"
            ) from error
        try:
            yield
        finally:
            # A tower of transformers would take even this for True.
            transformers = isinstance(getattr(clip, "text", None), hf_model.HFTextEncoder)
            (model.visual if transformers else model).set_grad_checkpointing(False)


@contextmanager
def _checkpointing_restored(clip: nn.Module) -> Generator[None, None, None]:
    """Restore what says that activations are computed again, in open_clip's, timm's and transformers' modules.

    open_clip cannot switch it off in a tower of transformers, and transformers leaves its hooks at the embeddings.
    """
    before = [
        (part, {name: value for name, value in vars(part).items() if name in _CHECKPOINTING}) for part in clip.modules()
    ]
    try:
        yield
    finally:
        for part, state in before:
            hooks = vars(part).get(_EMBEDDING_HOOKS, [])
            for hook in hooks if hooks is not state.get(_EMBEDDING_HOOKS) else []:
                hook.remove()
            for name in _CHECKPOINTING:
                vars(part).pop(name, None)
            vars(part).update(state)


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


@contextmanager
def _without_remote_code() -> Generator[None, None, None]:
    """Keep open_clip from letting transformers run a repository's code, and from asking at a terminal whether it may.

    open_clip says nothing of `trust_remote_code`, and transformers then asks, and runs what it is allowed to.
    """
    with _replacing:  # open_clip's module is changed in this block
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


@contextmanager
def making_models() -> Generator[None, None, None]:
    """Keep open_clip from running foreign code, and from warning of random weights, which are wanted or replaced."""
    root = logging.getLogger()

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("No pretrained weights loaded", "Local config loaded"))

    root.addFilter(is_other)
    try:
        with _without_remote_code():
            yield
    finally:
        root.removeFilter(is_other)
