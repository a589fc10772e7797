"""`promptreid calibrate`: chooses from which score an image counts as a match."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.options import (
    ModelArguments,
    add_data_arguments,
    add_model_arguments,
    check_gallery_folder,
    folder_to_read,
    load_split,
    some_path,
)
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import open_gallery
from promptreid.defaults import OnBad
from promptreid.errors import shell_word

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = """Choose the threshold of `promptreid search --threshold calibrated` on labelled images that look like
the index's: the lowest that, with every image of the right person taken out, only a given share of the searches
reaches. It is kept with the index."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("index", type=some_path, help="folder that `promptreid index` made")
    parser.add_argument("root", type=folder_to_read, help="a dataset with captions, whose images look like the index's")
    parser.add_argument(
        "--split", default="val", choices=("train", "val", "test"), help="of the dataset; default: %(default)s"
    )
    parser.add_argument(
        "--false-alarms",
        type=_rate,
        default=0.05,
        metavar="SHARE",
        help="how often a search for somebody absent may find something; default %(default)s",
    )
    add_model_arguments(parser, default="the one that made the index")
    add_data_arguments(parser)


def run(
    console: Output,
    /,
    *,
    index: Path,
    root: Path,
    split: str,
    false_alarms: float,
    layout: str | None,
    image_dir: Path | None,
    on_bad: OnBad,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Calibrate the index."""
    check_gallery_folder(index)
    name, wanted = load_split(console, root, split, layout=layout, image_dir=image_dir, on_bad=on_bad)
    gallery = open_gallery(index, model)
    chosen = gallery.calibrate(wanted, false_alarm_rate=false_alarms, progress=console.progress)
    console.record(index=str(index), data=name, split=split, calibration=asdict(chosen))
    console.say(
        f"threshold {chosen.threshold:.3f}: {chosen.hit_rate:.0%} of {chosen.num_queries} searches for somebody there "
        f"reach it, {chosen.false_alarm_rate:.0%} of those for somebody absent, in {chosen.gallery_size} images",
    )
    if len(gallery) > 2 * chosen.gallery_size:
        console.say(
            f"the index has {len(gallery)} images, many more than that: false alarms are more frequent there; a larger "
            "split gives a better threshold"
        )
    console.say(f'now ask: promptreid search {shell_word(index)} "a woman in a red coat" --threshold calibrated')
    return 0


def _rate(text: str) -> float:
    try:
        if 0 <= float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"is {text!r}, expected a share from 0 to below 1, such as 0.05")
