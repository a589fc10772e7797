"""What the page answers to each request: plain functions and data that know nothing of the browser."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from promptreid.defaults import NUM_HITS
from promptreid.demo.comparison import ComparedGallery, Found
from promptreid.errors import DatasetError
from promptreid.evaluation.pictures.occlusion import occlusion_map

MAX_SENTENCE = 500
NUM_SHOWN = 6  # images shown before the visitor asks for more
NUM_EXAMPLES = 4
_HEAT_HEIGHT = 384
_HEAT_TINT = np.array([213.0, 94.0, 0.0])  # vermilion of Okabe and Ito
Captioned = tuple[Image.Image, str]
_PHRASE_ENDS = re.compile(
    r"[.,;:]|\b(?:and|with|who|is|has|have|on|in|wearing|wears|dressed|carrying|carries|holding|the person)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:an?|the|her|his|their)\s+", re.IGNORECASE)


class Column(NamedTuple):
    """Results of one version of the model, as shown."""

    title: str  # the version's name
    status: str  # HTML, with everything that is not ours escaped
    crops: list[Captioned]
    positions: list[int]  # which images of the gallery these are


class Galleries:
    """Answers for every gallery of the page; holds no state of any visitor.

    Args:
        compared: The galleries; their names must differ.

    Raises:
        ValueError: Two galleries have the same name.
    """

    def __init__(self, compared: Sequence[ComparedGallery]) -> None:
        self._by_name = {gallery.crops.name: gallery for gallery in compared}
        if len(self._by_name) < len(compared):
            raise ValueError(f"two galleries have the same name: {[gallery.crops.name for gallery in compared]}")

    @property
    def names(self) -> list[str]:
        """Names of the galleries, the first of them shown first."""
        return list(self._by_name)

    @property
    def versions(self) -> list[str]:
        """Names of the models compared."""
        return [version.label for version in self._gallery(self.names[0]).versions]

    def cameras(self, name: str) -> list[str]:
        """Cameras to choose from; none if the gallery has only one."""
        return self._gallery(name).crops.camera_names

    def summary(self, name: str) -> str:
        """What the gallery holds, in a few words, as HTML."""
        gallery = self._gallery(name)
        cameras = len(gallery.crops.camera_names)
        counts = f"{len(gallery):,} images" + (f" from {cameras} cameras" if cameras else "")
        return f"{counts}. {escape(gallery.crops.note)}".strip()

    def examples(self, name: str, *, count: int = NUM_EXAMPLES) -> list[str]:
        """Sentences about different people of the gallery, if it knows any: those least like anyone else's first."""
        captions = self._gallery(name).crops.captions
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
        name: str,
        query: str | Image.Image,
        *,
        cameras: Collection[str] = (),
        threshold: float = -1.0,
        k: int = NUM_HITS,
    ) -> list[Column]:
        """Rank a gallery's images.

        Args:
            name: One of `names`.
            query: A sentence or an image.
            cameras: Only these; empty for all.
            threshold: Lowest score that counts as a match.
            k: How many images at most.

        Returns:
            One column per version of the model.

        Raises:
            ValueError: The gallery is unknown; the sentence is empty or too long.
        """
        gallery = self._gallery(name)
        person_id = None
        if isinstance(query, str):
            query = " ".join(query.split())
            _check_length(query, "sentence")
            person_id = gallery.crops.captions.get(query)
        answers = gallery.search(query, cameras=cameras, threshold=threshold, k=k)
        return [_column(gallery, answer, person_id, threshold) for answer in answers]

    def heat_maps(self, name: str, position: int, phrase: str) -> list[Captioned]:
        """One image with the parts that answer `phrase`, once per version of the model.

        Raises:
            ValueError: The phrase is empty or too long, or the gallery is unknown.
            IndexError: There is no such image.
            DatasetError: The image is gone.
        """
        gallery = self._gallery(name)
        _check_length(phrase, "phrase")
        if not 0 <= position < len(gallery.crops.paths):
            raise IndexError(f"there is no image {position}, the gallery has {len(gallery.crops.paths)}")
        image = gallery.crops.open(position)
        maps: list[Captioned] = []
        for version in gallery.versions:
            with version.running() as model:
                heat = occlusion_map(model, model.eval_transform(image), phrase)
            maps.append((paint_heat(image, heat), version.label))
        return maps

    def _gallery(self, name: str) -> ComparedGallery:
        try:
            return self._by_name[name]
        except KeyError:
            raise ValueError(f"there is no gallery {name!r}, only {', '.join(self._by_name)}") from None


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_SENTENCE:
        raise ValueError(f"the {what} has {len(text)} characters, at most {MAX_SENTENCE} are allowed")


def _column(gallery: ComparedGallery, answer: Found, person_id: int | None, threshold: float) -> Column:
    crops: list[Captioned] = []
    positions: list[int] = []
    for rank, match in enumerate(answer.matches, start=1):
        try:
            image = gallery.crops.open(match.position)
        except DatasetError:
            continue
        mark = " ✓" if gallery.crops.shows(match.position, person_id) else ""
        crops.append((image, f"{rank} · {match.score:.2f}{mark}\n{gallery.crops.cameras[match.position]}"))
        positions.append(match.position)
    unreadable = len(answer.matches) - len(crops)
    return Column(answer.label, _status(answer, threshold, unreadable, known=person_id is not None), crops, positions)


def _status(answer: Found, threshold: float, unreadable: int, *, known: bool) -> str:
    """One line above the images of a version."""
    label = f"<b>{escape(answer.label)}</b>"
    if answer.best is None or answer.typical is None:
        return f"{label}: no image from these cameras."
    if not answer.matches:
        return f"{label}: nobody matches. The best image scores {answer.best:.2f}, below {threshold:.2f}."
    missing = f" {unreadable} of them can no longer be read." if unreadable else ""
    legend = " ✓ is the person described." if known else ""
    return f"{label}: best score {answer.best:.2f}, a typical image scores {answer.typical:.2f}.{legend}{missing}"


def paint_heat(image: Image.Image, heat: Tensor) -> Image.Image:
    """Lay a heat map, (rows, columns) in [0, 1], over an image: the hot parts in colour, the cold ones grey."""
    width = max(1, round(image.width * _HEAT_HEIGHT / image.height))
    shown = image.convert("RGB").resize((width, _HEAT_HEIGHT))
    grey = np.asarray(shown.convert("L").convert("RGB"), dtype=np.float32)
    colour = np.asarray(shown, dtype=np.float32)
    large = Image.fromarray((heat.numpy() * 255).astype(np.uint8)).resize(shown.size, Image.Resampling.BICUBIC)
    weight = (np.asarray(large, dtype=np.float32) / 255)[..., None]
    mixed = (1 - weight) * (0.6 * grey + 60) + weight * (0.65 * colour + 0.35 * _HEAT_TINT)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Opening:
    """What the page shows before any search: the first gallery's first example with its answer."""

    gallery: str
    sentence: str = ""  # this and the rest are empty if the gallery knows no sentence
    columns: tuple[Column, ...] = ()
    phrases: list[str] = field(default_factory=list[str])  # what can be looked for in the images
    phrase: str | None = None  # the one that is looked for
    maps: list[Captioned] = field(default_factory=list[Captioned])  # where it is in the best image


def prepare_opening(galleries: Galleries) -> Opening:
    """Search for the first example once, for every visitor."""
    name = galleries.names[0]
    sentence = next(iter(galleries.examples(name, count=1)), "")
    if not sentence:
        return Opening(name)
    columns, phrases = tuple(galleries.search(name, sentence, k=NUM_SHOWN)), split_phrases(sentence)
    phrase = choose_phrase(phrases)
    maps = galleries.heat_maps(name, columns[0].positions[0], phrase) if phrase else []
    return Opening(name, sentence, columns, phrases, phrase, maps)


def split_phrases(sentence: str, *, most: int = 8) -> list[str]:
    """Cut a sentence into short phrases that can be looked for in an image: in its order, each once.

    Args:
        sentence: A description.
        most: How many at most.

    Example:
        >>> split_phrases("A woman in a red coat and blue jeans, with a backpack.")
        ['woman', 'red coat', 'blue jeans', 'backpack']
    """
    parts = (_ARTICLE.sub("", part.strip()).strip() for part in _PHRASE_ENDS.split(sentence))
    return list(dict.fromkeys(part for part in parts if part))[:most]


def choose_phrase(phrases: list[str]) -> str | None:
    """Choose the phrase to look for first: the second, as the first is mostly just "a man"."""
    return next(iter(phrases[1:2] or phrases), None)
