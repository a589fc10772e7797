"""How prompts are set up, and the checks of such options."""

from dataclasses import dataclass
from typing import Literal

Initialization = Literal["start_state", "mean_state", "normal"]
INITIALIZATIONS: tuple[str, ...] = ("start_state", "mean_state", "normal")
TextSlot = Literal["after_start", "before_end"]
TEXT_SLOTS: tuple[str, ...] = ("after_start", "before_end")
VisionPlace = Literal["auto", "attention_pool"]
VISION_PLACES: tuple[str, ...] = ("auto", "attention_pool")
NORMAL_STD = 0.02


@dataclass(frozen=True)
class PromptConfig:
    """Which prompts a model carries; saved with them.

    Args:
        text_length: P, prompts before the caption's first word in each block; 0 leaves the text tower bare.
        vision_length: P, prompts after the class token in each block; 0 leaves the image tower bare. In towers
            without a token sequence it is the width in pixels of the learnable border.
        text_depth: Number of first blocks that own prompts; those of the last continue to the end. `None`: every block.
        vision_depth: The same for images.
        position_embedding: Add the tower's own position embedding to prompts (the paper's ablation).
        text_initialization: `"start_state"`, each block's own hidden state of the start token with a little noise;
            `"mean_state"`, each block's own mean hidden state; or `"normal"`, N(0, 0.02).
        vision_initialization: The same for images. The defaults are those that change the features of the bare
            model least, as `benchmarks/prompt_initialization.py` measures. A border of pixels starts at zero.
        text_slot: `"after_start"`, before the caption's first word, or `"before_end"`, after its last one.
        vision_place: `"auto"`: in the blocks, or on the image's border where there are none; `"attention_pool"`: in
            the attention pool of a ModifiedResNet (RN50, RN101, …).

    Raises:
        ValueError: A length is negative, a depth is below 1, or a name is unknown.
        TypeError: A length or depth is not an integer.

    Example:
        >>> PromptConfig(text_length=4, vision_length=4).text_length
        4
    """

    text_length: int = 4
    vision_length: int = 4
    text_depth: int | None = None
    vision_depth: int | None = None
    position_embedding: bool = False
    text_initialization: Initialization = "start_state"
    vision_initialization: Initialization = "normal"
    text_slot: TextSlot = "after_start"
    vision_place: VisionPlace = "auto"

    def __post_init__(self) -> None:
        for name in ("text_length", "vision_length"):
            check_integer(name, getattr(self, name), minimum=0)
        for name in ("text_depth", "vision_depth"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=1)
        for name in ("text_initialization", "vision_initialization"):
            check_choice(name, getattr(self, name), INITIALIZATIONS)
        check_choice("text_slot", self.text_slot, TEXT_SLOTS)
        check_choice("vision_place", self.vision_place, VISION_PLACES)


def check_integer(name: str, value: object, *, minimum: int) -> None:
    """Refuse a `value` that is not an integer of at least `minimum`, naming the argument."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer of at least {minimum}")
    if value < minimum:
        raise ValueError(f"{name} is {value}, expected at least {minimum}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a `value` that is none of `choices`, naming the argument."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
