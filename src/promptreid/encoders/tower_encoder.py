"""What the text and the image encoder have in common."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from promptreid.backbones.injection import PromptInjection
from promptreid.backbones.probing import mean_states, start_states
from promptreid.backbones.towers import TokenTower
from promptreid.prompts import Initialization, Prompts


class PromptCarrier(nn.Module):
    """Prompts in one tower of a model that is owned elsewhere.

    Args:
        clip: The open_clip model; referred to, not registered, so its parameters are not listed here.
        tower: The tower that carries the prompts.
        prompts: The prompts.
        probe: Sends a few inputs through the bare tower, for the initialisation from hidden states.
        initialization: How prompts start; `None` leaves them zero, for a loader that sets them.
        sequence_first: Run the blocks sequence-first where that keeps frozen weights fast.
    """

    def __init__(
        self,
        clip: nn.Module,
        tower: TokenTower,
        prompts: Prompts,
        *,
        probe: Callable[[], Any],
        initialization: Initialization | None,
        sequence_first: bool,
    ) -> None:
        super().__init__()
        self._base = (clip,)  # a tuple hides the module from registration
        self.prompts = prompts.to(next(clip.parameters()).device)
        self.injection = PromptInjection(tower, prompts, sequence_first=sequence_first)
        if prompts.length and initialization is not None:
            self._start(initialization, probe)

    def _start(self, initialization: Initialization, probe: Callable[[], Any]) -> None:
        if initialization == "normal":
            self.prompts.start()
            return
        tower, count = self.injection.tower, self.prompts.length
        with self.injection.disabled():
            if initialization == "mean_state":
                self.prompts.start(mean_states(self.clip, tower, probe, count=count))
            else:
                self.prompts.start(start_states(self.clip, tower, probe, count=count), noise=True)

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
        return self.injection.tower.width

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
