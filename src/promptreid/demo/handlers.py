"""Handlers for typing, clicks and sliders on the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from promptreid.demo.answers import NUM_SHOWN, Answers, Captioned, Column, Filters, choose_phrase, split_phrases
from promptreid.demo.request_checks import read_upload
from promptreid.errors import DatasetError
from promptreid.retrieval.table import Hit

MAX_SHOWN = 50


@dataclass(frozen=True)
class Session:
    """One visitor's queries and results; each browser tab has its own session, kept by the server."""

    query: str | Image.Image | None = None  # None before the first search
    hits: tuple[tuple[Hit, ...], ...] = ()  # images shown by each version of the model
    chosen: Hit | None = None  # the image that is enlarged
    alike: tuple[Hit, ...] = ()  # images offered as those of the same person


class Handlers:
    """Answers the page's events: turns what the browser sends into searches, and answers into what it shows.

    Args:
        gr: gradio.
        answers: Answers.
    """

    def __init__(self, gr: Any, answers: Answers) -> None:
        self.gr = gr
        self.answers = answers

    def search_again(
        self,
        session: Session,
        cameras: Sequence[str] | None,
        days: Sequence[str] | None,
        threshold: object,
        count: object,
        with_bare: bool,
    ) -> list[Any]:
        """Repeat the search: session, message, receipt, threshold, block of the bare model, statuses, crops."""
        if session.query is None:
            return self._show([], session, "")
        lowest = self.answers.score_range[0]
        floor = threshold if isinstance(threshold, int | float) and threshold > lowest else -1.0
        k = min(max(1, int(count)), MAX_SHOWN) if isinstance(count, int | float) else NUM_SHOWN
        filters = Filters(tuple(cameras or ()), tuple(days or ()), floor, k)
        try:
            columns = self.answers.search(session.query, filters, with_bare=bool(with_bare))
        except DatasetError:  # its words name a path of this computer
            return self._show([], session, "the images can no longer be read")
        except ValueError as error:
            return self._show([], session, str(error))
        return self._show(columns, session, "")

    def search_sentence(self, session: Session, sentence: str, *filters: Any) -> list[Any]:
        """Search for a sentence: as `search_again`."""
        return self.search_again(replace(session, query=sentence), *filters)

    def search_image(self, session: Session, path: str | None, *filters: Any) -> list[Any]:
        """Search for an uploaded image: as `search_again`, then the preview."""
        hidden = self.gr.update(value=None, visible=False)
        if path is None:
            return [*self.search_again(replace(session, query=None), *filters), hidden]
        try:
            image = read_upload(path)
        except ValueError as error:
            return [*self._show([], replace(session, query=None), str(error)), hidden]
        answer = self.search_again(replace(session, query=image), *filters)
        return [*answer, self.gr.update(value=image, visible=True)]

    def enlarge(self, session: Session, version: int, rank: int) -> list[Any]:
        """Open one of the images shown: session, panel, image, facts, path, phrases, heat maps, forgetting."""
        shown = session.hits[version] if version < len(session.hits) else ()
        emptied = [[], *self._no_ticks(), self._message("")]
        if not 0 <= rank < len(shown):
            return [session, self.gr.update(), *[self.gr.update()] * 4, [], self._message(""), *emptied]
        hit = shown[rank]
        try:
            detail = self.answers.detail(hit)
        except DatasetError as error:
            facts, image, path = f"<p>{escape(str(error).capitalize())}.</p>", None, ""
        else:
            facts, image, path = _table(detail.facts), str(detail.image), detail.path
        phrases = split_phrases(session.query) if isinstance(session.query, str) else []
        choices = self.gr.update(choices=phrases, value=choose_phrase(phrases))
        session = replace(session, chosen=hit, alike=())
        opened = self.gr.update(visible=True)
        return [session, opened, image, facts, path, choices, [], self._message(""), *emptied]

    def show_heat(self, session: Session, phrase: str | None, with_bare: bool) -> list[Any]:
        """Heat maps of the enlarged image: message, images."""
        if session.chosen is None:
            return [self._message("click an image first"), []]
        try:
            maps = self.answers.heat_maps(session.chosen, phrase or "", with_bare=bool(with_bare))
        except DatasetError:  # its words name a path of this computer
            return [self._message("this image can no longer be read"), []]
        except ValueError as error:
            return [self._message(str(error)), []]
        return [self._message(""), maps]

    def find_alike(self, session: Session) -> list[Any]:
        """Images that may show the same person: session, images, boxes to tick, button, message."""
        if session.chosen is None:
            return [session, [], *self._no_ticks(), self._message("click an image first")]
        try:
            crops, hits, same = self.answers.alike(session.chosen)
        except DatasetError:
            return [session, [], *self._no_ticks(), self._message("this image can no longer be read")]
        labels = [_label(rank, hit) for rank, hit in enumerate(hits, start=1)]
        ticked = [label for label, is_same in zip(labels, same, strict=True) if is_same]
        boxes = self.gr.update(choices=labels, value=ticked, visible=True)
        return [replace(session, alike=hits), _as_shown(crops), boxes, self.gr.update(visible=True), self._message("")]

    def forget(self, session: Session, ticked: Sequence[str] | None, *filters: Any) -> list[Any]:
        """Remove the ticked images: panel, message on it, then as `search_again`, with the receipt."""
        labels = {_label(rank, hit): hit for rank, hit in enumerate(session.alike, start=1)}
        hits = [labels[label] for label in ticked or () if label in labels]
        try:
            receipt = self.answers.forget(hits)
        except (ValueError, OSError) as error:
            words = str(error) if isinstance(error, ValueError | PermissionError) else _unwritten(error)
            return [self.gr.update(), self._message(words), *[self.gr.update()] * self._num_answers]
        answer = self.search_again(replace(session, chosen=None, alike=()), *filters)
        answer[2] = self.gr.update(value=str(receipt), visible=True)
        return [self.gr.update(visible=False), self._message(""), *answer]

    @property
    def _num_answers(self) -> int:
        return 5 + 2 * len(self.answers.versions)

    def _show(self, columns: Sequence[Column], session: Session, reason: str) -> list[Any]:
        missing = len(self.answers.versions) - len(columns)
        statuses = [*(column.status for column in columns), *[""] * missing]
        crops = [*(_as_shown(column.crops) for column in columns), *([] for _ in range(missing))]
        session = replace(session, hits=tuple(column.hits for column in columns))
        highest = max([self.answers.score_range[1], *(_rounded_up(column) for column in columns)])
        threshold = self.gr.update(maximum=highest)
        bare = self.gr.update(visible=len(columns) > 1 or len(self.answers.versions) == 1)
        receipt = self.gr.update(visible=False)
        return [session, self._message(reason), receipt, threshold, bare, *statuses, *crops]

    def _no_ticks(self) -> list[Any]:
        return [self.gr.update(choices=[], value=[], visible=False), self.gr.update(visible=False)]

    def _message(self, text: str) -> Any:
        words = f'<p role="alert">{escape(text[:1].upper() + text[1:])}</p>' if text else ""
        return self.gr.update(value=words, visible=bool(text))


def _as_shown(crops: Sequence[Captioned]) -> list[tuple[Any, str]]:
    return [(str(image) if isinstance(image, Path) else image, words) for image, words in crops]


def _label(rank: int, hit: Hit) -> str:
    return f"{rank} · {hit.path.name}"


def _table(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
    return f"<table>{rows}</table>"


def _rounded_up(column: Column) -> float:
    """The best score of a column, as the end of a slider: an image finds its like with more than any sentence does."""
    best = column.hits[0].score if column.hits else -1.0
    return min(1.0, -(-best * 100 // 1) / 100)


def _unwritten(error: OSError) -> str:
    return f"the gallery's files cannot be written ({error.strerror or type(error).__name__}); nothing was removed"
