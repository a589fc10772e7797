"""Drawn pedestrians with captions: a stand-in to try the method on, never a benchmark."""

from promptreid.data.generated.layout import write_generated

__all__ = ["write_generated"]
