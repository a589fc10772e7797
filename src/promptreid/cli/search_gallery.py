"""`promptreid search`: finds the images that a sentence or an image describes."""

import argparse
from collections.abc import Sequence
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
    whole,
)
from promptreid.cli.output import Output
from promptreid.defaults import NUM_HITS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.retrieval.gallery import Gallery
    from promptreid.retrieval.table import Metadata

DESCRIPTION = """Search an index by a sentence, or by an image. Prints score and path of the best, and draws them with
--picture. Exit code 1 if nothing reaches the threshold."""
NEEDS = [("picture", "matplotlib", "viz")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("index", type=Path, help="folder that `promptreid index` made")
    parser.add_argument("sentence", nargs="?", help='such as "a woman in a red coat with a black backpack"')
    parser.add_argument("--image", type=Path, help="search by this image instead of a sentence")
    parser.add_argument("-k", type=whole(1), default=NUM_HITS, help="how many at most; default %(default)s")
    parser.add_argument(
        "--threshold", help='lowest score to show, such as 0.3; or "calibrated", if the index was calibrated'
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only images with this, such as folder=cam_a",
    )
    parser.add_argument("--picture", type=file_to_write, metavar="FILE", help="draw what was found into a PNG file")
    add_model_arguments(parser, default="the one that made the index")


def run(
    console: Output,
    /,
    *,
    index: Path,
    sentence: str | None,
    image: Path | None,
    k: int,
    threshold: str | None,
    where: list[str],
    picture: Path | None,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Search the index."""
    if (sentence is None) == (image is None):
        raise ValueError('give a sentence, as in promptreid search gallery "a man in a blue jacket", or --image FILE')
    check_file("--image", image)
    query, title = (sentence, sentence) if image is None else (image, f"like {image.name}")
    gallery = open_gallery(index, model)
    hits = gallery.search(
        query or "", k, threshold=_threshold(threshold), where=_where(where, gallery.metadata) or None
    )
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

        ranking = Ranking(title or "", [hit.path for hit in hits], [hit.score for hit in hits])
        console.say(f"drawn in {draw_ranking(picture, [ranking])}")
        console.record(picture=str(picture))
    return 0


def open_gallery(directory: Path, options: ModelArguments) -> "Gallery":
    """Load an index with the model that made it, or with the one that the arguments name.

    Raises:
        CheckpointError: The index is damaged or of another model.
        ValueError: The index does not say which model made it.
    """
    from promptreid.retrieval.gallery import Gallery

    if options["model"] is None:
        for option in ("pretrained", "image_size", "revision"):
            if options[option] is not None:
                name = f"--{option.replace('_', '-')}"
                raise ValueError(f"{name} goes with --model; without both, the model that made {directory} is used")
        noted = Gallery.load(directory).notes.get("model")
        if not isinstance(noted, dict):
            raise ValueError(f"{directory} does not say which model made it; give --model")
        size = noted.get("image_size")
        size = None if size is None else (size[0], size[1])
        choice = ModelChoice(noted["model"], noted.get("pretrained"), size, noted.get("revision"))
    else:
        choice = chosen_model(options)
    return Gallery.load(directory, load_model(choice, device=options["device"]))


def _threshold(text: str | None) -> float | str | None:
    if text is None or text == "calibrated":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--threshold is {text!r}, expected a number in [-1, 1] or "calibrated"') from None


def _where(conditions: list[str], metadata: Sequence["Metadata"]) -> dict[str, list[Any]]:
    """Values by key; a key given twice allows either value, and a number matches as number and as text."""
    from promptreid.retrieval.table import check_passes

    wanted: dict[str, list[Any]] = {}
    for condition in conditions:
        key, separator, value = condition.partition("=")
        if not separator or not key:
            raise ValueError(f"--where is {condition!r}, expected KEY=VALUE, such as folder=cam_a")
        values = [value, int(value)] if value.removeprefix("-").isdecimal() else [value]
        check_passes(metadata, {key: values})
        wanted.setdefault(key, []).extend(values)
    return wanted
