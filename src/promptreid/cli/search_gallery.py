"""`promptreid search`: finds the pictures that a sentence or a picture describes."""

import argparse
from pathlib import Path
from typing import Any

from promptreid.cli.index_crops import open_gallery
from promptreid.cli.options import add_model_arguments
from promptreid.cli.output import Output
from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking
from promptreid.retrieval.table import Hit


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "search",
        help="find the pictures that a sentence describes",
        description="Search an index by a sentence, or by a picture. Prints score and path of the best, and draws "
        "them with --picture. Exit code 1 if nothing reaches the threshold.",
    )
    parser.add_argument("index", type=Path, help="folder that `promptreid index` made")
    parser.add_argument("sentence", nargs="?", help='such as "a woman in a red coat with a black backpack"')
    parser.add_argument("--image", type=Path, help="search by this picture instead of a sentence")
    parser.add_argument("-k", type=int, default=10, help="how many at most; default %(default)s")
    parser.add_argument(
        "--threshold", help='lowest score to show, such as 0.3; or "calibrated", if the index was calibrated'
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only pictures with this, such as folder=cam_a",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw what was found into a PNG file")
    add_model_arguments(parser, default=None)
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Search the index."""
    if (settings.sentence is None) == (settings.image is None):
        raise ValueError('give a sentence, as in promptreid search gallery "a man in a blue jacket", or --image FILE')
    gallery = open_gallery(settings.index, settings, device=settings.device)
    hits = gallery.search(
        settings.sentence if settings.image is None else settings.image,
        min(settings.k, max(1, len(gallery))),
        threshold=_threshold(settings.threshold),
        where=_where(settings.where) or None,
    )
    for rank, hit in enumerate(hits, start=1):
        output.say(f"{rank:>3}  {hit.score:6.3f}  {hit.path}")
    output.record(hits=[_entry(hit) for hit in hits])
    if not hits:
        output.say("no good match")
        return 1
    if settings.picture is not None:
        title = settings.sentence if settings.image is None else f"like {settings.image.name}"
        ranking = Ranking(title, [hit.path for hit in hits], [hit.score for hit in hits])
        output.say(f"drawn in {draw_ranking(settings.picture, [ranking])}")
        output.record(picture=str(settings.picture))
    return 0


def _entry(hit: Hit) -> dict[str, Any]:
    return {"path": str(hit.path), "score": hit.score, "id": hit.id, "metadata": dict(hit.metadata)}


def _threshold(text: str | None) -> float | str | None:
    if text is None or text == "calibrated":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'--threshold is {text!r}, expected a number in [-1, 1] or "calibrated"') from None


def _where(conditions: list[str]) -> dict[str, list[Any]]:
    """Values by key; a key given twice allows either value, and a number matches as number and as text."""
    wanted: dict[str, list[Any]] = {}
    for condition in conditions:
        key, separator, value = condition.partition("=")
        if not separator or not key:
            raise ValueError(f"--where is {condition!r}, expected KEY=VALUE, such as folder=cam_a")
        wanted.setdefault(key, []).append(value)
        if value.lstrip("-").isdigit():
            wanted[key].append(int(value))
    return wanted
