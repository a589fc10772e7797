"""One page about a run, which needs no other file: scores, curves, what it finds, and what training moved."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

from promptreid.data.images import open_image
from promptreid.errors import DatasetError, printable, spoken
from promptreid.evaluation.evaluate import Evaluation, score
from promptreid.evaluation.pictures.canvas import figure_as_svg
from promptreid.evaluation.pictures.curves import draw_losses, draw_scores
from promptreid.evaluation.pictures.feature_space import draw_histogram, similarity_histograms
from promptreid.evaluation.pictures.ranking import rank_captions
from promptreid.evaluation.splits import EncodedSplit
from promptreid.files import write_bytes_atomically
from promptreid.scores import METRICS, ZERO_SHOT, shared_metrics, shown_score
from promptreid.version import __version__

_EXAMPLES = 4  # captions in the ranking
_GAINS, _LOSSES = 3, 2  # captions that moved most, for the better and for the worse
_THUMBNAIL = (124, 248)  # pixels, twice what a page shows


@dataclass(frozen=True)
class RunReport:
    """The contents of the page; a state is `"zero_shot"` or the name of the stage that ended.

    Attributes:
        title: Heading.
        data: Name of the dataset.
        scores: Scores on the test split by state, in order.
        encoded: The test split as each state encodes it.
        history: One entry an epoch, of all stages.
        validation: Scores of the validation split by state; `"zero_shot"` is the curves' baseline.
        settings: What the run was made with.
        is_synthetic: Whether the people are drawn.
    """

    title: str
    data: str
    scores: Mapping[str, Evaluation]
    encoded: Mapping[str, EncodedSplit] = field(repr=False)
    history: Sequence[Mapping[str, Any]] = field(repr=False)
    validation: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, dict[str, float]])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_synthetic: bool = False


def write_report(path: str | Path, report: RunReport) -> Path:
    """Write the page; figures and crops are in it, so that it can be sent as one file.

    It holds images of the dataset, whose terms may forbid to pass them on; the page says so.

    Args:
        path: HTML file to write.
        report: What it is made of.

    Returns:
        The file.

    Raises:
        ValueError: There is no state.
        MissingExtraError: matplotlib is not installed.
    """
    if not report.encoded:
        raise ValueError("encoded is empty, give at least one state of the model")
    template = Template(files("promptreid.evaluation").joinpath("report.html").read_text(encoding="utf-8"))
    last = list(report.encoded.values())[-1]
    thumbnails = _Thumbnails()
    spread = range(0, len(last.captions), max(1, len(last.captions) // _EXAMPLES))[:_EXAMPLES]
    page = template.substitute(
        title=_text(report.title),
        subtitle=_text(f"{report.data}; promptreid {__version__}"),
        notes=_notes(report),
        tiles=_tiles(report),
        counts=f"{len(last.text_ids):,} captions, {len(last.image_ids):,} images",
        table=_table(report.scores),
        training=_training(report),
        moved=_moved(report, thumbnails),
        ranking=_ranking(last, spread, thumbnails),
        similarities=_similarities(report.encoded),
        settings="".join(
            f"<tr><th>{_text(spoken(name))}</th><td>{_text(value)}</td></tr>" for name, value in report.settings.items()
        ),
    )
    write_bytes_atomically(Path(path), page.encode())
    return Path(path)


@dataclass(frozen=True)
class Movement:
    """The change of each caption's first right image between two states.

    Attributes:
        before: (captions,) int64, its rank in the first state, from 1; 0 where no image is right.
        after: The same in the second.
    """

    before: Tensor
    after: Tensor

    @property
    def found(self) -> dict[str, int]:
        """How many captions find a right image first: in both states, only in the second or the first, in neither."""
        before, after = self.before == 1, self.after == 1
        used = self.before > 0
        groups = {
            "both": before & after,
            "second": ~before & after,
            "first": before & ~after,
            "neither": used & ~before & ~after,
        }
        return {name: int(group.sum()) for name, group in groups.items()}

    def furthest(self, *, up: bool, most: int) -> list[int]:
        """Captions whose rank improved, or worsened, by the largest factor; the first of equals first."""
        factor = (self.before if up else self.after).double() / (self.after if up else self.before).clamp(min=1)
        order = factor.sort(descending=True, stable=True).indices[:most]
        return [int(index) for index in order if factor[index] > 1]


def movement(before: EncodedSplit, after: EncodedSplit) -> Movement:
    """Compare the ranks of the first right image under two states of a model, caption by caption."""
    ranks: list[Tensor] = []
    for encoded in (before, after):
        queries = score(encoded, per_query=True).text_to_image.queries
        if queries is None:
            raise ValueError("the split has no captions")
        ranks.append(queries.first_rank)
    return Movement(*ranks)


class _Thumbnails:
    """Crops as `data:` addresses; each file is read once."""

    def __init__(self) -> None:
        self._made: dict[Path, str | None] = {}

    def __call__(self, path: Path) -> str | None:
        """None for a file that cannot be read any more."""
        if path not in self._made:
            try:
                image = open_image(path)
            except DatasetError:
                self._made[path] = None
            else:
                image.thumbnail(_THUMBNAIL)
                stream = io.BytesIO()
                image.save(stream, format="JPEG", quality=80)
                self._made[path] = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        return self._made[path]


def _text(value: object) -> str:
    return escape(printable(value))


def _notes(report: RunReport) -> str:
    if report.is_synthetic:
        return (
            '<p class="note">The people are <b>drawn</b>: these scores say nothing about photographs or the benchmark '
            "whose layout the data have.</p>"
        )
    words = "This page holds images of the dataset. Pass it on only as far as the dataset's terms allow."
    return f'<p class="note">{words}</p>'


def _tiles(report: RunReport) -> str:
    states = list(report.scores)
    first, last = report.scores[states[0]], report.scores[states[-1]]
    tiles: list[str] = []
    for name in ("rank1", "mAP"):
        old, new = (scores.text_to_image.as_dict()[name] for scores in (first, last))
        change = f"{100 * (new - old):+.2f} points from {spoken(states[0])}" if len(states) > 1 else spoken(states[0])
        tiles.append(
            f'<div class="tile"><span class="soft">{METRICS[name].title}, text to image</span>'
            f"<b>{shown_score(name, new)} %</b>"
            f'<span class="soft">{_text(change)}</span></div>'
        )
    seconds = sum(entry.get("seconds", 0.0) for entry in report.history)
    if report.history:
        tiles.append(
            f'<div class="tile"><span class="soft">training</span><b>{len(report.history)} epochs</b>'
            f'<span class="soft">{_duration(seconds)}, {report.history[-1].get("step", 0):,} steps in the last stage'
            "</span></div>"
        )
    return "".join(tiles)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _table(scores: Mapping[str, Evaluation]) -> str:
    names = shared_metrics(*(found.text_to_image.as_dict() for found in scores.values()))
    head = "".join(f"<th>{_text(METRICS[name].title)}</th>" for name in names)
    rows: list[str] = []
    for direction, both in (("text to image", False), ("image to text", True)):
        rows.append(f'<tr><th colspan="{len(names) + 1}" class="soft">{direction}</th></tr>')
        for state, found in scores.items():
            values = (found.image_to_text if both else found.text_to_image).as_dict()
            cells = "".join(f"<td>{shown_score(name, values[name])}</td>" for name in names)
            rows.append(f"<tr><td>{_text(spoken(state))}</td>{cells}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _training(report: RunReport) -> str:
    if not report.history:
        return ""
    baseline = report.validation.get(ZERO_SHOT)
    kept = [
        f"{spoken(entry['stage'])} kept epoch {entry['chosen']['epoch']} ({entry['chosen']['rule']})"
        for entry in report.history
        if "chosen" in entry
    ]
    figures = [
        _figure(lambda figure: draw_losses(figure.subplots(), report.history), 4.4, 3.3, "Mean loss of each epoch")
    ]
    if any(entry.get("scores") for entry in report.history):
        words = "Scores after each epoch; the kept epochs are ringed"
        draw = partial(draw_scores, history=report.history, baseline=baseline)
        figures.append(_figure(lambda figure: draw(figure.subplots()), 4.4, 3.3, words))
    return f'<h2>Training</h2><p>{_text("; ".join(kept))}.</p><div class="figures">{"".join(figures)}</div>'


def _figure(draw: Any, width: float, height: float, caption: str) -> str:
    svg = figure_as_svg(draw, width, height).replace("<svg ", f'<svg role="img" aria-label="{_text(caption)}" ', 1)
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _similarities(encoded: Mapping[str, EncodedSplit]) -> str:
    histograms = {state: similarity_histograms(split) for state, split in encoded.items()}

    def draw(figure: Any, state: str) -> None:
        axis = figure.subplots()
        draw_histogram(axis, state, histograms)
        axis.set_ylabel("density", fontsize=9)
        axis.legend(fontsize=8, frameon=False)

    return "".join(_figure(partial(draw, state=state), 3.4, 2.6, spoken(state)) for state in histograms)


def _moved(report: RunReport, thumbnails: _Thumbnails) -> str:
    states = list(report.encoded)
    if len(states) < 2:
        return ""
    before, after = report.encoded[states[0]], report.encoded[states[-1]]
    moved, (old, new) = movement(before, after), (spoken(states[0]), spoken(states[-1]))
    total = max(1, sum(moved.found.values()))
    labels = {
        "both": (f"by {old} and {new}", "right"),
        "second": (f"only by {new}", "right"),
        "first": (f"only by {old}", "wrong"),
        "neither": ("by neither", ""),
    }
    bars = ""
    for name, count in moved.found.items():
        (label, kind), share = labels[name], 100 * count / total
        bars += f"<span>{_text(label)}</span><span>{count:,} ({share:.0f} %)</span>"
        bars += f'<i class="{kind}" style="width:{share:.1f}%"></i>'
    parts = [
        f"<h2>What moved from {_text(old)} to {_text(new)}</h2><p>Captions whose first result is right:</p>"
        f'<div class="bars">{bars}</div>'
    ]
    gained, lost = moved.furthest(up=True, most=_GAINS), moved.furthest(up=False, most=_LOSSES)
    for title, chosen in (("Largest gains", gained), ("Largest losses", lost)):
        if chosen:
            parts.append(f'<p class="query"><b>{title}</b>: the rank of the first right image</p>')
        for caption in chosen:
            parts.append(_example(caption, (before, after), moved, (old, new), thumbnails))
    return "".join(parts)


def _example(
    caption: int,
    splits: tuple[EncodedSplit, EncodedSplit],
    moved: Movement,
    states: tuple[str, str],
    thumbnails: _Thumbnails,
) -> str:
    """A caption with the person it describes and what either state finds first."""
    ids = splits[0].image_ids
    person = int((ids == splits[0].text_ids[caption]).nonzero()[0])
    crops = [_crop(splits[0], person, None, "described", thumbnails)]
    for state, split in zip(states, splits, strict=True):
        best = int((split.image_features @ split.text_features[caption]).argmax())
        crops.append(_crop(split, best, bool(ids[best] == split.text_ids[caption]), state, thumbnails))
    ranks = f"{int(moved.before[caption]):,} → {int(moved.after[caption]):,}"
    return (
        f'<p class="query">“{_text(splits[0].captions[caption])}” <b>{ranks}</b></p>'
        f'<div class="crops wide">{"".join(crops)}</div>'
    )


def _ranking(encoded: EncodedSplit, captions: Iterable[int], thumbnails: _Thumbnails) -> str:
    parts: list[str] = []
    for ranking in rank_captions(encoded, list(captions)):
        crops = "".join(
            _crop_of(path, right, f"{value:.2f}", thumbnails)
            for path, right, value in zip(ranking.paths, ranking.right or (), ranking.scores, strict=True)
        )
        parts.append(f'<p class="query">“{_text(ranking.caption)}”</p><div class="crops">{crops}</div>')
    return "".join(parts)


def _crop(encoded: EncodedSplit, image: int, right: bool | None, label: str, thumbnails: _Thumbnails) -> str:
    return _crop_of(encoded.split.records[image].path, right, label, thumbnails)


def _crop_of(path: Path, right: bool | None, label: str, thumbnails: _Thumbnails) -> str:
    kind, mark = {None: ("", ""), True: ("right", "✓ "), False: ("wrong", "✗ ")}[right]
    address, name = thumbnails(path), _text(path.name)
    said = {None: "", True: ", right", False: ", wrong"}[right]
    shown = (
        f'<img src="{address}" alt="{name}{said}" title="{name}">'
        if address
        else '<div class="gone">cannot be read</div>'
    )
    return f'<div class="crop {kind}">{shown}<span>{mark}{_text(label)}</span></div>'
