"""The page: its components, their texts, and what happens when something on it is typed, clicked or moved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from promptreid.demo.answers import (
    MAX_SENTENCE,
    NUM_SHOWN,
    Answers,
    Captioned,
    Column,
    Filters,
    choose_phrase,
    split_phrases,
)
from promptreid.demo.facets import Facet
from promptreid.demo.request_checks import MAX_UPLOAD_BYTES, UPLOAD_ENDINGS, read_upload
from promptreid.errors import DatasetError
from promptreid.retrieval.table import Hit

TITLE = "Find a person by description"
_HEAT = "What stays coloured is what the score depends on. Choose a phrase or type your own."
_FORGET = (
    "Find the images of this person, tick those that show them, and remove them from the gallery for good. "
    "The image files themselves are not touched."
)
_READY = "describe somebody above, or try one of the examples."
_CAUTION = "A score says how well an image fits the words. It does not say who someone is."
_PRIVATE = " Everything runs on this computer: nothing you type or upload leaves it."
_MAX_SHOWN = 50
_MAX_BOXES = 12  # labels beyond which a list to choose from replaces check boxes
_MAX_LABELS = 500
_COMMON: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_limit": 4,  # searches that compute at the same time; the rest wait their turn
    "concurrency_id": "model",
    "show_progress": "minimal",
}
# Where the page is served without TLS to others, browsers have no clipboard for it; the old way works everywhere.
_COPY = """(path) => {
  const field = document.createElement("textarea");
  field.value = path; document.querySelector("#detail").append(field); field.select();
  if (navigator.clipboard) navigator.clipboard.writeText(path); else document.execCommand("copy");
  field.remove();
  const button = document.querySelector("#copy"); button.textContent = "Copied"; button.focus();
  setTimeout(() => { button.textContent = "Copy path"; }, 1500);
}"""
_FOCUS_DETAIL = """() => setTimeout(() => {
  const detail = document.querySelector("#detail");
  if (!detail) return;
  detail.setAttribute("role", "dialog"); detail.setAttribute("aria-label", "One image"); detail.scrollTop = 0;
  document.querySelector("#close").focus({preventScroll: true});
}, 100)"""
OPEN_SCRIPT = """() => {
  document.addEventListener("click", (event) => {
    const item = event.target.closest(".crops:not(.plain) button");
    if (item) window.clickedCrop = item;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#close")?.click();
  });
}"""
_FOCUS_CROP = "() => { window.clickedCrop?.focus({preventScroll: true}); }"

_Parts = SimpleNamespace  # components of gradio's by name


def fill_page(gr: Any, answers: Answers, *, caution: str, kept_seconds: int) -> None:
    """Put every component on the page that is being made, and connect each to its answer.

    Args:
        gr: gradio.
        answers: Answers.
        caution: What stands at the end of the page.
        kept_seconds: How long a visitor's question is kept after the last one.
    """
    sentence, columns = answers.opening()
    gr.HTML(f"<h1>{TITLE}</h1><p>{answers.summary()}</p>", elem_id="title", padding=False)
    with gr.Column(elem_id="work"):
        with gr.Column(elem_id="question"):
            inputs = _lay_out_question(gr, answers, sentence)
        with gr.Column(elem_id="answer"):
            results = _lay_out_results(gr, answers, columns)
        with gr.Column(elem_id="filters"):
            _lay_out_filters(gr, answers, inputs)
    with gr.Column(elem_id="detail", visible=False) as detail:
        closer = _lay_out_detail(gr, answers)
    gr.HTML(f"<p>{escape(caution)}</p>", elem_id="caution", padding=False)
    first = Session(sentence or None, tuple(column.hits for column in columns))
    session = gr.State(first, time_to_live=kept_seconds)
    handlers = Handlers(gr, answers)
    _connect_search(gr, handlers, session, inputs, results)
    _connect_detail(gr, handlers, session, inputs, results, SimpleNamespace(panel=detail, **vars(closer)))


def page_caution(*, private: bool) -> str:
    """What stands at the end of the page."""
    return _CAUTION + (_PRIVATE if private else "")


def _lay_out_question(gr: Any, answers: Answers, sentence: str) -> _Parts:
    inputs = _Parts()
    with gr.Tab("Describe"):
        with gr.Row(elem_id="ask"):
            inputs.sentence = gr.Textbox(
                value=sentence,
                label="What does the person look like?",
                placeholder="a woman in a red coat and blue jeans",
                lines=1,
                max_lines=6,
                max_length=MAX_SENTENCE,
                scale=1,
                elem_id="sentence",
            )
            inputs.search = gr.Button("Search", variant="primary", scale=0, min_width=140, elem_id="search")
        with gr.Row(elem_id="examples"):
            inputs.examples = [
                gr.Button(text, size="sm", scale=0, min_width=0, elem_classes="example")
                for text in answers.opened.examples
            ]
    with gr.Tab("Search by an image"), gr.Row(equal_height=False):
        inputs.upload = gr.File(
            label=f"A crop of one person: JPEG, PNG, WebP or BMP, at most {MAX_UPLOAD_BYTES // 2**20} MB",
            file_types=list(UPLOAD_ENDINGS),
            height=140,
            elem_id="upload",
        )
        inputs.preview = gr.Image(
            label="Your image", interactive=False, height=160, visible=False, buttons=[], elem_id="preview"
        )
    return inputs


def _lay_out_results(gr: Any, answers: Answers, columns: Sequence[Column]) -> _Parts:
    """Components that show answers; `statuses` and `crops` have one for each version of the model."""
    results = _Parts(message=gr.HTML(elem_id="message", visible=False, padding=False), statuses=[], crops=[])
    results.receipt = gr.Textbox(
        label="Receipt", visible=False, lines=4, max_lines=12, interactive=False, buttons=["copy"], elem_id="receipt"
    )
    ready = f"{len(answers.gallery):,} images are ready: {_READY}"
    for number in range(len(answers.versions)):
        column = columns[number] if number < len(columns) else Column("" if number else ready, [], ())
        with gr.Column(visible=not number, elem_classes="version") as block:
            status = gr.HTML(column.status, elem_id=f"status-{number}", elem_classes="status", padding=False)
            grid = _image_grid(gr, column.crops, "Images found", elem_id=f"crops-{number}", elem_classes="crops")
        results.statuses.append(status)
        results.crops.append(grid)
        results.bare = block
    results.compare = gr.Checkbox(
        label="Compare with the bare model, before it was adapted",
        visible=len(answers.versions) > 1,
        container=False,
        elem_id="compare",
    )
    return results


def _lay_out_filters(gr: Any, answers: Answers, inputs: _Parts) -> None:
    lowest, highest = answers.score_range
    info = "Images that score less are left out. If none is left, nobody matches."
    calibration = answers.gallery.calibration
    if calibration is not None:
        info += f" Calibrated: {calibration.threshold:.2f}."
    inputs.threshold = gr.Slider(
        lowest, highest, value=lowest, step=0.01, label="Lowest score of a match", info=info, elem_id="threshold"
    )
    inputs.cameras = _choices(gr, answers.cameras, "cameras")
    inputs.days = _choices(gr, answers.days, "days")
    inputs.count = gr.Slider(1, _MAX_SHOWN, value=NUM_SHOWN, step=1, label="Images to show", elem_id="count")


def _choices(gr: Any, facet: Facet, what: str) -> Any:
    """Check boxes for a few labels, a list to type into for many."""
    options: dict[str, Any] = {"label": f"Only these {what}", "visible": bool(facet.values), "elem_id": what}
    if len(facet.values) <= _MAX_BOXES:
        return gr.CheckboxGroup(list(facet.values), info="None ticked means all.", **options)
    return gr.Dropdown(list(facet.values)[:_MAX_LABELS], multiselect=True, info="None chosen means all.", **options)


def _lay_out_detail(gr: Any, answers: Answers) -> _Parts:
    """One image, enlarged; below it what can be asked and done about it."""
    parts = _Parts()
    parts.close = gr.Button("Close", size="sm", scale=0, min_width=0, elem_id="close")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=200):
            parts.image = gr.Image(
                label="Enlarged image", show_label=False, interactive=False, buttons=[], elem_id="large"
            )
        with gr.Column(scale=4, min_width=240):
            parts.facts = gr.HTML(elem_id="facts", padding=False)
            parts.path = gr.Textbox(label="Path", interactive=False, max_lines=4, elem_id="path")
            parts.copy = gr.Button("Copy path", size="sm", elem_id="copy")
    with gr.Accordion("Where does the model see it?", open=False, elem_id="where"):
        gr.Markdown(_HEAT)
        with gr.Row(equal_height=True):
            parts.phrase = gr.Dropdown([], label="Phrase", allow_custom_value=True, scale=3, elem_id="phrase")
            parts.show = gr.Button("Show", scale=1, min_width=100, elem_id="show-heat")
        parts.heat_message = gr.HTML(elem_id="heat-message", visible=False, padding=False)
        parts.heat = _image_grid(gr, [], "Heat map", elem_id="heat", elem_classes=["crops", "plain"])
    with gr.Accordion("Forget this person", open=False, visible=answers.may_forget, elem_id="forget"):
        gr.Markdown(_FORGET)
        parts.find = gr.Button("Find their images", elem_id="find")
        parts.forget_message = gr.HTML(elem_id="forget-message", visible=False, padding=False)
        parts.alike = _image_grid(gr, [], "Images of them", elem_id="alike", elem_classes=["crops", "plain"])
        parts.ticked = gr.CheckboxGroup([], label="Images of this person", visible=False, elem_id="ticked")
        parts.remove = gr.Button("Remove the ticked images", variant="stop", visible=False, elem_id="remove")
    return parts


def _image_grid(gr: Any, images: list[Captioned], label: str, **look: Any) -> Any:
    shown = [(str(image), words) for image, words in images]
    return gr.Gallery(
        shown or None,
        label=label,
        show_label=False,
        height="auto",
        allow_preview=False,
        interactive=False,
        format="png",
        buttons=[],
        **look,
    )


def _connect_search(gr: Any, handlers: "Handlers", session: Any, inputs: _Parts, results: _Parts) -> None:
    """Say what asks for a search, and what shows its answer."""
    filters, answers = _filters(inputs, results), _answers(session, inputs, results)
    sentence: dict[str, Any] = {
        "fn": handlers.search_sentence,
        "inputs": [session, inputs.sentence, *filters],
        "outputs": answers,
        **_COMMON,
    }
    gr.on([inputs.search.click, inputs.sentence.submit], **sentence)
    for example in inputs.examples:
        example.click(lambda text: text, example, inputs.sentence, **_COMMON).then(**sentence)
    inputs.upload.change(
        handlers.search_image, [session, inputs.upload, *filters], [*answers, inputs.preview], **_COMMON
    )
    for changed in filters:
        changed.change(handlers.search_again, [session, *filters], answers, trigger_mode="always_last", **_COMMON)


def _connect_detail(
    gr: Any, handlers: "Handlers", session: Any, inputs: _Parts, results: _Parts, detail: _Parts
) -> None:
    """Say what opens the enlarged image, and what each button on it does."""
    forgetting = [detail.alike, detail.ticked, detail.remove, detail.forget_message]
    opened = [session, detail.panel, detail.image, detail.facts, detail.path, detail.phrase, detail.heat]
    opened += [detail.heat_message, *forgetting]
    for version, crops in enumerate(results.crops):
        crops.select(_click_handler(gr, handlers, version), session, opened, **_COMMON).then(None, js=_FOCUS_DETAIL)
    detail.close.click(lambda: gr.update(visible=False), None, detail.panel, **_COMMON).then(None, js=_FOCUS_CROP)
    detail.copy.click(None, detail.path, None, js=_COPY)
    gr.on(
        [detail.show.click, detail.phrase.input],
        handlers.show_heat,
        [session, detail.phrase, results.compare],
        [detail.heat_message, detail.heat],
        **_COMMON,
    )
    detail.find.click(handlers.find_alike, session, [session, *forgetting], **_COMMON)
    detail.remove.click(
        handlers.forget,
        [session, detail.ticked, *_filters(inputs, results)],
        [detail.panel, detail.forget_message, *_answers(session, inputs, results)],
        **_COMMON,
    )


def _filters(inputs: _Parts, results: _Parts) -> list[Any]:
    """What `Handlers.search_again` reads besides the session."""
    return [inputs.cameras, inputs.days, inputs.threshold, inputs.count, results.compare]


def _answers(session: Any, inputs: _Parts, results: _Parts) -> list[Any]:
    """What `Handlers.search_again` fills."""
    first = [session, results.message, results.receipt, inputs.threshold, results.bare]
    return [*first, *results.statuses, *results.crops]


def _click_handler(gr: Any, handlers: "Handlers", version: int) -> Any:
    """A handler for clicks on one version's images."""

    def enlarge(session: Session, event: Any) -> list[Any]:
        return handlers.enlarge(session, version, int(event.index))

    enlarge.__annotations__["event"] = gr.SelectData  # gradio passes the event to the argument of this type
    return enlarge


@dataclass(frozen=True)
class Session:
    """What one visitor asked and was shown; each browser tab has its own, kept by the server."""

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
        k = min(max(1, int(count)), _MAX_SHOWN) if isinstance(count, int | float) else NUM_SHOWN
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
        except (ValueError, OSError) as error:
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
