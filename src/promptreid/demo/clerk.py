"""Turns what the browser sends into questions to the desk, and answers into what the browser shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from PIL import Image

from promptreid.demo.desk import Desk
from promptreid.demo.layout import MOST_CAMERAS, MOST_PICTURES, NO_THRESHOLD, example_texts
from promptreid.demo.opening import FEW_PICTURES, Opening
from promptreid.demo.phrases import best_phrase, phrases_of
from promptreid.demo.uploads import read_upload
from promptreid.errors import DatasetError


@dataclass(frozen=True)
class Visit:
    """What one visitor asked and was shown; each browser tab has its own, kept by the server.

    Attributes:
        gallery: Where.
        query: What; `None` before the first question.
        places: Pictures shown by each version of the model.
        chosen: The picture whose heat map is shown.
    """

    gallery: str
    query: str | Image.Image | None = None
    places: tuple[tuple[int, ...], ...] = ()
    chosen: int | None = None

    @classmethod
    def beginning(cls, opening: Opening) -> "Visit":
        """The visit of someone who sees the page's opening."""
        places = tuple(tuple(column.places) for column in opening.columns)
        return cls(opening.gallery, opening.sentence or None, places, places[0][0] if places else None)


class Clerk:
    """Turns what the browser sends into questions to the desk, and the answers into what the browser shows.

    Args:
        gr: gradio.
        desk: Answers.
    """

    def __init__(self, gr: Any, desk: Desk) -> None:
        self.gr = gr
        self.desk = desk

    def ask(self, visit: Visit, cameras: Sequence[str], threshold: object, count: object) -> list[Any]:
        """The visit's question once more, with these filters: visit, message, statuses, crops."""
        if visit.query is None:
            return self._no_answer(visit, "")
        floor = threshold if isinstance(threshold, int | float) else NO_THRESHOLD  # the field may be empty
        k = min(max(1, int(count)), MOST_PICTURES) if isinstance(count, int | float) else FEW_PICTURES
        try:
            columns = self.desk.search(visit.gallery, visit.query, cameras=cameras, threshold=floor, k=k)
        except ValueError as error:
            return self._no_answer(visit, str(error))
        places = tuple(tuple(column.places) for column in columns)
        shown = [place for column in places for place in column]
        chosen = visit.chosen if visit.chosen in shown else next(iter(shown), None)
        visit = replace(visit, places=places, chosen=chosen)
        statuses, crops = [column.status for column in columns], [column.crops for column in columns]
        return [visit, self._message(""), *statuses, *crops]

    def ask_sentence(
        self, visit: Visit, sentence: str, cameras: Sequence[str], threshold: object, count: object
    ) -> list[Any]:
        """Search for a sentence: as `ask`, then the phrases to choose from."""
        phrases = phrases_of(sentence)
        answer = self.ask(replace(visit, query=sentence, chosen=None), cameras, threshold, count)
        return [*answer, self.gr.update(choices=phrases, value=best_phrase(phrases))]

    def ask_picture(
        self, visit: Visit, path: str | None, cameras: Sequence[str], threshold: object, count: object
    ) -> list[Any]:
        """Search for an uploaded picture: as `ask`, then the preview."""
        hidden = self.gr.update(value=None, visible=False)
        if path is None:
            return [*self.ask(replace(visit, query=None), cameras, threshold, count), hidden]
        try:
            picture = read_upload(path)
        except (ValueError, OSError) as error:
            return [*self._no_answer(replace(visit, query=None), str(error)), hidden]
        answer = self.ask(replace(visit, query=picture, chosen=None), cameras, threshold, count)
        return [*answer, self.gr.update(value=picture, visible=True)]

    def change_gallery(self, visit: Visit, gallery: str) -> list[Any]:
        """Go to another gallery: visit, summary, cameras, examples."""
        cameras = self.desk.cameras(gallery)
        return [
            replace(visit, gallery=gallery, places=(), chosen=None),
            self.desk.summary(gallery),
            self.gr.update(choices=cameras[:MOST_CAMERAS], value=[], visible=bool(cameras)),
            *(self.gr.update(value=text, visible=bool(text)) for text in example_texts(self.desk, gallery)),
        ]

    def show_heat(self, visit: Visit, phrase: str | None) -> list[Any]:
        """Heat maps of the chosen picture: message, pictures."""
        if visit.chosen is None:
            return [self._message("" if visit.query else "search first, then click a picture"), []]
        try:
            return [self._message(""), self.desk.heat_maps(visit.gallery, visit.chosen, phrase or "")]
        except DatasetError:  # its words name a path of this computer
            return [self._message("this picture can no longer be read"), []]
        except (ValueError, IndexError) as error:
            return [self._message(str(error)), []]

    def choose(self, visit: Visit, version: int, rank: int) -> Visit:
        """Remember the picture that was clicked; one that is no longer shown changes nothing."""
        shown = visit.places[version] if version < len(visit.places) else ()
        return replace(visit, chosen=shown[rank]) if 0 <= rank < len(shown) else visit

    def _no_answer(self, visit: Visit, reason: str) -> list[Any]:
        versions = len(self.desk.versions)
        emptied = replace(visit, places=(), chosen=None)
        return [emptied, self._message(reason), *[""] * versions, *([] for _ in range(versions))]

    def _message(self, text: str) -> Any:
        words = f'<p role="alert">{escape(text[:1].upper() + text[1:])}</p>' if text else ""
        return self.gr.update(value=words, visible=bool(text))
