"""Which pictures a gallery is made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptreid.data.image_files import IMAGE_ENDINGS, list_images
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.errors import DatasetError
from promptreid.retrieval.table import Metadata

ImageSource = str | Path | ReIDSplit | Iterable[str | Path | ImageRecord]


@dataclass(frozen=True)
class PictureFile:
    """A picture to put into a gallery.

    Attributes:
        path: The file.
        metadata: What is known of it.
    """

    path: str
    metadata: Metadata


def list_pictures(images: ImageSource, *, metadata: Sequence[Metadata] | None = None) -> list[PictureFile]:
    """Find the pictures of a folder with its sub-folders, a split, a list of records or of files.

    A picture from a folder knows its sub-folder (`"folder"`), one from a record its person and split.

    Args:
        images: Where the pictures are.
        metadata: What is known of each, beside that; only with a list.

    Raises:
        DatasetError: The folder is not there, or there is no picture.
        ValueError: `metadata` has another length, or comes with a folder.
    """
    if isinstance(images, str | Path):
        if metadata is not None:
            raise ValueError("metadata goes with a list of pictures, whose order is known; a folder was given")
        return _list_folder(Path(images))
    entries = list(images.records) if isinstance(images, ReIDSplit) else list(images)
    if not entries:
        raise DatasetError("the list of images is empty; give at least one path")
    known = [{}] * len(entries) if metadata is None else list(metadata)
    if len(known) != len(entries):
        raise ValueError(f"{len(entries)} pictures but metadata for {len(known)}; give one entry a picture")
    return [_picture(entry, more) for entry, more in zip(entries, known, strict=True)]


def _picture(entry: Any, more: Metadata) -> PictureFile:
    if isinstance(entry, ImageRecord):
        return PictureFile(str(entry.path), {"person_id": entry.person_id, "split": entry.split, **more})
    if isinstance(entry, str | Path):
        return PictureFile(str(entry), dict(more))
    raise TypeError(f"images holds {type(entry).__name__}, expected paths or ImageRecord")


def _list_folder(folder: Path) -> list[PictureFile]:
    if folder.is_file():
        raise DatasetError(f"{folder} is a file; give its folder, or a list of files: [{str(folder)!r}]")
    paths = list_images(folder)
    if not paths:
        raise DatasetError(f"{folder} has no pictures ({', '.join(IMAGE_ENDINGS)}) in it or below")
    return [PictureFile(str(path), {"folder": path.parent.relative_to(folder).as_posix()}) for path in paths]
