"""The page's answer to each request: plain functions and data, independent of the browser."""

import math
import os
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from promptreid.demo.bare_model import ADAPTED, BARE, BareModel
from promptreid.demo.facets import NO_CAMERA, NO_DAY, Facet, find_cameras, find_days
from promptreid.demo.shown_images import ShownImages
from promptreid.demo.sources import ErasingGallery, ListedGallery, Opened, SearchedGallery
from promptreid.errors import DatasetError, counted
from promptreid.evaluation.calibration import Calibration
from promptreid.evaluation.pictures.occlusion import occlusion_map
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.encode import needed
from promptreid.retrieval.filters import Metadata
from promptreid.retrieval.gallery_state import threshold_in_words
from promptreid.retrieval.table import Hit

MAX_SENTENCE = 500
NUM_SHOWN = 12  # images shown before the visitor asks for more
NUM_ALIKE = 12  # images offered as those of the same person
_MOST_RANKED = 1000  # images whose scores are counted
_MOST_FILTERED = 100_000  # the best images, where a filter has to look at names of files
_MOST_KNOWN = 100  # images of a person whom the gallery knows
_MOST_FACTS, _FACT_LETTERS = 12, 200
_HEAT_HEIGHT = 384
_HEAT_TINT = np.array([213.0, 94.0, 0.0])  # vermilion of Okabe and Ito
Captioned = tuple[Any, str]  # an image or the path of a copy, and the words below it
_PHRASE_ENDS = re.compile(
    r"[.,;:]|\b(?:and|with|who|is|has|have|on|in|wearing|wears|dressed|carrying|carries|holding|the person)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:an?|the|her|his|their)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Filters:
    """The conditions for an image to be shown.

    Attributes:
        cameras: Only these; empty for all.
        days: Only these; empty for all.
        threshold: Lowest score that counts as a match.
        count: How many images at most.
    """

    cameras: Sequence[str] = ()
    days: Sequence[str] = ()
    threshold: float = -1.0
    count: int = NUM_SHOWN


class Column(NamedTuple):
    """Results of one version of the model, as shown."""

    status: str  # HTML, with everything that is not ours escaped
    crops: list[Captioned]
    hits: tuple[Hit, ...]  # what these are images of


class Detail(NamedTuple):
    """One image, enlarged."""

    image: Path  # a copy
    facts: list[tuple[str, str]]
    path: str  # what is copied


@dataclass(frozen=True)
class Receipt:
    """A receipt: which images were forgotten, and when."""

    gallery: str
    when: str
    removed: tuple[str, ...]
    is_kept: bool  # whether the gallery has files that it was removed from
    missing: int = 0  # named, but removed by someone else before

    def __str__(self) -> str:
        count = len(self.removed)
        words = [
            f"Removed {counted(count, 'image')} from {self.gallery} on {self.when}.",
            "Their features are gone from its files and from memory, and the copies made for this page are deleted. "
            "Their paths and the digests of their files are kept, so that a later update skips them."
            if self.is_kept
            else "The gallery is only in memory: restarting the page builds it again from all image files.",
            "The image files themselves were not touched:",
            *(f"  {path}" for path in self.removed),
        ]
        if self.missing:
            words.append(f"{self.missing} more had been removed before.")
        return "\n".join(words)


class Answers:
    """Answers about one gallery; holds no state of any visitor.

    Args:
        opened: The gallery.
        shown: Makes copies of its images.
        is_trusted: Whether visitors may see full paths and forget people.
    """

    def __init__(self, opened: Opened, shown: ShownImages, *, is_trusted: bool = True) -> None:
        self.opened = opened
        self.gallery: SearchedGallery = opened.gallery
        self.model: PromptedCLIP = needed(opened.gallery.model)
        # Asked once: on Python 3.10 the question makes the whole list.
        self._listed = opened.gallery if isinstance(opened.gallery, ListedGallery) else None
        self.is_trusted = is_trusted
        self.bare: BareModel = BareModel(self.model, opened.gallery)
        probes = [opened.gallery.search(one, self._at_most(_MOST_RANKED)) for one in opened.examples]
        self.score_range: tuple[float, float] = _score_range(probes)
        paths, metadata = _listing(self._listed, probes)
        self.cameras: Facet = find_cameras(paths, metadata, opened.root)
        self.days: Facet = find_days(paths, metadata)
        self._shown = shown
        self._forgotten: set[int] = set()

    @property
    def versions(self) -> tuple[str, ...]:
        """Names of the models compared; the bare one is shown on request."""
        return (ADAPTED, BARE) if self.bare.is_offered else (ADAPTED,)

    @property
    def may_forget(self) -> bool:
        """Whether visitors may remove people, and the gallery can."""
        return self.is_trusted and (self._listed is not None or isinstance(self.gallery, ErasingGallery))

    def summary(self) -> str:
        """A short description of the gallery, as HTML."""
        counts = [counted(len(self.gallery), "image")]
        for facet, noun, none in ((self.cameras, "camera", NO_CAMERA), (self.days, "day", NO_DAY)):
            known = len(facet.values) - (none in facet.values)
            counts += [counted(known, noun)] if known else []
        return f"<b>{escape(self.opened.name)}</b>: {', '.join(counts)}. {escape(self.opened.note)}".strip()

    def search(self, query: str | Image.Image, filters: Filters, *, with_bare: bool = False) -> list[Column]:
        """Rank the gallery's images.

        Args:
            query: A sentence or an image.
            filters: What an image must fulfil.
            with_bare: Search with the bare model too.

        Returns:
            One column per version of the model.

        Raises:
            ValueError: The sentence is empty or too long, or no image passes the filter.
        """
        right: Collection[int] = ()
        if isinstance(query, str):
            query = " ".join(query.split())
            _check_length(query, "sentence")
            described = self.opened.described
            right = described.get(query) or described.get(query.lower().rstrip("."), ())
        columns = [self._column(self.gallery, query, filters, right, title=ADAPTED if with_bare else "")]
        if with_bare and self.bare.is_offered:
            columns.append(self._column(self.bare, query, filters, right, title=BARE))
        return columns

    def detail(self, hit: Hit) -> Detail:
        """One image, enlarged, with what is known of it.

        Raises:
            DatasetError: The image was removed.
        """
        self._check_there(hit)
        known = {key: value for key, value in hit.metadata.items() if key not in ("camera", "time")}
        day = self.days.label(hit.path, hit.metadata)
        time = str(hit.metadata.get("time", "")) or day
        facts = [("Name", hit.path.name), ("Camera", self.cameras.label(hit.path, hit.metadata))]
        facts += [("Time", time)] if time else []
        facts += [("Score", f"{hit.score:.3f}"), ("Number", str(hit.id))]
        facts += [(key, str(value)[:_FACT_LETTERS]) for key, value in list(known.items())[:_MOST_FACTS]]
        return Detail(self._shown.large(hit), facts, self._path(hit))

    def heat_maps(self, hit: Hit, phrase: str, *, with_bare: bool = False) -> list[Captioned]:
        """One image with the parts that answer `phrase`, once per version of the model.

        Raises:
            ValueError: The phrase is empty or too long.
            DatasetError: The image no longer exists.
        """
        _check_length(phrase, "phrase")
        self._check_there(hit)
        image = self._shown.open(hit.path)
        heat = occlusion_map(self.model, self.model.eval_transform(image), phrase)
        maps: list[Captioned] = [(paint_heat(image, heat), ADAPTED if with_bare else phrase)]
        if with_bare and self.bare.is_offered:
            with self.bare.running() as model:
                heat = occlusion_map(model, model.eval_transform(image), phrase)
            maps.append((paint_heat(image, heat), BARE))
        return maps

    def alike(self, hit: Hit) -> tuple[list[Captioned], tuple[Hit, ...], tuple[bool, ...]]:
        """Images that may be of the same person, those known to be first: copies with words, hits, and which are known.

        For an image whose file no longer exists, only itself: nothing can be compared with it, but it can be forgotten.

        Raises:
            DatasetError: The image was removed.
        """
        self._check_there(hit)
        known = [hit]
        try:
            query, person = self._shown.open(hit.path), hit.metadata.get("person_id")
        except DatasetError:
            return [(self._shown.small(hit), f"1\n{hit.path.name}")], (hit,), (True,)
        if person is not None:
            known += self.gallery.search(query, _MOST_KNOWN, where={"person_id": person})
        by_id: dict[int, Hit] = {}
        for other in (*known, *self.gallery.search(query, self._at_most(NUM_ALIKE))):
            by_id.setdefault(other.id, other)
        ids = {other.id for other in known}
        hits = tuple(by_id.values())[: max(NUM_ALIKE, len(ids))]
        same = tuple(other.id in ids for other in hits)
        crops = [(self._shown.small(other), f"{rank}\n{other.path.name}") for rank, other in enumerate(hits, start=1)]
        return crops, hits, same

    def forget(self, hits: Sequence[Hit]) -> Receipt:
        """Remove images from the gallery for good, and the copies that this page made of them.

        Raises:
            PermissionError: Visitors of this page may not.
            ValueError: None is named, or all were removed before.
            OSError: The gallery's files cannot be written; then nothing was removed.
        """
        if not self.may_forget:
            raise PermissionError("visitors of this page may not remove images")
        if not hits:
            raise ValueError("no image is ticked; tick those of the person")
        removed = self._remove(hits)
        self.bare.remove([hit.path for hit in removed])
        self._forgotten.update(hit.id for hit in hits)
        self._shown.discard(hits)
        if not removed:
            raise ValueError("these images were already removed; search again")
        when = datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds")
        paths = tuple(self._path(hit) for hit in removed)
        is_kept = self._listed is None or self._listed.directory is not None
        return Receipt(self.opened.name, when, paths, is_kept, missing=len(hits) - len(removed))

    def _remove(self, hits: Sequence[Hit]) -> list[Hit]:
        """Remove images in one step; if someone else has removed some of them, those that are left."""
        removed: list[Hit] = []
        for group in ([*hits], *([hit] for hit in hits)):
            with suppress(KeyError):
                self._remove_from_gallery(group)
                removed += group
                if len(removed) == len(hits):
                    break
        return removed

    def _remove_from_gallery(self, hits: Sequence[Hit]) -> None:
        if self._listed is not None:
            self._listed.remove([hit.id for hit in hits])
        elif isinstance(self.gallery, ErasingGallery):
            self.gallery.erase([hit.key for hit in hits])

    def _check_there(self, hit: Hit) -> None:
        """Refuse to show what was removed, to a visitor who still has it before their eyes."""
        if hit.id in self._forgotten:
            raise DatasetError("this image was removed from the gallery")

    def opening(self) -> tuple[str, list[Column]]:
        """The state of the page before any search: its first example with the answer, if it is known."""
        sentence = next(iter(self.opened.examples), "")
        if sentence not in self.opened.described:
            return "", []
        return sentence, self.search(sentence, Filters())

    def _at_most(self, count: int) -> int:
        return max(1, min(len(self.gallery), count))

    def _path(self, hit: Hit) -> str:
        """The part of an image's path that a visitor may see."""
        if self.is_trusted:
            return hit.address or os.path.abspath(hit.path)
        if hit.address or self.opened.root is None:
            return hit.path.name
        return os.path.relpath(hit.path, self.opened.root)

    def _column(self, gallery: Any, query: Any, filters: Filters, right: Collection[int], *, title: str) -> Column:
        ranked = self._ranked(gallery, query, filters)
        matching = [hit for hit in ranked if hit.score >= filters.threshold]
        hits = tuple(matching[: filters.count])
        crops = [(self._shown.small(hit), self._words(rank, hit, right)) for rank, hit in enumerate(hits, start=1)]
        name = f"<b>{escape(title)}</b>: " if title else ""
        # It is for sentences, and for the model of the gallery.
        calibration = self.gallery.calibration if isinstance(query, str) and gallery is self.gallery else None
        words = self._status(ranked, matching, filters.threshold, calibration)
        words += " ✓ fits the description." if right and matching else ""
        return Column(f"{name}{words}" if name else words[:1].upper() + words[1:], crops, hits)

    def _ranked(self, gallery: Any, query: Any, filters: Filters) -> list[Hit]:
        """The best images that pass the filters for cameras and days."""
        where: dict[str, Any] = {}
        tests: list[tuple[Facet, set[str]]] = []
        for facet, chosen in ((self.cameras, filters.cameras), (self.days, filters.days)):
            condition = facet.where(chosen) if chosen else {}
            if condition is None:
                tests.append((facet, set(chosen)))
            else:
                where.update(condition)
        k = self._at_most(_MOST_FILTERED if tests else max(_MOST_RANKED, filters.count))
        hits: list[Hit] = gallery.search(query, k, where=where or None)
        return [hit for hit in hits if all(facet.label(hit.path, hit.metadata) in chosen for facet, chosen in tests)]

    def _words(self, rank: int, hit: Hit, right: Collection[int]) -> str:
        mark = " ✓" if hit.metadata.get("person_id") in right else ""
        place = [self.cameras.label(hit.path, hit.metadata)]
        place += [self.days.label(hit.path, hit.metadata)] if self.days.values else []
        return f"{rank} · {hit.score:.2f}{mark}\n" + "\n".join(place)

    def _status(self, ranked: list[Hit], matching: list[Hit], threshold: float, calibration: Calibration | None) -> str:
        """One line above the images of a version."""
        if not ranked:
            return "no image from these cameras and days."
        best = ranked[0].score
        if not matching:
            return f"no image scores {threshold:.2f} or more; the best scores {best:.2f}."
        words = f"best score {best:.2f}."
        if len(matching) < len(ranked):
            reach = "reaches" if len(matching) == 1 else "reach"
            words = f"{counted(len(matching), 'image')} {reach} {threshold:.2f}, the best {best:.2f}."
        if calibration is None:
            return words
        reaching = sum(hit.score >= calibration.threshold for hit in matching)
        reach = "reaches" if reaching == 1 else "reach"
        return f"{words} {reaching:,} of these {reach} {calibration.threshold:.2f}, {threshold_in_words(calibration)}."


def _listing(listed: ListedGallery | None, probes: Sequence[list[Hit]]) -> tuple[Sequence[Path], Sequence[Metadata]]:
    """Paths and metadata of all images; of a database that does not list them, those of the images that were found."""
    if listed is not None:
        return listed.paths, listed.metadata
    found = {hit.id: hit for hits in probes for hit in hits}
    return [hit.path for hit in found.values()], [hit.metadata for hit in found.values()]


def _score_range(probes: Sequence[list[Hit]]) -> tuple[float, float]:
    """The scores between which a threshold for sentences makes sense here: from the worst image's to above the best's.

    Measured on a few sentences, and rounded outwards to hundredths.
    """
    scores = [hit.score for hits in probes for hit in hits]
    if not scores:
        return -1.0, 1.0
    return max(-1.0, math.floor(min(scores) * 100) / 100), min(1.0, math.ceil(max(scores) * 100 + 5) / 100)


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_SENTENCE:
        raise ValueError(f"the {what} has {len(text)} characters, at most {MAX_SENTENCE} are allowed")


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
