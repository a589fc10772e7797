"""promptreid: prompt-tunable open_clip models for text-to-image person re-identification."""

from promptreid.backbones.loading import load_clip
from promptreid.encoders.clip import PromptedCLIP
from promptreid.encoders.text import PromptedTextEncoder
from promptreid.encoders.vision import PromptedVisionEncoder
from promptreid.prompts import PromptConfig

__version__ = "0.1.0.dev0"

__all__ = [
    "PromptConfig",
    "PromptedCLIP",
    "PromptedTextEncoder",
    "PromptedVisionEncoder",
    "load_clip",
]
