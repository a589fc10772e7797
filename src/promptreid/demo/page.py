"""The page: its components, their texts, and which handler answers what on it."""

from collections.abc import Sequence
from html import escape
from types import SimpleNamespace
from typing import Any

from promptreid.demo.answers import MAX_SENTENCE, NUM_SHOWN, Answers, Captioned, Column
from promptreid.demo.facets import Facet
from promptreid.demo.handlers import MAX_SHOWN, Handlers, Session
from promptreid.demo.request_checks import MAX_UPLOAD_BYTES, UPLOAD_ENDINGS
from promptreid.errors import counted

TITLE = "Find a person by description"
_HEAT = "What stays coloured is what the score depends on. Choose a phrase or type your own."
_FORGET = (
    "Find the images of this person, tick those that show them, and remove them from the gallery for good. "
    "The image files themselves are not touched."
)
_READY = "describe someone above, or try one of the examples."
_CAUTION = "A score says how well an image fits the words. It does not say who someone is."
_PRIVATE = " Everything runs on this computer: nothing you type or upload leaves it."
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
        caution: The text at the end of the page.
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
    """The text at the end of the page."""
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
    count = len(answers.gallery)
    ready = f"{counted(count, 'image')} {'is' if count == 1 else 'are'} ready: {_READY}"
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
    info = "Images that score less are left out. If none is left, no image fits that well."
    calibration = answers.gallery.calibration
    if calibration is not None:
        info += f" Calibrated for sentences: {calibration.threshold:.2f}."
    inputs.threshold = gr.Slider(
        lowest, highest, value=lowest, step=0.01, label="Lowest score of a match", info=info, elem_id="threshold"
    )
    inputs.cameras = _choices(gr, answers.cameras, "cameras")
    inputs.days = _choices(gr, answers.days, "days")
    inputs.count = gr.Slider(1, MAX_SHOWN, value=NUM_SHOWN, step=1, label="Images to show", elem_id="count")


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


def _connect_search(gr: Any, handlers: Handlers, session: Any, inputs: _Parts, results: _Parts) -> None:
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


def _connect_detail(gr: Any, handlers: Handlers, session: Any, inputs: _Parts, results: _Parts, detail: _Parts) -> None:
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
    """The components that `Handlers.search_again` reads besides the session."""
    return [inputs.cameras, inputs.days, inputs.threshold, inputs.count, results.compare]


def _answers(session: Any, inputs: _Parts, results: _Parts) -> list[Any]:
    """The components that `Handlers.search_again` fills."""
    first = [session, results.message, results.receipt, inputs.threshold, results.bare]
    return [*first, *results.statuses, *results.crops]


def _click_handler(gr: Any, handlers: Handlers, version: int) -> Any:
    """A handler for clicks on one version's images."""

    def enlarge(session: Session, event: Any) -> list[Any]:
        return handlers.enlarge(session, version, int(event.index))

    enlarge.__annotations__["event"] = gr.SelectData  # gradio passes the event to the argument of this type
    return enlarge
