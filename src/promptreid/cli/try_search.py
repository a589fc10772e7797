"""`promptreid try`: the first search, on people that are drawn for it."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.argument_types import file_to_write, folder_to_write
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import as_entries, as_lines
from promptreid.defaults import SYNTHETIC_STAMP
from promptreid.errors import DatasetError, MissingExtraError, shell_word
from promptreid.towers.tiny import TINY_ADAPTED, tiny_prompts

if TYPE_CHECKING:
    from promptreid.retrieval.table import Hit

DESCRIPTION = """Draw 200 people into a folder, with captions and a split to train on, and search them by a sentence
with the small model that ships with promptreid. Nothing is downloaded. Run again, it searches the same people. They
are drawings: what is found says nothing about photographs."""

SENTENCE = "a man in a green jacket"
# Train, validation and test. The seed is one of those (of 2 to 299) that draw four men in green jackets.
PEOPLE, IMAGES_EACH, SEED = (120, 20, 60), 2, 208


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("sentence", nargs="?", default=SENTENCE, help=f'default: "{SENTENCE}"')
    parser.add_argument(
        "--output", type=folder_to_write, default="crops", help="folder for the people; default %(default)s"
    )
    parser.add_argument(
        "--picture",
        type=file_to_write(".png"),
        default="found.png",
        metavar="FILE",
        help="the hits as a PNG file; default %(default)s",
    )


def run(console: Output, /, *, sentence: str, output: Path, picture: Path) -> int:
    """Draw, search, and say what can be typed next."""
    from promptreid.model.encoding import check_words

    check_words(sentence, name="the sentence")  # before anything is drawn
    if output.is_dir() and any(output.iterdir()) and not (output / SYNTHETIC_STAMP).is_file():
        raise DatasetError(
            f"{output} holds files that promptreid try did not write, and is left as it is; name another folder: "
            f"promptreid try {shell_word(sentence)} --output drawn"
        )
    started = time.perf_counter()
    console.say(*_draw_people(console, output))
    hits = _search(console, output, sentence)
    console.say(*as_lines(hits))
    seconds = time.perf_counter() - started
    console.say(f"found by {TINY_ADAPTED}, which knows drawn people only, in {seconds:.0f} s")
    console.record(query=sentence, hits=as_entries(hits), crops=str(output), model=TINY_ADAPTED)
    _draw_hits(console, picture, sentence, hits)
    console.say("next:", *_next_commands(output))
    return 0


def _draw_people(console: Output, folder: Path) -> list[str]:
    from promptreid.synthetic import write_generated

    is_new = not (folder / SYNTHETIC_STAMP).is_file()
    write_generated(
        folder, num_identities=PEOPLE, images_per_identity=IMAGES_EACH, seed=SEED, progress=console.progress
    )
    count = sum(PEOPLE)
    what = f"{count} people, {count * IMAGES_EACH} images, with captions"
    return [f"{what}, are drawn in {folder}/" if is_new else f"{what}: {folder}/, drawn before"]


def _search(console: Output, folder: Path, sentence: str) -> "list[Hit]":
    from promptreid.model.prompted_clip import load_prompts
    from promptreid.retrieval.gallery import Gallery

    gallery = Gallery.build(load_prompts(tiny_prompts()), folder, progress=console.progress)
    return gallery.search(sentence)


def _draw_hits(console: Output, picture: Path, sentence: str, hits: "list[Hit]") -> None:
    """Draw the hits; without matplotlib, say what would."""
    from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking

    try:
        draw_ranking(picture, [Ranking(sentence, [hit.path for hit in hits], [hit.score for hit in hits])])
    except MissingExtraError as error:
        console.say(f"no picture: {error}")
        return
    console.say(f"drawn in {picture}")
    console.record(picture=str(picture))


def _next_commands(folder: Path) -> list[str]:
    crops = shell_word(folder)
    return [
        f"  promptreid index {crops} --output gallery",
        '  promptreid search gallery "a woman in a red coat" --picture found.png',
        f"  promptreid train {crops} --output run",
    ]
