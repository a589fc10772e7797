"""Copies of the gallery's images for the browser, small and large, in a folder that only this user can read."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from promptreid.data.images import open_image
from promptreid.demo.sources import stays_inside
from promptreid.errors import DatasetError
from promptreid.files import rename_over
from promptreid.retrieval.table import Hit

_SMALL, _LARGE = (256, 512), (768, 1024)  # width, height: what is sent to the browser is never larger
_ENLARGED = 512  # pixels, the least height of the enlarged view: what is smaller is scaled up smoothly
_QUALITY = 92
_MOST_COPIES = 4000  # kept at a time; the oldest go first


class ShownImages:
    """Makes a copy of an image when it is first shown.

    Args:
        folder: Where copies are kept; others may delete them at any time.
        root: No image outside this folder is opened; `None` for any.
    """

    def __init__(self, folder: Path, root: Path | None) -> None:
        self.folder = folder
        self.root = root
        self._made: dict[Path, None] = {}
        self._turn = threading.Lock()

    def open(self, path: Path) -> Image.Image:
        """Open an image of the gallery.

        Raises:
            DatasetError: It was deleted, cannot be read, or became a link to somewhere else.
        """
        if self.root is not None and not stays_inside(path, self.root):
            raise DatasetError(f"{path} leads out of the gallery {self.root}; put the image itself there, not a link")
        return open_image(path)

    def small(self, hit: Hit) -> Path:
        """A copy for the grid; a grey one if the image can no longer be read."""
        return self._copy(hit, "small", _SMALL)

    def large(self, hit: Hit) -> Path:
        """A copy for the enlarged view."""
        return self._copy(hit, "large", _LARGE)

    def discard(self, hits: Iterable[Hit]) -> None:
        """Delete the copies of images that are no longer to be shown."""
        for hit in hits:
            for kind in ("small", "large"):
                self._file(hit, kind).unlink(missing_ok=True)

    def _file(self, hit: Hit, kind: str) -> Path:
        return self.folder / f"{hit.id}-{kind}.jpg"

    def _copy(self, hit: Hit, kind: str, size: tuple[int, int]) -> Path:
        file = self._file(hit, kind)
        if file.exists():
            return file
        try:
            image = self.open(hit.path)
        except DatasetError:
            image, file = _placeholder(), self.folder / "unreadable.jpg"
        image.thumbnail(size)
        if kind == "large" and image.height < _ENLARGED:
            scale = min(_ENLARGED / image.height, size[0] / image.width)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        scratch = file.with_suffix(f".{os.urandom(4).hex()}")  # another visitor may be making the same copy
        image.save(scratch, "JPEG", quality=_QUALITY, subsampling=0)
        rename_over(scratch, file)
        self._keep(file)
        return file

    def _keep(self, file: Path) -> None:
        """Remember a copy as the newest, and delete the oldest ones if there are too many."""
        with self._turn:
            self._made.pop(file, None)
            self._made[file] = None
            while len(self._made) > _MOST_COPIES:
                oldest = next(iter(self._made))
                del self._made[oldest]
                oldest.unlink(missing_ok=True)


def _placeholder() -> Image.Image:
    """The placeholder for an image that is in the gallery but no longer on the disk."""
    image = Image.new("RGB", (128, 256), (203, 213, 225))
    ImageDraw.Draw(image).text((64, 128), "no longer\nreadable", (51, 65, 85), anchor="mm", align="center")
    return image
