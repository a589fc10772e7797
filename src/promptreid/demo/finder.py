"""Searches one gallery with every version of the model."""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from PIL import Image

from promptreid.demo.crops import Crops
from promptreid.demo.versions import Version
from promptreid.retrieval.gallery import Gallery


@dataclass(frozen=True)
class Match:
    """One picture found.

    Attributes:
        place: Which of `Crops.paths`.
        score: Cosine similarity to the query, in [-1, 1].
    """

    place: int
    score: float


@dataclass(frozen=True)
class Found:
    """What one version of the model found.

    Attributes:
        label: The version.
        matches: The best first, none below the threshold.
        best: Score of the best picture, below the threshold or not; `None` if the cameras chosen have no picture.
        typical: Median score over the pictures of the cameras chosen.
    """

    label: str
    matches: tuple[Match, ...]
    best: float | None
    typical: float | None


class Finder:
    """A gallery encoded by every version of the model.

    Args:
        crops: The pictures; those that cannot be read are left out with a warning.
        versions: The models, from `compare`.
        progress: Show progress bars.

    Raises:
        DatasetError: No picture can be read.
    """

    def __init__(self, crops: Crops, versions: Sequence[Version], *, progress: bool = True) -> None:
        self.crops = crops
        self.versions: tuple[Version, ...] = tuple(versions)
        self._places = {path: place for place, path in enumerate(crops.paths)}
        self._galleries: list[Gallery] = []
        for number, version in enumerate(versions):
            with version.running() as model, warnings.catch_warnings():
                if number:  # the first version has warned of the same files already
                    warnings.simplefilter("ignore", UserWarning)
                self._galleries.append(Gallery.build(model, crops.paths, progress=progress))

    def __len__(self) -> int:
        return len(self._galleries[0])

    def search(
        self,
        query: str | Image.Image,
        *,
        cameras: Collection[str] = (),
        threshold: float = -1.0,
        k: int = 10,
    ) -> tuple[Found, ...]:
        """Rank the pictures with every version.

        Args:
            query: A sentence or a picture.
            cameras: Only pictures of these; empty for all.
            threshold: Pictures that score less do not match.
            k: How many at most.

        Returns:
            One answer a version.

        Raises:
            ValueError: The sentence is empty.
        """
        return tuple(
            self._search(place, query, frozenset(cameras), threshold, k) for place in range(len(self.versions))
        )

    def _search(self, place: int, query: str | Image.Image, cameras: frozenset[str], threshold: float, k: int) -> Found:
        version, gallery = self.versions[place], self._galleries[place]
        with version.running():
            ranked = gallery.search(query, k=len(gallery))
        matches = [Match(self._places[hit.path], hit.score) for hit in ranked]
        if cameras:
            matches = [match for match in matches if self.crops.cameras[match.place] in cameras]
        if not matches:
            return Found(version.label, (), None, None)
        kept = tuple(match for match in matches[:k] if match.score >= threshold)
        return Found(version.label, kept, matches[0].score, median(match.score for match in matches))
