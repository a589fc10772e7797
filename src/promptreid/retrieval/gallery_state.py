"""A gallery's present state, in memory and in its folder, and a search of it; writers take turns."""

import json
import math
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from promptreid.data.records import ReIDSplit
from promptreid.errors import CheckpointError, PromptReidError
from promptreid.evaluation.calibration import (
    Calibration,
    calibrate_threshold,
    calibrate_without_labels,
    fewest_sentences,
)
from promptreid.evaluation.metrics import Array, as_tensor
from promptreid.evaluation.splits import encode_split
from promptreid.files import make_private_folder
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.retrieval.audit import log_action, search_details
from promptreid.retrieval.encode import Query, encode_queries, is_one_query
from promptreid.retrieval.filters import Where, check_where
from promptreid.retrieval.gallery_files import (
    checked_header,
    clean,
    json_bytes,
    names_of,
    read_gallery,
    write_gallery,
    write_while_locked,
)
from promptreid.retrieval.gallery_folder import building, entry_on_disk, writing
from promptreid.retrieval.index import ExactIndex, Index
from promptreid.retrieval.segment_files import Segment
from promptreid.retrieval.table import Hit, ImageTable, check_passes
from promptreid.values import whole_number

STRANGERS = 400  # sentences used as searches in vain: a share of 5 % has a standard error of 1.1 points


class GalleryState:
    """One gallery's images, written through to their folder once they have one.

    Attributes:
        exact: The images and their features; replaced by every change and never changed itself, so that a search in
            another thread sees all of one state.
        header: What else is kept.
        directory: The folder, or `None`.
    """

    def __init__(self, exact: ExactIndex, *, header: dict[str, Any] | None = None, index: Index | None = None) -> None:
        self.exact: ExactIndex = exact
        self.header: dict[str, Any] = dict(header or {})
        self.directory: Path | None = None
        self._other = index
        self._written: dict[str, Any] = {}
        self._notes: dict[str, Any] = {}
        self._turn = threading.RLock()
        self._turns = 0
        self.header.setdefault("notes", {})
        self._next_id = max((1 + int(one.images.ids.max()) for one in exact.segments), default=0)
        if index is not None:
            for segment in exact.segments:
                if not bool(segment.features.isfinite().all()):
                    raise CheckpointError("features of the gallery hold NaN or infinity; it is damaged: build it again")
                index.add(segment.images, segment.features)

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def images(self) -> ImageTable:
        """The images in one table, which takes time to make; what needs a few of them asks `exact`."""
        return self.exact.images

    def snapshot(self) -> tuple[ExactIndex, Index]:
        """The images as they are now, and what searches them."""
        exact = self.exact
        return exact, exact if self._other is None else self._other

    def take_ids(self, count: int) -> int:
        """The first of `count` numbers that no image ever had."""
        first, self._next_id = self._next_id, self._next_id + count
        return first

    @contextmanager
    def turn(self, *, timeout_seconds: float = -1) -> Generator[None, None, None]:
        """Let nobody else write in the block, which begins with what others have written since.

        Writers take turns: what is decided in the block, such as which images are new, holds until it ends.

        Args:
            timeout_seconds: How long to wait for another process, for ever if negative.

        Raises:
            TimeoutError: Another process has been writing for so long.
        """
        with self._turn:
            if self.directory is None or self._turns:
                yield
                return
            make_private_folder(self.directory)
            with writing(self.directory, timeout_seconds=timeout_seconds):
                self._turns += 1
                try:
                    self._take_in()
                    yield
                finally:
                    self._turns -= 1

    def _take_in(self) -> None:
        """Read what others have written since this was read or written."""
        folder = cast("Path", self.directory)
        generation = entry_on_disk(folder, "generation")
        if generation == self._written["generation"]:
            return
        if generation is None:
            raise CheckpointError(f"{folder} was deleted since it was loaded; load it again and repeat the change")
        exact, description = read_gallery(folder, known=self.exact.segments)
        header = checked_header(folder, exact, description)
        own = (self.header.get("model"), self.exact.dimensions, self.exact.dtype)
        if (header.get("model"), exact.dimensions, exact.dtype) != own:
            raise CheckpointError(
                f"{folder} was replaced by a gallery of another model or storage since it was loaded; load it again"
            )
        notes = self._joined_notes(header.get("notes", {}))
        self._follow(exact)
        self.exact = exact if self.exact.device.type == "cpu" else exact.to(self.exact.device)
        self._now(description)
        self.header["notes"].clear()
        self.header = {**header, "notes": self.header["notes"]}
        self.header["notes"].update(notes)

    def _joined_notes(self, written: Mapping[str, Any]) -> dict[Any, Any]:
        """The notes that others wrote, with those that were changed here since; own ones keep their form."""
        own: dict[str, tuple[Any, Any, Any]] = {}  # by the key in the file: key and value here, value in the file
        for key, value in self.header["notes"].items():
            ((name, as_written),) = _as_written({key: value}).items()
            own[name] = key, value, as_written
        gone = self._notes.keys() - own.keys()
        notes = {name: value for name, value in written.items() if name not in gone}
        for name, (key, value, as_written) in own.items():
            changed = name not in self._notes or self._notes[name] != as_written
            if changed or (name in notes and notes[name] == as_written):
                notes.pop(name, None)
                notes[key] = value
        return notes

    def _follow(self, exact: ExactIndex) -> None:
        """Tell a foreign index how `exact` differs."""
        if self._other is not None:
            before, after = set(self.exact.segments), set(exact.segments)
            for segment in before - after:
                self._other.remove(segment.images.ids.tolist())
            for segment in exact.segments:
                if segment not in before:
                    self._other.add(segment.images, segment.features)

    def _now(self, description: Mapping[str, Any]) -> None:
        """Remember what the folder holds."""
        self._notes = _as_written(description["header"].get("notes", {}))
        # After what can fail: while this is the generation before, the next turn reads the folder again.
        self._written = dict(description)
        self._next_id = max(self._next_id, description["next_id"])

    def change(
        self,
        *,
        removed: Sequence[int] = (),
        added: tuple[ImageTable, Tensor] | None = None,
        header: Mapping[str, Any] | None = None,
        compact: bool = False,
    ) -> int:
        """Remove images by number, append others, keep more in the header: first in the folder, if any, then here.

        Returns:
            How many were removed: others may have removed some already.
        """
        with self.turn():
            exact = copy(self.exact)
            new_header = {**self.header, **(header or {})}
            if self.directory is not None:
                json_bytes(new_header.get("notes"))  # what cannot be written is refused first
            removed = exact.chosen(removed).ids.tolist() if removed else []
            self._log_removal(removed, added)
            _apply(exact, removed, added)
            if compact:
                exact.compact()
            if self.directory is not None:
                exact = self._write(self.directory, exact, new_header, replaces=self._written["generation"])
            self.exact, self.header = exact, new_header
            if self._other is not None:
                _apply(self._other, removed, added)
            return len(removed)

    def _log_removal(self, removed: Sequence[int], added: tuple[ImageTable, Tensor] | None) -> None:
        """Log what is removed, and not only replaced."""
        gone = set(removed).difference([] if added is None else added[0].ids.tolist())
        if gone and self.header.get("audit") and self.directory is not None:
            log_action(self.directory, "remove", images=len(gone))

    @contextmanager
    def building(self) -> Generator[None, None, None]:
        """Let nobody take the gallery for abandoned in the block, which encodes images for it and may be its first."""
        with ExitStack() as build:
            if self.directory is not None and len(self) == 0:
                with self.turn():
                    build.enter_context(building(self.directory))
            yield

    def save(self, directory: Path, *, is_new: bool = False, build: ExitStack | None = None) -> None:
        """Write to a folder and stay bound to it; one that `is_new` replaces no other gallery.

        Until `build` is closed, nobody takes this one for abandoned, though it is empty.

        Raises:
            FileExistsError: There is another gallery, with images or removals or being built, and this one `is_new`.
        """
        if self.directory is not None and directory.resolve() == self.directory.resolve():
            self.change()
            return
        pieces = [Segment(one.images, one.features) for one in self.exact.segments]
        if self.directory is None:  # what was loaded may be named from another working folder
            pieces = [Segment(one.images.with_full_paths(), one.features) for one in pieces]
        fresh = self.exact.with_segments(pieces)
        description = {"header": self.header, "next_id": self._next_id}
        self.exact, written = write_gallery(directory, fresh, description, replaces=None, is_new=is_new, build=build)
        self._now(written)
        self.directory = directory

    @classmethod
    def load(cls, directory: Path, *, index: Index | None = None) -> "GalleryState":
        """Read a folder; features stay on disk until they are looked at."""
        exact, description = read_gallery(directory)
        store = cls(exact, header=checked_header(directory, exact, description), index=index)
        store.directory = directory
        store._now(description)
        clean(directory, names_of(exact, description), description["generation"])
        return store

    def _write(self, folder: Path, exact: ExactIndex, header: dict[str, Any], *, replaces: str | None) -> ExactIndex:
        """Write while the lock is held."""
        description: dict[str, Any] = {"header": header, "next_id": self._next_id}
        if self._written.get("header", {}).get("removed") is header.get("removed"):
            description["removed_file"] = self._written.get("removed_file")
        exact, written = write_while_locked(folder, exact, description, replaces=replaces)
        self._now(written)
        return exact


def _as_written(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Notes as a file gives them back: what JSON writes in another way must not look changed."""
    return json.loads(json_bytes(notes))


def _apply(index: Index, removed: Sequence[int], added: tuple[ImageTable, Tensor] | None) -> None:
    if removed:
        index.remove(removed)
    if added is not None:
        index.add(*added)


def search_store(
    store: GalleryState,
    model: PromptedCLIP | None,
    query: Query | Array | list[Query] | list[str],
    k: int,
    *,
    lowest: float,
    where: Where | None,
) -> list[Hit] | list[list[Hit]]:
    """The hits of the query, or of each of several, the best first, none below `lowest`; logged if asked for."""
    k = whole_number("k", k, minimum=1)
    if where is not None:
        check_where(where)
    query = as_tensor(query, "query") if isinstance(query, np.ndarray) else query
    exact, index = store.snapshot()
    if len(exact) == 0:
        raise ValueError("the gallery is empty; add images first")
    queries = encode_queries(model, query, dimensions=exact.dimensions)
    best = index.search(queries, min(k, len(exact)), where=where)
    if where is not None and not any(best):
        check_passes([segment.images for segment in exact.segments], where)
    found = _hits(exact, best, lowest)
    if store.header.get("audit") and store.directory is not None:
        log_action(store.directory, "search", **search_details(query, where, found))
    return found[0] if is_one_query(query) else found


def kept_calibration(
    header: Mapping[str, Any], source: object, *, damaged: type[PromptReidError] = CheckpointError
) -> Calibration | None:
    """The calibrated threshold that a gallery or store `source` keeps in its header; what is `damaged` is refused."""
    values = header.get("calibration")
    try:
        return None if values is None else Calibration(**values)
    except TypeError as error:
        raise damaged(f"{source} has a damaged calibration ({error}); calibrate it again") from error


def choose_threshold(
    model: PromptedCLIP,
    split: ReIDSplit | None,
    *,
    sentences: Sequence[str] | None,
    false_alarm_rate: float,
    best_scores: Callable[[Tensor], Sequence[float]],
    images: int,
    progress: bool,
) -> Calibration:
    """The threshold of `calibrate`: by a labelled split, else by sentences about people who are not in the gallery.

    Args:
        model: The gallery's.
        split: Labelled images and captions.
        sentences: About people who are not there; `None` for made-up ones.
        false_alarm_rate: How often a search for an absent person may find something.
        best_scores: The best score in the gallery of each of some queries, (Q, E) features.
        images: How many the gallery has.
        progress: Show progress bars.
    """
    if split is not None and sentences is not None:
        raise ValueError("give a labelled split or sentences, not both; a split has its own sentences")
    if split is not None:
        encoded = encode_split(model, split, progress=progress)
        chosen = calibrate_threshold(
            encoded.text_features,
            encoded.image_features,
            encoded.text_ids,
            encoded.image_ids,
            false_alarm_rate=false_alarm_rate,
        )
        _check_enough(chosen, false_alarm_rate)
        return chosen
    if images == 0:
        raise ValueError("the gallery is empty; add images first")
    if sentences is None:
        from promptreid.synthetic.sentences import describe_people

        sentences = describe_people(STRANGERS)
    features = model.encode(list(sentences), progress=progress)
    return calibrate_without_labels(best_scores(features), gallery_size=images, false_alarm_rate=false_alarm_rate)


def _check_enough(chosen: Calibration, rate: float) -> None:
    """Refuse labelled data of so few sentences that no rate is measured by them."""
    least = fewest_sentences(rate)
    if chosen.num_queries < least:
        raise ValueError(
            f"{chosen.num_queries} labelled sentences are too few for a rate of {rate:g}; give a split with {least} or "
            "more, or calibrate without labels: gallery.calibrate()"
        )


def threshold_in_words(calibration: Calibration) -> str:
    """Who reaches a calibrated threshold, as the end of a sentence that names it.

    Example:
        >>> threshold_in_words(Calibration(0.3, 0.05, 0.62, 400, 1000))
        'reached by 5% of searches for people who are not there and by 62% of those for people who are'
        >>> threshold_in_words(Calibration(0.3, 0.05, None, 400, 1000))
        'reached by 5% of searches for people who are not there'
    """
    words = f"reached by {calibration.false_alarm_rate:.0%} of searches for people who are not there"
    if calibration.hit_rate is None:
        return words
    return f"{words} and by {calibration.hit_rate:.0%} of those for people who are"


def lowest_score(calibration: Calibration | None, threshold: float | str | None, query: Any = None) -> float:
    """The score that a `threshold` of `Gallery.search` means for a query: no hit has less.

    Raises:
        ValueError: It is not a score, the gallery was never calibrated, or the query is an image.
    """
    if threshold is None:
        return -float("inf")
    if threshold == "calibrated":
        queries: Sequence[Any] = query if isinstance(query, list | tuple) else [query]
        if any(isinstance(each, Image.Image | Path) for each in queries):
            raise ValueError(
                'threshold is "calibrated", which is measured with sentences, and images score higher than they do; '
                "give a number"
            )
        if calibration is None:
            raise ValueError(
                'threshold is "calibrated", but this gallery was never calibrated; call gallery.calibrate(), or '
                "gallery.calibrate(split) with labelled images, or give a number"
            )
        return calibration.threshold
    if isinstance(threshold, str) or not -1 <= threshold <= 1:
        raise ValueError(f'threshold is {threshold!r}, expected a cosine similarity in [-1, 1] or "calibrated"')
    return threshold


def _hits(exact: ExactIndex, found: Sequence[Sequence[tuple[int, float]]], lowest: float) -> list[list[Hit]]:
    """The results of an index, without scores below `lowest` and without images that were removed since."""
    wrong = [number for one in found for number, score in one if not math.isfinite(score)]
    if wrong:  # which no comparison would find
        raise CheckpointError(f"the index scores image {wrong[0]} NaN or infinity; build the gallery again")
    return exact.hits(found, lowest)
