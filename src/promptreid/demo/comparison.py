"""The adapted model beside the bare one: both encode the same gallery and answer the same query."""

import warnings
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from PIL import Image

from promptreid.defaults import NUM_HITS
from promptreid.demo.sources import Crops
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.retrieval.gallery import Gallery
from promptreid.towers.fingerprint import fingerprint, same_fingerprint
from promptreid.towers.loading import load_clip

ADAPTED, BARE = "Adapted model", "Bare model"


class Version(NamedTuple):
    """One of the models compared."""

    label: str  # what the page calls it
    model: PromptedCLIP
    prompted: bool  # whether its prompts are inserted

    @contextmanager
    def running(self) -> Generator[PromptedCLIP, None, None]:
        """The model as this version of it runs, in the calling thread alone."""
        if self.prompted:
            yield self.model
        else:
            with self.model.disabled():
                yield self.model


def make_versions(model: PromptedCLIP) -> tuple[Version, ...]:
    """Pair a model with what it was before it was adapted.

    If only prompts were trained, the bare model is the same model without its prompts; if the encoders were fine-tuned
    too, the base is loaded beside it.

    Args:
        model: The adapted model.

    Returns:
        The adapted version and the bare one; no bare one if the base is unknown or had random weights.
    """
    model.eval()
    adapted = Version(ADAPTED, model, prompted=True)
    if same_fingerprint(fingerprint(model.clip), model.base_fingerprint):
        return adapted, Version(BARE, model, prompted=False)
    source = model.source
    if source is None or source.pretrained is None:
        return (adapted,)
    device = next(model.parameters()).device
    base = load_clip(source.name, pretrained=source.pretrained, image_size=model.image_size, device=device)
    bare = PromptedCLIP(base, PromptConfig(text_length=0, vision_length=0)).eval()
    return adapted, Version(BARE, bare, prompted=False)


class Match(NamedTuple):
    """One image found."""

    position: int  # in `Crops.paths`
    score: float  # cosine similarity to the query, in [-1, 1]


class Found(NamedTuple):
    """What one version of the model found."""

    label: str  # the version
    matches: tuple[Match, ...]  # the best first, none below the threshold
    best: float | None  # score of the best image, below the threshold or not; None if the cameras have no image
    typical: float | None  # median score over the images of the chosen cameras


class ComparedGallery:
    """A gallery encoded by every version of the model.

    Args:
        crops: The images; those that cannot be read are left out with a warning.
        versions: The models, from `make_versions`.
        progress: Show progress bars.

    Raises:
        DatasetError: No image can be read.
    """

    def __init__(self, crops: Crops, versions: Sequence[Version], *, progress: bool = True) -> None:
        self.crops = crops
        self.versions: tuple[Version, ...] = tuple(versions)
        self._positions = {path: position for position, path in enumerate(crops.paths)}
        self._galleries: list[Gallery] = []
        for number, version in enumerate(versions):
            with version.running() as model, warnings.catch_warnings():
                if number:  # the first version has warned of the same files already
                    warnings.simplefilter("ignore", UserWarning)
                self._galleries.append(Gallery.build(model, crops.paths, progress=progress))

    def __len__(self) -> int:
        return len(self._galleries[0])

    def search(
        self, query: str | Image.Image, *, cameras: Collection[str] = (), threshold: float = -1.0, k: int = NUM_HITS
    ) -> tuple[Found, ...]:
        """Rank the images with every version.

        Args:
            query: A sentence or an image.
            cameras: Only images of these; empty for all.
            threshold: Images that score less do not match.
            k: How many at most.

        Returns:
            One answer per version.

        Raises:
            ValueError: The sentence is empty.
        """
        found: list[Found] = []
        for version, gallery in zip(self.versions, self._galleries, strict=True):
            with version.running():
                ranked = gallery.search(query, k=len(gallery))
            matches = [Match(self._positions[hit.path], hit.score) for hit in ranked]
            if cameras:
                matches = [match for match in matches if self.crops.cameras[match.position] in cameras]
            if not matches:
                found.append(Found(version.label, (), None, None))
                continue
            kept = tuple(match for match in matches[:k] if match.score >= threshold)
            found.append(Found(version.label, kept, matches[0].score, median(match.score for match in matches)))
        return tuple(found)
