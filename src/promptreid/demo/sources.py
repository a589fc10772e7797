"""Where the images of the page come from: a folder of the user's, or drawn people."""

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from promptreid.data.images import IMAGE_ENDINGS, list_images, open_image
from promptreid.data.reader import load_cuhk_pedes
from promptreid.errors import DatasetError
from promptreid.synthetic import write_generated

DRAWN_NAME = "Drawn pedestrians"
NO_CAMERA = "no camera"
SHOWN_SIZE = (256, 512)  # width, height: what is sent to the browser is never larger
_NUM_DRAWN = 30
# Not the seed that the shipped prompts were trained with: they have seen none of these people.
_SEED = 2024
_CAMERA_IN_NAME = re.compile(r"(?:^|_)c(?:am)?(\d+)(?=s\d|_|\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Crops:
    """Images of one gallery, with what is known about them."""

    name: str  # what the page calls the gallery
    root: Path  # no file outside it is ever opened
    paths: tuple[Path, ...]
    cameras: tuple[str, ...]  # of each image
    person_ids: tuple[int, ...] = ()  # who is on each image, or empty if that is unknown
    captions: dict[str, int] = field(default_factory=dict[str, int])  # sentences, and the person each describes
    note: str = ""  # what a visitor should know about the gallery

    @property
    def camera_names(self) -> list[str]:
        """Every camera once, sorted; empty if there is only one."""
        names = sorted(set(self.cameras))
        return names if len(names) > 1 else []

    def open(self, index: int) -> Image.Image:
        """Open one image, made small enough to show.

        Raises:
            DatasetError: It was deleted, cannot be read, or became a link to somewhere else.
        """
        path = self.paths[index]
        if not _stays_inside(path, self.root):
            raise DatasetError(f"{path} leads out of the gallery {self.root}; put the image itself there, not a link")
        image = open_image(path)
        image.thumbnail(SHOWN_SIZE)
        return image

    def shows(self, index: int, person_id: int | None) -> bool:
        """Whether image `index` is known to show that person."""
        return person_id is not None and bool(self.person_ids) and self.person_ids[index] == person_id


def list_crops(folder: str | Path) -> Crops:
    """List the images in a folder and its sub-folders, as `list_images` finds them.

    The camera is read from the file name where that has it as Market-1501's (`0002_c1s1_000451_03.jpg`) or RSTPReid's
    (`0000_c14_0031.jpg`) do, else it is the name of the sub-folder. Links that lead out of the folder are left out.

    Args:
        folder: The folder.

    Raises:
        DatasetError: There is no such folder, or no image in it.
    """
    root = Path(folder)
    found = list_images(root)
    paths = [path for path in found if _stays_inside(path, root)]
    if len(paths) < len(found):
        warnings.warn(f"{len(found) - len(paths)} links in {root} lead out of it and are left out", stacklevel=2)
    if not paths:
        raise DatasetError(f"{root} has no images ({', '.join(IMAGE_ENDINGS)}) in it or below")
    return Crops(root.resolve().name or str(root), root, tuple(paths), tuple(_camera(path, root) for path in paths))


def draw_crops(folder: str | Path) -> Crops:
    """Draw a small gallery of people into `folder`; the same people each time."""
    root = write_generated(folder, num_identities=(1, 1, _NUM_DRAWN), images_per_identity=4, seed=_SEED, progress=False)
    records = load_cuhk_pedes(root).test.records
    folders = sorted({record.path.parent.name for record in records})
    return Crops(
        DRAWN_NAME,
        root,
        tuple(record.path for record in records),
        tuple(f"camera {1 + folders.index(record.path.parent.name)}" for record in records),
        tuple(record.person_id for record in records),
        {caption: record.person_id for record in records for caption in record.captions},
        f"Drawings of {_NUM_DRAWN} invented people, to try the search on.",
    )


def _stays_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _camera(path: Path, root: Path) -> str:
    named = _CAMERA_IN_NAME.search(path.name)
    if named:
        return f"camera {int(named.group(1))}"
    return NO_CAMERA if path.parent == root else path.parent.relative_to(root).as_posix()
