"""What happens when something on the page is typed, clicked or moved."""

from typing import Any

from promptreid.demo.clerk import Clerk, Visit
from promptreid.demo.desk import Desk
from promptreid.demo.layout import Inputs, Results
from promptreid.demo.opening import Opening

_AT_ONCE = 4  # searches that compute at the same time; the rest wait their turn
_COMMON: dict[str, Any] = {
    "api_visibility": "private",
    "concurrency_limit": _AT_ONCE,
    "concurrency_id": "model",
    "show_progress": "minimal",
}


def wire(gr: Any, desk: Desk, opening: Opening, inputs: Inputs, results: Results) -> None:
    """Connect every component to its answer.

    Args:
        gr: gradio.
        desk: Answers.
        opening: What is shown first.
        inputs: What the visitor fills in.
        results: What shows the answers.
    """
    clerk, visit = Clerk(gr, desk), gr.State(Visit.beginning(opening))
    filters = [inputs.cameras, inputs.threshold, inputs.count]
    answers = [visit, results.message, *results.statuses, *results.crops]
    heat: dict[str, Any] = {
        "fn": clerk.show_heat,
        "inputs": [visit, results.phrase],
        "outputs": [results.heat_message, results.heat],
        **_COMMON,
    }
    sentence: dict[str, Any] = {
        "fn": clerk.ask_sentence,
        "inputs": [visit, inputs.sentence, *filters],
        "outputs": [*answers, results.phrase],
        **_COMMON,
    }
    _wire_questions(gr, inputs, sentence, heat)
    inputs.upload.change(
        clerk.ask_picture, [visit, inputs.upload, *filters], [*answers, inputs.preview], **_COMMON
    ).then(**heat)
    for changed in (inputs.cameras.change, inputs.threshold.change, inputs.count.change):
        changed(clerk.ask, [visit, *filters], answers, trigger_mode="always_last", **_COMMON)
    moved = [visit, inputs.summary, inputs.cameras, *inputs.examples]
    inputs.gallery.change(clerk.change_gallery, [visit, inputs.gallery], moved, **_COMMON).then(
        clerk.ask, [visit, *filters], answers, **_COMMON
    )
    gr.on([results.show.click, results.phrase.input], **heat)
    for number, crops in enumerate(results.crops):
        crops.select(_chooser(gr, clerk, number), visit, visit, **_COMMON).then(**heat)


def _wire_questions(gr: Any, inputs: Inputs, sentence: dict[str, Any], heat: dict[str, Any]) -> None:
    gr.on([inputs.search.click, inputs.sentence.submit], **sentence).then(**heat)
    for example in inputs.examples:
        copied = example.click(_same, example, inputs.sentence, **_COMMON)
        copied.then(**sentence).then(**heat)


def _same(text: str) -> str:
    return text


def _chooser(gr: Any, clerk: Clerk, version: int) -> Any:
    """A listener for clicks on one version's pictures."""

    def choose(visit: Visit, event: Any) -> Visit:
        return clerk.choose(visit, version, int(event.index))

    choose.__annotations__["event"] = gr.SelectData  # gradio passes the event to the argument of this type
    return choose
