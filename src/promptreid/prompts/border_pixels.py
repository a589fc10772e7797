"""Learnable pixels around the border of the image, for towers that have no token sequence."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from promptreid.errors import AttachmentError
from promptreid.prompts.switch import Switch
from promptreid.towers.tower import PixelTower, refuse_compiled


class BorderPixels(Protocol):
    """Learnable pixels, as the injection needs them."""

    length: int
    places: Tensor

    @property
    def tokens(self) -> Tensor:
        """The pixels, (1, N, channels)."""
        ...


def border_places(image_size: tuple[int, int], *, width: int) -> Tensor:
    """Where the border's pixels lie in the flattened image, row by row.

    Args:
        image_size: (height, width) of the image.
        width: Pixels from the edge that belong to the border.

    Shape:
        - returns: (N,) int64, N = H W - (H - 2 width)(W - 2 width)
    """
    height, breadth = image_size
    border = torch.ones(height, breadth, dtype=torch.bool)
    border[width : height - width, width : breadth - width] = False
    return border.flatten().nonzero().flatten()


class BorderInjection:
    """The hook that adds learnable pixels to the image at the tower's entrance.

    Args:
        tower: The tower.
        prompts: The pixels.

    Raises:
        AttachmentError: The tower already carries prompts, or is compiled.

    Source:
        Bahng et al. 2022, Exploring Visual Prompts for Adapting Large-Scale Models, arXiv 2203.17274.
    """

    def __init__(self, tower: PixelTower, prompts: BorderPixels) -> None:
        self.tower = tower
        self.prompts = prompts
        self.switch: Switch = Switch()
        refuse_second_set(tower)
        hook = AddBorder(self)
        self._handles: list[Any] = [tower.entrance.register_forward_pre_hook(hook)]

    @property
    def attached(self) -> bool:
        """Whether the hook is in place."""
        return bool(self._handles)

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, in the calling thread alone."""
        with self.switch.off():
            yield

    def detach(self) -> None:
        """Take the hook out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class AddBorder:
    """Forward pre-hook of the tower's first module: adds the border to the image."""

    def __init__(self, injection: BorderInjection) -> None:
        self.injection = injection

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the image with its border."""
        prompts = self.injection.prompts
        if prompts.length == 0 or not self.injection.switch.on:
            return None
        images: Tensor = args[0]
        height, width = self.injection.tower.image_size
        pixels = prompts.tokens[0].t()
        canvas = pixels.new_zeros(pixels.shape[0], height * width).index_copy(1, prompts.places, pixels)
        return (images + canvas.view(1, -1, height, width).to(images.dtype), *args[1:])


def refuse_second_set(tower: PixelTower) -> None:
    """Refuse a tower that carries prompts already, at its entrance or in its attention pool.

    Raises:
        AttachmentError: It does, or it is compiled.
    """
    modules = [tower.visual, tower.entrance, *([] if tower.attention_pool is None else [tower.attention_pool])]
    refuse_compiled(*modules)
    hooks: list[Any] = []
    for module in modules:
        hooks += module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
        hooks += module._forward_hooks.values()  # pyright: ignore[reportPrivateUsage]
    if any(getattr(hook, "injection", None) is not None for hook in hooks):
        raise AttachmentError(
            f"this {tower.kind} already carries prompts, and two sets would stack. Call .detach() on the first "
            "wrapper, or take copy.deepcopy(clip) of the bare model before wrapping."
        )
