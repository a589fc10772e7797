"""Datasets: annotation files, records, images, transforms and samplers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from promptreid.lazy import lazy_names

if TYPE_CHECKING:
    from promptreid.data.check import check_dataset
    from promptreid.data.dataset import CaptionedImages
    from promptreid.data.image_cache import build_image_cache
    from promptreid.data.imagefolder_writer import write_imagefolder
    from promptreid.data.reader import load_dataset
    from promptreid.data.records import ImageRecord, ReIDDataset, ReIDSplit

__all__ = [
    "CaptionedImages",
    "ImageRecord",
    "ReIDDataset",
    "ReIDSplit",
    "build_image_cache",
    "check_dataset",
    "load_dataset",
    "write_imagefolder",
]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "CaptionedImages": "promptreid.data.dataset",
        "ImageRecord": "promptreid.data.records",
        "ReIDDataset": "promptreid.data.records",
        "ReIDSplit": "promptreid.data.records",
        "build_image_cache": "promptreid.data.image_cache",
        "check_dataset": "promptreid.data.check",
        "load_dataset": "promptreid.data.reader",
        "write_imagefolder": "promptreid.data.imagefolder_writer",
    },
)


def __dir__() -> list[str]:
    return __all__
