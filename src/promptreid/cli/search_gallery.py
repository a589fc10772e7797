"""`promptreid search`: finds the images that a sentence or an image describes."""

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.options import (
    ModelArguments,
    ModelChoice,
    add_model_arguments,
    check_file,
    chosen_model,
    file_to_write,
    load_model,
    refuse_unused,
    some_path,
    whole,
)
from promptreid.cli.output import Output
from promptreid.defaults import NUM_HITS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.retrieval.gallery import Gallery

DESCRIPTION = """Search an index by a sentence, or by an image. Prints score and path of the best, and draws them with
--picture. Exit code 1 if nothing reaches the threshold."""
NEEDS = [("picture", "matplotlib", "viz")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("index", type=some_path, help="folder that `promptreid index` made")
    parser.add_argument("sentence", nargs="?", help='such as "a woman in a red coat with a black backpack"')
    parser.add_argument("--image", type=some_path, help="search by this image instead of a sentence")
    parser.add_argument("-k", type=whole(1), default=NUM_HITS, help="how many at most; default %(default)s")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        help='lowest score to show, such as 0.3; or "calibrated", if the index was calibrated',
    )
    parser.add_argument(
        "--where",
        type=_condition,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only images with this, such as folder=cam_a; hour=8..17 and time=2026-11-26.. are ranges, and "
        "folder=roof/* is what begins with roof/",
    )
    parser.add_argument(
        "--picture", type=file_to_write(".png"), metavar="FILE", help="draw what was found into a PNG file"
    )
    add_model_arguments(parser, default="the one that made the index")


def run(
    console: Output,
    /,
    *,
    index: Path,
    sentence: str | None,
    image: Path | None,
    k: int,
    threshold: float | str | None,
    where: list[tuple[str, str]],
    picture: Path | None,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Search the index."""
    if (sentence is None) == (image is None):
        raise ValueError('give a sentence, as in promptreid search gallery "a man in a blue jacket", or --image FILE')
    check_file("--image", image)
    from promptreid.data.images import open_image
    from promptreid.model.encoding import check_words

    check_words(sentence, name="the query")
    query = sentence if image is None else open_image(image)
    gallery = open_gallery(index, model, where, threshold)
    hits = gallery.search(query or "", k, threshold=threshold, where=_where(where) or None)
    for rank, hit in enumerate(hits, start=1):
        console.say(f"{rank:>3}  {hit.score:6.3f}  {hit.path}")
    console.record(
        hits=[{"path": str(hit.path), "score": hit.score, "id": hit.id, "metadata": dict(hit.metadata)} for hit in hits]
    )
    if not hits:
        console.say("no good match")
        return 1
    if picture is not None:
        from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking

        title = f"like {image.name}" if image else sentence or ""
        ranking = Ranking(title, [hit.path for hit in hits], [hit.score for hit in hits])
        console.say(f"drawn in {draw_ranking(picture, [ranking])}")
        console.record(picture=str(picture))
    return 0


def open_gallery(
    directory: Path,
    options: ModelArguments,
    where: Sequence[tuple[str, str]] = (),
    threshold: float | str | None = None,
) -> "Gallery":
    """Load an index with the model that made it, or with the one that the arguments name.

    Args:
        directory: The index.
        options: The model's.
        where: Conditions that an image must be able to fulfil, or the model is not loaded.
        threshold: `"calibrated"` for an index that must have been.

    Raises:
        CheckpointError: The index is damaged or of another model.
        ValueError: The index does not say which model made it, or options are given that go with another one.
    """
    from promptreid.retrieval.gallery import Gallery
    from promptreid.retrieval.searching import lowest_score

    if options["model"] is None:
        own = {name: options[name] for name in ("pretrained", "image_size", "revision")}
        refuse_unused(own, f"{directory} goes with the model that made it, or with --model")
    gallery = Gallery.load(directory)
    for condition in where:
        gallery.check_filter(_where([condition]))
    lowest_score(gallery.calibration, threshold)
    noted = gallery.notes.get("model")
    if options["model"] is not None:
        choice = chosen_model(options)
    elif isinstance(noted, dict):
        size = noted.get("image_size")
        size = None if size is None else (size[0], size[1])
        choice = ModelChoice(noted["model"], noted.get("pretrained"), size, noted.get("revision"))
    else:
        raise ValueError(f"{directory} does not say which model made it; give --model")
    return Gallery.load(directory, load_model(choice, device=options["device"]))


def _threshold(text: str) -> float | str:
    try:
        if text == "calibrated" or -1 <= float(text) <= 1:
            return text if text == "calibrated" else float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'is {text!r}, expected a number in [-1, 1] or "calibrated"')


def _condition(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected KEY=VALUE, such as folder=cam_a")
    return key, value


def _where(conditions: Sequence[tuple[str, str]]) -> dict[str, list[Any]]:
    """Values by key; a key given twice allows either value, and a number matches as number and as text."""
    wanted: dict[str, list[Any]] = {}
    for key, value in conditions:
        wanted.setdefault(key, []).extend(_values(value))
    return wanted


def _values(text: str) -> list[Any]:
    """What a value of `--where` allows: itself, a range if it has two dots, what begins with it if it has a star."""
    from promptreid.retrieval.filters import Between, Prefix

    start, dots, end = text.partition("..")
    if dots and (start or end):
        return [text, *_ranges(start or None, end or None, Between)]
    if text.endswith("*"):
        return [Prefix(text[:-1])]
    return [text, *(number for number in (_number(text),) if isinstance(number, int))]


def _ranges(start: str | None, end: str | None, between: Any) -> list[Any]:
    """The range of numbers and that of texts, as far as there are such."""
    ranges: list[Any] = []
    numbers = [None if limit is None else _number(limit) for limit in (start, end)]
    are_numbers = all(number is not None or limit is None for number, limit in zip(numbers, (start, end), strict=True))
    for limits in [numbers, [start, end]] if are_numbers else [[start, end]]:
        with suppress(ValueError):  # numbers in order need not be texts in order
            ranges.append(between(*limits))
    if not ranges:
        raise ValueError(f"--where has the range {start}..{end}, whose start is after its end; swap them")
    return ranges


def _number(text: str) -> int | float | None:
    if text.removeprefix("-").isdecimal():
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
