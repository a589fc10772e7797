"""What the text and the image encoder have in common."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from promptreid.prompts.attention_pool_tokens import AttentionPoolInjection
from promptreid.prompts.block_tokens import PromptInjection
from promptreid.prompts.border_pixels import BorderInjection
from promptreid.prompts.config import (
    INITIALIZATIONS,
    BorderPrompts,
    Initialization,
    PoolPrompts,
    Prompts,
    check_choice,
)
from promptreid.towers.probing import mean_states, start_states

Injection = PromptInjection | BorderInjection | AttentionPoolInjection


class PromptCarrier(nn.Module):
    """Prompts in one tower of a model that is owned elsewhere.

    Args:
        clip: The open_clip model; referred to, not registered, so its parameters are not listed here.
        injection: What carries the prompts into the tower.
        prompts: The prompts.
    """

    def __init__(self, clip: nn.Module, injection: Injection, prompts: Prompts | BorderPrompts | PoolPrompts) -> None:
        super().__init__()
        self._base = (clip,)  # a tuple hides the module from registration
        self.prompts: BorderPrompts | PoolPrompts | Prompts = prompts.to(next(clip.parameters()).device)
        self.injection = injection

    @property
    def clip(self) -> nn.Module:
        """The open_clip model."""
        return self._base[0]

    @property
    def kind(self) -> str:
        """Family and class of the tower."""
        return self.injection.tower.kind

    @property
    def width(self) -> int:
        """D, the size of one prompt."""
        return self.prompts.tokens.shape[2]

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, in the calling thread alone."""
        with self.injection.disabled():
            yield

    def detach(self) -> nn.Module:
        """Take the prompts out of the model for good and return it as it was."""
        self.injection.detach()
        return self.clip

    def extra_repr(self) -> str:
        """Name the tower in `print(model)`."""
        shape: Tensor = self.prompts.tokens
        return f"{self.kind}, {shape.shape[1]} prompts of width {shape.shape[2]} in {shape.shape[0]} blocks"


def start_prompts(
    clip: nn.Module,
    injection: PromptInjection,
    prompts: Prompts,
    *,
    probe: Callable[[], Any],
    initialization: Initialization | None,
) -> None:
    """Give prompts their first values.

    Args:
        clip: The open_clip model.
        injection: The injection that carries them.
        prompts: The prompts.
        probe: Sends a few inputs through the bare tower, for the initialisation from hidden states.
        initialization: How prompts start; `None` leaves them zero, for a loader that sets them.

    Raises:
        ValueError: There is no such initialisation.
    """
    if initialization is not None:
        check_choice("initialization", initialization, INITIALIZATIONS)
    if prompts.length == 0 or initialization is None:
        return
    if initialization == "normal":
        prompts.start()
        return
    with injection.disabled():
        if initialization == "mean_state":
            prompts.start(mean_states(clip, injection.tower, probe, count=prompts.length))
        else:
            prompts.start(start_states(clip, injection.tower, probe, count=prompts.length), noise=True)
