"""What stands where on the page."""

from dataclasses import dataclass
from typing import Any

from promptreid.demo.desk import MAX_SENTENCE, Desk
from promptreid.demo.opening import FEW_PICTURES, Opening
from promptreid.demo.uploads import ENDINGS, MAX_BYTES

TITLE = "Find a person by description"
_INTRODUCTION = (
    f"# {TITLE}\n"
    "Say what someone looks like: the pictures of the gallery that fit best come first. The same search is shown with "
    "the **adapted model** and with the **bare model** it was made from."
)
_HEAT = (
    "### Where does the model see it?\n"
    "Click a picture above, choose a phrase or type your own. What stays coloured is what the score hangs on."
)
_CAUTION = "A score says how well a picture fits the words. It does not say who someone is."
_PRIVATE = " Everything runs on this computer: nothing you type or upload leaves it."
NO_THRESHOLD = -1.0
MOST_CAMERAS = 200
MOST_PICTURES = 50
_EXAMPLES = 4


@dataclass(frozen=True)
class Inputs:
    """Components that the visitor fills in; each is gradio's."""

    gallery: Any
    summary: Any
    sentence: Any
    examples: list[Any]
    search: Any
    upload: Any
    preview: Any
    threshold: Any
    cameras: Any
    count: Any


@dataclass(frozen=True)
class Results:
    """Components that show answers; `statuses` and `crops` have one for each version of the model."""

    message: Any
    statuses: list[Any]
    crops: list[Any]
    phrase: Any
    show: Any
    heat_message: Any
    heat: Any


def lay_out(gr: Any, desk: Desk, opening: Opening, *, private: bool) -> tuple[Inputs, Results]:
    """Put every component on the page that is being made.

    Args:
        gr: gradio.
        desk: Knows the galleries.
        opening: What is shown first.
        private: Whether only this computer reaches the page.
    """
    gr.Markdown(_INTRODUCTION, elem_id="title")
    with gr.Row(equal_height=False, elem_id="work"):
        with gr.Column(scale=1, min_width=300, elem_id="question"):
            inputs = _lay_out_inputs(gr, desk, opening)
        with gr.Column(scale=2, min_width=300, elem_id="answer"):
            results = _lay_out_results(gr, desk, opening)
    gr.Markdown(_CAUTION + (_PRIVATE if private else ""), elem_id="caution")
    return inputs, results


def example_texts(desk: Desk, gallery: str) -> list[str]:
    """A sentence for each of the example buttons; empty ones stay hidden."""
    known = desk.examples(gallery, count=_EXAMPLES)
    return known + [""] * (_EXAMPLES - len(known))


def _lay_out_inputs(gr: Any, desk: Desk, opening: Opening) -> Inputs:
    first = opening.gallery
    gallery = gr.Radio(desk.galleries, value=first, label="Gallery", visible=len(desk.galleries) > 1)
    summary = gr.HTML(desk.summary(first), elem_id="summary", padding=False)
    with gr.Tab("Describe"):
        sentence = gr.Textbox(
            value=opening.sentence,
            label="What does the person look like?",
            placeholder="a woman in a red coat and blue jeans",
            lines=1,
            max_lines=6,
            max_length=MAX_SENTENCE,
            elem_id="sentence",
        )
        search = gr.Button("Search", variant="primary", elem_id="search")
        gr.Markdown("Or try one of these:")
        examples = [
            gr.Button(text, size="sm", visible=bool(text), elem_classes="example")
            for text in example_texts(desk, first)
        ]
    with gr.Tab("Upload a picture"):
        upload = gr.File(
            label=f"A crop of one person: JPEG, PNG, WebP or BMP, at most {MAX_BYTES // 2**20} MB",
            file_types=list(ENDINGS),
            height=140,
            elem_id="upload",
        )
        preview = gr.Image(label="Your picture", interactive=False, height=220, visible=False, buttons=[])
    with gr.Accordion("Filters", open=True, elem_id="filters"):
        threshold, cameras, count = _lay_out_filters(gr, desk)
    return Inputs(gallery, summary, sentence, examples, search, upload, preview, threshold, cameras, count)


def _lay_out_filters(gr: Any, desk: Desk) -> tuple[Any, Any, Any]:
    names = desk.cameras(desk.galleries[0])
    threshold = gr.Slider(
        NO_THRESHOLD,
        1.0,
        value=NO_THRESHOLD,
        step=0.01,
        label="Lowest score of a match",
        info="Pictures that score less are left out. If none is left, nobody matches.",
        elem_id="threshold",
    )
    cameras = gr.CheckboxGroup(
        names[:MOST_CAMERAS],
        label="Only these cameras",
        info="None ticked means all.",
        visible=bool(names),
        elem_id="cameras",
    )
    count = gr.Slider(1, MOST_PICTURES, value=FEW_PICTURES, step=1, label="Pictures to show", elem_id="count")
    return threshold, cameras, count


def _lay_out_results(gr: Any, desk: Desk, opening: Opening) -> Results:
    message = gr.HTML(elem_id="message", visible=False)
    statuses: list[Any] = []
    crops: list[Any] = []
    for number, label in enumerate(desk.versions):
        shown = opening.columns[number] if opening.columns else None
        statuses.append(
            gr.HTML(shown and shown.status, elem_id=f"status-{number}", elem_classes="status", padding=False)
        )
        crops.append(
            gr.Gallery(
                shown and shown.crops,
                label=label,
                show_label=False,
                columns=6,
                height="auto",
                allow_preview=False,
                interactive=False,
                format="png",
                buttons=[],
                elem_id=f"crops-{number}",
                elem_classes="crops",
            )
        )
    gr.Markdown(_HEAT)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=240):
            phrase = gr.Dropdown(
                opening.phrases, value=opening.phrase, label="Phrase", allow_custom_value=True, elem_id="phrase"
            )
            show = gr.Button("Show", elem_id="show-heat")
            heat_message = gr.HTML(elem_id="heat-message", visible=False)
        with gr.Column(scale=3, min_width=240):
            heat = gr.Gallery(
                opening.maps or None,
                label="Heat map", show_label=False, columns=2, height="auto", allow_preview=False, interactive=False,
                format="png", buttons=[], elem_id="heat", elem_classes=["crops", "heat"],
            )  # fmt: skip
    return Results(message, statuses, crops, phrase, show, heat_message, heat)
