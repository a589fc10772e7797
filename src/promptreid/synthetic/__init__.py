"""Drawn pedestrians with captions: a stand-in to try the method on, never a benchmark."""

from promptreid.synthetic.scenes import DescribedImage, load_scenes
from promptreid.synthetic.writer import write_generated

__all__ = ["DescribedImage", "load_scenes", "write_generated"]
