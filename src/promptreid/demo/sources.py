"""Where the gallery of the page comes from: one that was indexed, a folder of crops, or drawn people."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from promptreid.data.image_files import list_images, no_images_in
from promptreid.defaults import SYNTHETIC_STAMP
from promptreid.evaluation.calibration import Calibration
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.filters import Metadata, Where
from promptreid.retrieval.gallery import Gallery
from promptreid.retrieval.table import Hit
from promptreid.synthetic import DescribedImage, load_scenes, write_generated
from promptreid.towers.tiny import TINY_NAME

DRAWN_NAME = "Drawn pedestrians"
_NUM_DRAWN = 30
# tools/choose_examples.py chose the people and the sentences: with these the adapted model is seen to help. It is not
# the seed that the shipped prompts were trained with, so they have seen none of these people.
DRAWN_SEED = 207
DRAWN_EXAMPLES = (
    "a man in a green jacket",
    "a woman in a purple t-shirt",
    "a woman in a pink jacket",
    "a woman in a blue hoodie",
)
# Asked of a gallery of which nothing is known.
USUAL_EXAMPLES = (
    "a woman in a red coat",
    "a man in a blue jacket and jeans",
    "someone with a black backpack",
    "a child in yellow",
)
_KNOWS_DRAWINGS = f"The base of this model, {TINY_NAME}, was trained on drawings only: photographs need another one."
_FIRST_DAY = date(2026, 11, 23)  # invented, as everything about the drawn people


class SearchedGallery(Protocol):
    """The methods that the page needs of what it searches: `Gallery`, or a database for more than one machine."""

    @property
    def model(self) -> PromptedCLIP | None:
        """The model that encodes the queries."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """The calibrated threshold."""
        ...

    def __len__(self) -> int: ...

    def search(self, query: str | Image.Image, k: int, *, where: Where | None = None) -> list[Hit]:
        """The best `k` images that pass the filter, the best first."""
        ...


@runtime_checkable
class ListedGallery(Protocol):
    """Further methods of a gallery that holds its list of images in memory, as `Gallery` does."""

    @property
    def directory(self) -> Path | None:
        """The gallery's folder; `None` if it is only in memory."""
        ...

    @property
    def paths(self) -> Sequence[Path]:
        """The images."""
        ...

    @property
    def metadata(self) -> Sequence[Metadata]:
        """The metadata of each image."""
        ...

    def remove(self, images: Sequence[int]) -> int:
        """Remove images by their numbers for good; returns how many."""
        ...


@runtime_checkable
class ErasingGallery(Protocol):
    """Further methods of a database that removes images by their keys."""

    def erase(self, images: Sequence[str]) -> object:
        """Remove images, and every byte of them."""
        ...


@dataclass(frozen=True)
class Opened:
    """A gallery, and what the page knows of it besides.

    Attributes:
        gallery: The gallery.
        name: What the page calls it.
        root: The folder of its images; no file outside is ever opened. `None` if its images are no files.
        examples: Sentences to try.
        described: The persons whom a sentence describes, by sentence, where that is known.
        note: What a visitor should know about it.
    """

    gallery: SearchedGallery
    name: str
    root: Path | None
    examples: Sequence[str] = USUAL_EXAMPLES
    described: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])
    note: str = ""


def open_indexed(gallery: SearchedGallery) -> Opened:
    """A gallery that was made before: nothing is encoded."""
    if not isinstance(gallery, ListedGallery):
        name = str(getattr(gallery, "url", "")).rstrip("/").rpartition("/")[2]
        return Opened(gallery, name or "Gallery", None)
    folders = {os.path.dirname(os.path.abspath(path)) for path in gallery.paths}
    try:
        root = Path(os.path.commonpath(folders)) if folders else None
    except ValueError:  # on several drives of Windows
        root = None
    name = "Gallery" if gallery.directory is None else gallery.directory.resolve().name
    return Opened(gallery, name, root, note=_note(gallery.model, root))


def _note(model: PromptedCLIP | None, root: Path | None) -> str:
    """What a visitor should know who searches images that may be photographs."""
    is_small = model is not None and model.source is not None and model.source.name == TINY_NAME
    drawn = root is not None and any((folder / SYNTHETIC_STAMP).is_file() for folder in (root, *root.parents[:2]))
    return _KNOWS_DRAWINGS if is_small and not drawn else ""


def encode_crops(folder: str | Path, model: PromptedCLIP, *, progress: bool = True) -> Opened:
    """Encode the images in a folder and its sub-folders, to be kept only in memory.

    Links that lead out of the folder are left out.

    Args:
        folder: The folder.
        model: The model.
        progress: Show a progress bar.

    Raises:
        DatasetError: There is no such folder, no image in it, or none that can be read.
    """
    root = Path(folder)
    found = list_images(root)
    paths = [path for path in found if stays_inside(path, root)]
    if len(paths) < len(found):
        warnings.warn(f"{len(found) - len(paths)} links in {root} lead out of it and are left out", stacklevel=2)
    if not paths:
        raise no_images_in(root)
    metadata = [{"folder": path.parent.relative_to(root).as_posix()} for path in paths]
    gallery = Gallery.build(model, paths, metadata=metadata, progress=progress)
    return Opened(gallery, root.resolve().name or str(root), root, note=_note(model, root.resolve()))


def draw_people(folder: str | Path, model: PromptedCLIP, *, seed: int = DRAWN_SEED) -> Opened:
    """Draw a small gallery of people into `folder` and encode it; the same people each time."""
    root = write_generated(folder, num_identities=(1, 1, _NUM_DRAWN), images_per_identity=4, seed=seed, progress=False)
    images = [image for image in load_scenes(root) if image.split == "test"]
    described: dict[str, frozenset[int]] = {}
    for image in images:
        for sentence in (short_description(image), *(caption.text for caption in image.captions)):
            described[sentence] = described.get(sentence, frozenset()) | {image.person_id}
    cameras = sorted({image.scene.camera for image in images})
    metadata = [
        {
            "camera": 1 + cameras.index(image.scene.camera),
            "time": (_FIRST_DAY + timedelta(days=(image.person_id + number) % 3)).isoformat(),
            "person_id": image.person_id,
        }
        for number, image in enumerate(images)
    ]
    gallery = Gallery.build(model, [image.path for image in images], metadata=metadata, progress=False)
    note = f"Drawings of {_NUM_DRAWN} invented people, to try the search on."
    return Opened(gallery, DRAWN_NAME, root, DRAWN_EXAMPLES, described, note)


def short_description(image: DescribedImage) -> str:
    """A few words about a drawn person, such as `a man in a green jacket`."""
    person = image.scene.person
    article = "an" if person.upper_colour[0] in "aeiou" else "a"
    return f"a {person.gender} in {article} {person.upper_colour} {person.upper_kind}"


def stays_inside(path: Path, root: Path) -> bool:
    """Whether a file is in a folder, even if links lead to it."""
    return path.resolve().is_relative_to(root.resolve())
