"""Gradient checkpointing by open_clip's own switch."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def recomputed_activations(clip: nn.Module, *, enable: bool) -> Generator[None, None, None]:
    """Let the towers compute activations again in the backward pass inside the block, if `enable`.

    Raises:
        ValueError: A tower cannot; says which.
    """
    if not enable:
        yield
        return
    model: Any = clip
    if not can_reach_prompts(clip):
        raise ValueError(
            "gradient checkpointing of a Hugging Face text tower goes past its prompts before transformers 5; install "
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


def can_reach_prompts(clip: nn.Module) -> bool:
    """Whether recomputed blocks run their hooks: not in Hugging Face's towers before transformers 5."""
    text: Any = getattr(clip, "text", None)
    tower: Any = getattr(text, "transformer", None)
    return hasattr(tower, "activation_checkpointing_enable") or not hasattr(tower, "gradient_checkpointing_enable")
