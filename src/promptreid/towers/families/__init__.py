"""The families of towers: one file each says how its towers are recognised, described and resized.

Two tables list them, tried in order. A family of your own is one object, put in front:
`VISION_FAMILIES.insert(0, my_family)`.
"""

from typing import Any, Protocol

from torch import nn

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.families import (
    huggingface_text,
    modified_resnet,
    open_clip_text,
    open_clip_vit,
    timm_trunks,
)
from promptreid.towers.features import image_size_of, text_module_of
from promptreid.towers.tower import PixelTower, PositionGrid, TextTower, TokenTower, refuse_compiled


class VisionFamily(Protocol):
    """A family of image towers; a module or an object with these functions.

    Attributes:
        resized_keys: How the names of weights end, in `clip.state_dict()`, that are resized with the image.
    """

    @property
    def resized_keys(self) -> tuple[str, ...]: ...  # noqa: D102

    def matches(self, visual: Any) -> bool:
        """Whether `clip.visual` is of this family."""
        ...

    def describe(self, visual: Any) -> TokenTower | PixelTower:
        """What prompts must know of it.

        Raises:
            UnsupportedTowerError: Prompts cannot be put into it.
        """
        ...

    def resize(self, visual: Any, image_size: tuple[int, int]) -> None:
        """Let it take images of another (height, width).

        Raises:
            ValueError: It cannot.
        """
        ...

    def position_grid(self, visual: Any) -> PositionGrid | None:
        """Where it keeps what it has learned by absolute position; `None` for nothing."""
        ...

    def patch_size(self, visual: Any) -> tuple[int, int]:
        """(height, width) in pixels that become one position of the grid; (1, 1) if it takes any size."""
        ...


class TextFamily(Protocol):
    """A family of text towers; a module or an object with these functions."""

    def matches(self, text: Any) -> bool:
        """Whether the module that encodes text is of this family."""
        ...

    def describe(self, text: Any) -> TextTower:
        """What prompts must know of it.

        Raises:
            UnsupportedTowerError: Prompts cannot be put into it.
        """
        ...


VISION_FAMILIES: list[VisionFamily] = [open_clip_vit, modified_resnet, timm_trunks]
TEXT_FAMILIES: list[TextFamily] = [open_clip_text, huggingface_text]


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
    visual: Any = getattr(clip, "visual", None)
    family = _vision_family(visual)
    if family is None:
        refuse_compiled(clip)
        raise UnsupportedTowerError(
            f"no prompts for an image tower of class {_class_of(clip if visual is None else visual)}: known are "
            "open_clip's VisionTransformer and ModifiedResNet, timm's VisionTransformer, Eva and "
            "VisionTransformerRelPos, and timm's networks with a stem or patch_embed. Pass an open_clip model, for "
            'example promptreid.load_clip("ViT-B-16"), or add a family to '
            "promptreid.towers.families.VISION_FAMILIES."
        )
    tower = family.describe(visual)
    refuse_compiled(clip, *tower.hooked)
    return tower


def find_text_tower(clip: nn.Module) -> TextTower:
    """Describe the text tower of `clip` to a prompt.

    Args:
        clip: An open_clip model.

    Returns:
        The tower; prompts go in right after the start-of-sequence token.

    Raises:
        UnsupportedTowerError: Prompts cannot be put into towers of this family, or it is unknown.
        AttachmentError: The model is TorchScript or compiled.
    """
    text = text_module_of(clip)
    family = next((family for family in TEXT_FAMILIES if family.matches(text)), None)
    if family is None:
        refuse_compiled(clip)
        raise UnsupportedTowerError(
            f"no prompts for a text tower of class {_class_of(clip if text is None else text)}: known are open_clip's "
            "built-in text Transformers and its Hugging Face encoders. Pass an open_clip model, for example "
            'promptreid.load_clip("ViT-B-16"), or add a family to promptreid.towers.families.TEXT_FAMILIES.'
        )
    tower = family.describe(text)
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
    family = _vision_family(visual)
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


def position_grid_of(clip: nn.Module) -> PositionGrid | None:
    """Where the image tower keeps what it has learned by absolute position; `None` for nothing."""
    family = _vision_family(clip.visual)
    return None if family is None else family.position_grid(clip.visual)


def patch_size_of(clip: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that become one position of the grid; (1, 1) if any size is taken."""
    family = _vision_family(clip.visual)
    return (1, 1) if family is None else family.patch_size(clip.visual)


def _vision_family(visual: Any) -> VisionFamily | None:
    return next((family for family in VISION_FAMILIES if family.matches(visual)), None)


def _class_of(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
