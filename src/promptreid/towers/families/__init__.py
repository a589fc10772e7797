"""The families of towers: one file each says how its towers are recognised, described and resized.

Two tables list them, tried in order. Your own family is one object, inserted in front:
`VISION_FAMILIES.insert(0, my_family)`.
"""

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from torch import nn

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.families import (
    huggingface_text,
    modified_resnet,
    open_clip_text,
    open_clip_vit,
    timm_trunks,
)
from promptreid.towers.tower import (
    PatchGrid,
    PixelTower,
    TextTower,
    TokenTower,
    Tower,
    image_size_of,
    refuse_compiled,
    text_module_of,
)

AnyTower = TypeVar("AnyTower", bound=Tower, covariant=True)


class TowerFamily(Protocol[AnyTower]):
    """A family of towers: a module or an object with these functions.

    They are given `clip.visual`, or the module that encodes text.
    """

    def matches(self, module: Any, /) -> bool:
        """Whether a tower is of this family."""
        ...

    def describe(self, module: Any, /) -> AnyTower:
        """Describe a tower to the prompts; `UnsupportedTowerError` if they cannot be put into it."""
        ...


class VisionFamily(TowerFamily[TokenTower | PixelTower], Protocol):
    """A family of image towers, which can be resized."""

    @property
    def resized_keys(self) -> tuple[str, ...]:
        """How the names of weights that are resized with the image end in `clip.state_dict()`."""
        ...

    def grid(self, visual: Any, /) -> PatchGrid:
        """How a tower divides the image; `PatchGrid()` if it does not."""
        ...

    def resize(self, visual: Any, image_size: tuple[int, int], /) -> None:
        """Let a tower take images of another (height, width); `ValueError` if it cannot."""
        ...


VISION_FAMILIES: list[VisionFamily] = [open_clip_vit, modified_resnet, timm_trunks]
TEXT_FAMILIES: list[TowerFamily[TextTower]] = [open_clip_text, huggingface_text]


def find_vision_tower(clip: nn.Module) -> TokenTower | PixelTower:
    """Describe the image tower of `clip` to a prompt.

    Args:
        clip: An open_clip model.

    Returns:
        A `TokenTower` where the image becomes a sequence of tokens: prompts go in right after the class and register
        tokens. Else a `PixelTower`.

    Raises:
        UnsupportedTowerError: Prompts cannot be put into towers of this family, or it is unknown.
        AttachmentError: The model is TorchScript or compiled.
    """
    known = (
        "an image tower",
        "open_clip's VisionTransformer and ModifiedResNet, timm's VisionTransformer, Eva and VisionTransformerRelPos, "
        "and timm's networks with a stem or patch_embed",
    )
    return _describe(clip, getattr(clip, "visual", None), VISION_FAMILIES, known)


def find_text_tower(clip: nn.Module) -> TextTower:
    """Describe the text tower of `clip` to a prompt, which goes in right after the start-of-sequence token.

    Args:
        clip: An open_clip model.

    Raises:
        As `find_vision_tower`.
    """
    known = ("a text tower", "open_clip's built-in text Transformers and its Hugging Face encoders")
    return _describe(clip, text_module_of(clip), TEXT_FAMILIES, known)


def _describe(
    clip: nn.Module, module: Any, families: Iterable[TowerFamily[AnyTower]], known: tuple[str, str]
) -> AnyTower:
    family = next((family for family in families if family.matches(module)), None)
    if family is None:
        refuse_compiled(clip)  # its error is the better one, if it applies
        kind = type(clip if module is None else module)
        raise UnsupportedTowerError(
            f"no prompts for {known[0]} of class {kind.__module__}.{kind.__qualname__}: known are {known[1]}, and what "
            "is added to promptreid.towers.families. Pass an open_clip model, for example "
            'promptreid.load_clip("ViT-B-16").'
        )
    tower = family.describe(module)
    refuse_compiled(clip, *tower.hooked)
    return tower


def resize_images(clip: nn.Module, image_size: tuple[int, int]) -> None:
    """Let `clip` take images of another size; what it has learned by position is resized.

    Args:
        clip: The open_clip model, bare.
        image_size: (height, width) in pixels.

    Raises:
        ValueError: The tower cannot take images of that size.
    """
    visual: Any = clip.visual
    family = _family_of(visual)
    if family is not None:
        family.resize(visual, image_size)
    elif image_size != image_size_of(clip):
        raise ValueError(
            f"an image tower of class {type(visual).__qualname__} cannot be resized from {image_size_of(clip)} to "
            f"{image_size}; load it at its own size"
        )
    stated = getattr(visual, "preprocess_cfg", None)
    if stated is not None:
        stated["size"] = image_size


def patch_grid_of(clip: nn.Module) -> PatchGrid:
    """How the image tower of `clip` divides the image, and where it keeps what it has learned by position."""
    family = _family_of(clip.visual)
    return PatchGrid() if family is None else family.grid(clip.visual)


def _family_of(visual: Any) -> VisionFamily | None:
    return next((family for family in VISION_FAMILIES if family.matches(visual)), None)
