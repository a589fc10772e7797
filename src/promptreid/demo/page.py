"""The page: its components, their texts, and what happens when something on it is typed, clicked or moved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from types import SimpleNamespace
from typing import Any

from PIL import Image

from promptreid.demo.answers import (
    MAX_SENTENCE,
    NUM_EXAMPLES,
    NUM_SHOWN,
    Captioned,
    Galleries,
    Opening,
    choose_phrase,
    split_phrases,
)
from promptreid.demo.request_checks import MAX_UPLOAD_BYTES, UPLOAD_ENDINGS, read_upload
from promptreid.errors import DatasetError

TITLE = "Find a person by description"
_INTRODUCTION = (
    f"# {TITLE}\n"
    "Say what someone looks like: the images of the gallery that fit best come first. The same search is shown with "
    "the **adapted model** and with the **bare model** it was made from."
)
_HEAT = (
    "### Where does the model see it?\n"
    "Click an image above, choose a phrase or type your own. What stays coloured is what the score depends on."
)
_CAUTION = "A score says how well an image fits the words. It does not say who someone is."
_PRIVATE = " Everything runs on this computer: nothing you type or upload leaves it."
_NO_THRESHOLD = -1.0
_MAX_CAMERAS = 200
_MAX_SHOWN = 50
_COMMON: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_limit": 4,  # searches that compute at the same time; the rest wait their turn
    "concurrency_id": "model",
    "show_progress": "minimal",
}


_Parts = SimpleNamespace  # components of gradio's by name


def fill_page(gr: Any, galleries: Galleries, opening: Opening, *, private: bool, kept_seconds: int) -> None:
    """Put every component on the page that is being made, and connect each to its answer.

    Args:
        gr: gradio.
        galleries: Answers.
        opening: What is shown first.
        private: Whether only this computer reaches the page.
        kept_seconds: How long a visitor's question is kept after the last one.
    """
    gr.Markdown(_INTRODUCTION, elem_id="title")
    with gr.Row(equal_height=False, elem_id="work"):
        with gr.Column(scale=1, min_width=300, elem_id="question"):
            inputs = _lay_out_inputs(gr, galleries, opening)
        with gr.Column(scale=2, min_width=300, elem_id="answer"):
            results = _lay_out_results(gr, galleries, opening)
    gr.Markdown(_CAUTION + (_PRIVATE if private else ""), elem_id="caution")
    session = gr.State(Session.from_opening(opening), time_to_live=kept_seconds)
    _connect(gr, Handlers(gr, galleries), session, inputs, results)


def _lay_out_inputs(gr: Any, galleries: Galleries, opening: Opening) -> _Parts:
    """Components that the visitor fills in."""
    first = opening.gallery
    inputs = _Parts()
    inputs.gallery = gr.Radio(galleries.names, value=first, label="Gallery", visible=len(galleries.names) > 1)
    inputs.summary = gr.HTML(galleries.summary(first), elem_id="summary", padding=False)
    with gr.Tab("Describe"):
        _lay_out_sentence(gr, opening.sentence, _example_texts(galleries, first), inputs)
    with gr.Tab("Upload an image"):
        inputs.upload = gr.File(
            label=f"A crop of one person: JPEG, PNG, WebP or BMP, at most {MAX_UPLOAD_BYTES // 2**20} MB",
            file_types=list(UPLOAD_ENDINGS),
            height=140,
            elem_id="upload",
        )
        inputs.preview = gr.Image(label="Your image", interactive=False, height=220, visible=False, buttons=[])
    with gr.Accordion("Filters", open=True, elem_id="filters"):
        _lay_out_filters(gr, galleries.cameras(first), inputs)
    return inputs


def _lay_out_sentence(gr: Any, sentence: str, examples: list[str], inputs: _Parts) -> None:
    inputs.sentence = gr.Textbox(
        value=sentence,
        label="What does the person look like?",
        placeholder="a woman in a red coat and blue jeans",
        lines=1,
        max_lines=6,
        max_length=MAX_SENTENCE,
        elem_id="sentence",
    )
    inputs.search = gr.Button("Search", variant="primary", elem_id="search")
    gr.Markdown("Or try one of these:")
    inputs.examples = [gr.Button(text, size="sm", visible=bool(text), elem_classes="example") for text in examples]


def _lay_out_filters(gr: Any, names: list[str], inputs: _Parts) -> None:
    inputs.threshold = gr.Slider(
        _NO_THRESHOLD,
        1.0,
        value=_NO_THRESHOLD,
        step=0.01,
        label="Lowest score of a match",
        info="Images that score less are left out. If none is left, nobody matches.",
        elem_id="threshold",
    )
    inputs.cameras = gr.CheckboxGroup(
        names[:_MAX_CAMERAS],
        label="Only these cameras",
        info="None ticked means all.",
        visible=bool(names),
        elem_id="cameras",
    )
    inputs.count = gr.Slider(1, _MAX_SHOWN, value=NUM_SHOWN, step=1, label="Images to show", elem_id="count")


def _lay_out_results(gr: Any, galleries: Galleries, opening: Opening) -> _Parts:
    """Components that show answers; `statuses` and `crops` have one for each version of the model."""
    results = _Parts(message=gr.HTML(elem_id="message", visible=False), statuses=[], crops=[])
    for number, label in enumerate(galleries.versions):
        column = opening.columns[number] if opening.columns else None
        status, shown = (column.status, column.crops) if column else (None, None)
        results.statuses.append(gr.HTML(status, elem_id=f"status-{number}", elem_classes="status", padding=False))
        grid = _image_grid(gr, shown, label, columns=6, elem_id=f"crops-{number}", elem_classes="crops")
        results.crops.append(grid)
    gr.Markdown(_HEAT)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=240):
            results.phrase = gr.Dropdown(
                opening.phrases, value=opening.phrase, label="Phrase", allow_custom_value=True, elem_id="phrase"
            )
            results.show = gr.Button("Show", elem_id="show-heat")
            results.heat_message = gr.HTML(elem_id="heat-message", visible=False)
        with gr.Column(scale=3, min_width=240):
            maps = opening.maps or None
            look = {"elem_id": "heat", "elem_classes": ["crops", "heat"]}
            results.heat = _image_grid(gr, maps, "Heat map", columns=2, **look)
    return results


def _image_grid(gr: Any, images: list[Captioned] | None, label: str, **look: Any) -> Any:
    return gr.Gallery(
        images,
        label=label,
        show_label=False,
        height="auto",
        allow_preview=False,
        interactive=False,
        format="png",
        buttons=[],
        **look,
    )


def _example_texts(galleries: Galleries, name: str) -> list[str]:
    """A sentence for each of the example buttons; empty ones stay hidden."""
    known = galleries.examples(name)
    return known + [""] * (NUM_EXAMPLES - len(known))


def _connect(gr: Any, handlers: "Handlers", session: Any, inputs: _Parts, results: _Parts) -> None:
    """Say which handler answers which event, from which components, to which."""
    filters = [inputs.cameras, inputs.threshold, inputs.count]
    answers = [session, results.message, *results.statuses, *results.crops]
    heat: dict[str, Any] = {
        "fn": handlers.show_heat,
        "inputs": [session, results.phrase],
        "outputs": [results.heat_message, results.heat],
        **_COMMON,
    }
    sentence: dict[str, Any] = {
        "fn": handlers.search_sentence,
        "inputs": [session, inputs.sentence, *filters],
        "outputs": [*answers, results.phrase],
        **_COMMON,
    }
    gr.on([inputs.search.click, inputs.sentence.submit], **sentence).then(**heat)
    for example in inputs.examples:
        copied = example.click(lambda text: text, example, inputs.sentence, **_COMMON)
        copied.then(**sentence).then(**heat)
    inputs.upload.change(
        handlers.search_image, [session, inputs.upload, *filters], [*answers, inputs.preview], **_COMMON
    ).then(**heat)
    for changed in (inputs.cameras.change, inputs.threshold.change, inputs.count.change):
        changed(handlers.search_again, [session, *filters], answers, trigger_mode="always_last", **_COMMON)
    opened = [session, inputs.summary, inputs.cameras, *inputs.examples]
    inputs.gallery.change(handlers.change_gallery, [session, inputs.gallery], opened, **_COMMON).then(
        handlers.search_again, [session, *filters], answers, **_COMMON
    )
    gr.on([results.show.click, results.phrase.input], **heat)
    for version, crops in enumerate(results.crops):
        crops.select(_click_handler(gr, handlers, version), session, session, **_COMMON).then(**heat)


def _click_handler(gr: Any, handlers: "Handlers", version: int) -> Any:
    """A handler for clicks on one version's images."""

    def choose(session: Session, event: Any) -> Session:
        return handlers.choose(session, version, int(event.index))

    choose.__annotations__["event"] = gr.SelectData  # gradio passes the event to the argument of this type
    return choose


@dataclass(frozen=True)
class Session:
    """What one visitor asked and was shown; each browser tab has its own, kept by the server."""

    gallery: str  # the one that is searched
    query: str | Image.Image | None = None  # None before the first search
    positions: tuple[tuple[int, ...], ...] = ()  # images shown by each version of the model
    chosen: int | None = None  # the image whose heat map is shown

    @classmethod
    def from_opening(cls, opening: Opening) -> "Session":
        """The session of someone who sees the page's opening."""
        positions = tuple(tuple(column.positions) for column in opening.columns)
        return cls(opening.gallery, opening.sentence or None, positions, positions[0][0] if positions else None)


class Handlers:
    """Answers the page's events: turns what the browser sends into searches, and answers into what it shows.

    Args:
        gr: gradio.
        galleries: Answers.
    """

    def __init__(self, gr: Any, galleries: Galleries) -> None:
        self.gr = gr
        self.galleries = galleries

    def search_again(self, session: Session, cameras: Sequence[str], threshold: object, count: object) -> list[Any]:
        """Repeat the session's search with these filters: session, message, statuses, crops."""
        if session.query is None:
            return self._show_nothing(session, "")
        floor = threshold if isinstance(threshold, int | float) else _NO_THRESHOLD  # the field may be empty
        k = min(max(1, int(count)), _MAX_SHOWN) if isinstance(count, int | float) else NUM_SHOWN
        try:
            columns = self.galleries.search(session.gallery, session.query, cameras=cameras, threshold=floor, k=k)
        except ValueError as error:
            return self._show_nothing(session, str(error))
        positions = tuple(tuple(column.positions) for column in columns)
        shown = [position for column in positions for position in column]
        chosen = session.chosen if session.chosen in shown else next(iter(shown), None)
        session = replace(session, positions=positions, chosen=chosen)
        statuses, crops = [column.status for column in columns], [column.crops for column in columns]
        return [session, self._message(""), *statuses, *crops]

    def search_sentence(self, session: Session, sentence: str, *filters: Any) -> list[Any]:
        """Search for a sentence: as `search_again`, then the phrases to choose from."""
        phrases = split_phrases(sentence)
        answer = self.search_again(replace(session, query=sentence, chosen=None), *filters)
        return [*answer, self.gr.update(choices=phrases, value=choose_phrase(phrases))]

    def search_image(self, session: Session, path: str | None, *filters: Any) -> list[Any]:
        """Search for an uploaded image: as `search_again`, then the preview."""
        hidden = self.gr.update(value=None, visible=False)
        if path is None:
            return [*self.search_again(replace(session, query=None), *filters), hidden]
        try:
            image = read_upload(path)
        except (ValueError, OSError) as error:
            return [*self._show_nothing(replace(session, query=None), str(error)), hidden]
        answer = self.search_again(replace(session, query=image, chosen=None), *filters)
        return [*answer, self.gr.update(value=image, visible=True)]

    def change_gallery(self, session: Session, name: str) -> list[Any]:
        """Open another gallery: session, summary, cameras, examples."""
        cameras = self.galleries.cameras(name)
        return [
            replace(session, gallery=name, positions=(), chosen=None),
            self.galleries.summary(name),
            self.gr.update(choices=cameras[:_MAX_CAMERAS], value=[], visible=bool(cameras)),
            *(self.gr.update(value=text, visible=bool(text)) for text in _example_texts(self.galleries, name)),
        ]

    def show_heat(self, session: Session, phrase: str | None) -> list[Any]:
        """Heat maps of the chosen image: message, images."""
        if session.chosen is None:
            return [self._message("" if session.query else "search first, then click an image"), []]
        try:
            return [self._message(""), self.galleries.heat_maps(session.gallery, session.chosen, phrase or "")]
        except DatasetError:  # its words name a path of this computer
            return [self._message("this image can no longer be read"), []]
        except (ValueError, IndexError) as error:
            return [self._message(str(error)), []]

    def choose(self, session: Session, version: int, rank: int) -> Session:
        """Remember the image that was clicked; one that is no longer shown changes nothing."""
        shown = session.positions[version] if version < len(session.positions) else ()
        return replace(session, chosen=shown[rank]) if 0 <= rank < len(shown) else session

    def _show_nothing(self, session: Session, reason: str) -> list[Any]:
        versions = len(self.galleries.versions)
        emptied = replace(session, positions=(), chosen=None)
        return [emptied, self._message(reason), *[""] * versions, *([] for _ in range(versions))]

    def _message(self, text: str) -> Any:
        words = f'<p role="alert">{escape(text[:1].upper() + text[1:])}</p>' if text else ""
        return self.gr.update(value=words, visible=bool(text))
