"""Drawn pedestrians with captions: a stand-in to try the method on, never a benchmark."""

from promptreid.synthetic.layout import write_generated
from promptreid.synthetic.scene_file import DescribedPicture, load_scenes

__all__ = ["DescribedPicture", "load_scenes", "write_generated"]
