"""What the page says to each request: plain functions, which know nothing of the browser."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from promptreid.demo.finder import Finder, Found
from promptreid.demo.heat_map import paint_heat, phrase_heat
from promptreid.errors import DatasetError

MAX_SENTENCE = 500
Captioned = tuple[Image.Image, str]


@dataclass(frozen=True)
class Column:
    """Results of one version of the model, as shown.

    Attributes:
        title: The version's name.
        status: HTML, every foreign word in it escaped.
        crops: Pictures with what stands below them.
        places: Which pictures of the gallery these are.
    """

    title: str
    status: str
    crops: list[Captioned]
    places: list[int]


class Desk:
    """Answers for every gallery of the page; holds no state of any visitor.

    Args:
        finders: The galleries; their names must differ.

    Raises:
        ValueError: Two galleries have one name.
    """

    def __init__(self, finders: Sequence[Finder]) -> None:
        self._finders = {finder.crops.name: finder for finder in finders}
        if len(self._finders) < len(finders):
            raise ValueError(f"two galleries are called the same: {[finder.crops.name for finder in finders]}")

    @property
    def galleries(self) -> list[str]:
        """Names of the galleries, the first of them shown first."""
        return list(self._finders)

    @property
    def versions(self) -> list[str]:
        """Names of the models compared."""
        return [version.label for version in self._finder(self.galleries[0]).versions]

    def cameras(self, gallery: str) -> list[str]:
        """Cameras to choose from; none if the gallery has only one."""
        return self._finder(gallery).crops.camera_names

    def summary(self, gallery: str) -> str:
        """What the gallery holds, in a few words, as HTML."""
        finder = self._finder(gallery)
        cameras = len(finder.crops.camera_names)
        counts = f"{len(finder):,} pictures" + (f" from {cameras} cameras" if cameras else "")
        return f"{counts}. {escape(finder.crops.note)}".strip()

    def examples(self, gallery: str, *, count: int = 4) -> list[str]:
        """Sentences about different people of the gallery, where it knows any: the least like anyone else's first."""
        captions = self._finder(gallery).crops.captions
        words = {caption: frozenset(re.findall(r"[\w-]+", caption.lower())) for caption in captions}

        def likeness(caption: str) -> float:
            others = (words[other] for other, person_id in captions.items() if person_id != captions[caption])
            return max((len(words[caption] & other) / len(words[caption] | other) for other in others), default=0.0)

        chosen: dict[int, str] = {}
        for caption in sorted(captions, key=lambda caption: (likeness(caption), len(caption), caption)):
            chosen.setdefault(captions[caption], caption)
        return list(chosen.values())[:count]

    def search(
        self,
        gallery: str,
        query: str | Image.Image,
        *,
        cameras: Collection[str] = (),
        threshold: float = -1.0,
        k: int = 10,
    ) -> list[Column]:
        """Rank the gallery's pictures.

        Args:
            gallery: One of `galleries`.
            query: A sentence or a picture.
            cameras: Only these; empty for all.
            threshold: Lowest score that counts as a match.
            k: How many pictures at most.

        Returns:
            One column a version of the model.

        Raises:
            ValueError: No such gallery; a sentence that is empty or too long.
        """
        finder = self._finder(gallery)
        person_id = None
        if isinstance(query, str):
            query = " ".join(query.split())
            if len(query) > MAX_SENTENCE:
                raise ValueError(f"the sentence has {len(query)} characters, at most {MAX_SENTENCE} are taken")
            person_id = finder.crops.captions.get(query)
        answers = finder.search(query, cameras=cameras, threshold=threshold, k=k)
        return [_column(finder, answer, person_id, threshold) for answer in answers]

    def heat_maps(self, gallery: str, place: int, phrase: str) -> list[Captioned]:
        """One picture with what answers `phrase` in it, a version of the model each.

        Raises:
            ValueError: The phrase is empty or too long, or there is no such gallery.
            IndexError: There is no such picture.
            DatasetError: The picture is gone.
        """
        finder = self._finder(gallery)
        if len(phrase) > MAX_SENTENCE:
            raise ValueError(f"the phrase has {len(phrase)} characters, at most {MAX_SENTENCE} are taken")
        if not 0 <= place < len(finder.crops.paths):
            raise IndexError(f"there is no picture {place}, the gallery has {len(finder.crops.paths)}")
        image = finder.crops.open(place)
        return [(paint_heat(image, phrase_heat(version, image, phrase)), version.label) for version in finder.versions]

    def _finder(self, gallery: str) -> Finder:
        try:
            return self._finders[gallery]
        except KeyError:
            raise ValueError(f"there is no gallery {gallery!r}, only {', '.join(self._finders)}") from None


def _column(finder: Finder, answer: Found, person_id: int | None, threshold: float) -> Column:
    crops: list[Captioned] = []
    places: list[int] = []
    gone = 0
    for rank, match in enumerate(answer.matches, start=1):
        try:
            image = finder.crops.open(match.place)
        except DatasetError:
            gone += 1
            continue
        mark = " ✓" if finder.crops.is_right(match.place, person_id) else ""
        crops.append((image, f"{rank} · {match.score:.2f}{mark}\n{finder.crops.cameras[match.place]}"))
        places.append(match.place)
    return Column(answer.label, _status(answer, threshold, gone, known=person_id is not None), crops, places)


def _status(answer: Found, threshold: float, gone: int, *, known: bool) -> str:
    """One line above the pictures of a version."""
    label = f"<b>{escape(answer.label)}</b>"
    if answer.best is None or answer.typical is None:
        return f"{label}: no picture from these cameras."
    if not answer.matches:
        return f"{label}: nobody matches. The best picture scores {answer.best:.2f}, below {threshold:.2f}."
    missing = f" {gone} of them can no longer be read." if gone else ""
    legend = " ✓ is the person described." if known else ""
    return f"{label}: best score {answer.best:.2f}, a typical picture scores {answer.typical:.2f}.{legend}{missing}"
