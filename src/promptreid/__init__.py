"""promptreid: prompt-tunable open_clip models for text-to-image person re-identification."""

__version__ = "0.1.0.dev0"
