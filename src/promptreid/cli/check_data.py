"""`promptreid check`: finds everything that is wrong with a data set."""

import argparse
from pathlib import Path

from promptreid.cli.output import Output
from promptreid.data.check import check_dataset
from promptreid.data.reader import LAYOUTS
from promptreid.towers.tokenizer import tokenizer_of

SHOWN = 10
CLIP = "ViT-B-16"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "check",
        help="look for everything that is wrong with a data set",
        description="Read the annotation of CUHK-PEDES, ICFG-PEDES, RSTPReid or a folder of your own and open every "
        "image; report all problems at once. Exit code 1 if there are errors.",
    )
    parser.add_argument("root", type=Path, help="the data set's folder")
    parser.add_argument("--layout", help=f"{', '.join(LAYOUTS)}; default: recognised from the files")
    parser.add_argument("--no-images", action="store_true", help="only look whether images are there: much faster")
    parser.add_argument(
        "--tokenizer",
        default=CLIP,
        metavar="MODEL",
        help="the open_clip model that captions must not be too long for; default %(default)s, whose 77 tokens most "
        "CLIP models share",
    )
    parser.add_argument("--limit", type=int, default=SHOWN, help="messages shown of each kind; default %(default)s")
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Check the data set."""
    report = check_dataset(
        settings.root,
        layout=settings.layout,
        images=not settings.no_images,
        tokenizer=tokenizer_of(settings.tokenizer),
        progress=output.progress,
    )
    for line in report.lines(limit=settings.limit):
        output.say(line)
    output.record(**report.as_dict())
    return 0 if report.ok else 1
