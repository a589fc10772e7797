"""`promptreid calibrate`: chooses from which score an image counts as a match."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.argument_types import folder_to_read, gallery_place, some_path
from promptreid.cli.options import (
    ModelArguments,
    add_data_arguments,
    add_model_arguments,
    check_file,
    load_split,
    refuse_unused,
)
from promptreid.cli.output import Output
from promptreid.cli.search_gallery import check_gallery_folder, open_gallery
from promptreid.cli.typed_sentences import read_sentences
from promptreid.defaults import OnBad, is_store
from promptreid.errors import counted, shell_word

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = """Choose the threshold of `promptreid search --threshold calibrated`, and store it with the gallery: the
lowest that only a given share of searches for absent people reaches. With DATA it is measured on labelled images that
look like the gallery's, without the images of the right person; how often a person in the gallery is found is measured
too. Without DATA, the gallery is searched for 400 made-up sentences, or those of --queries; `promptreid index` has
done this already for a gallery, but not for a store. Sentences in another style reach the threshold more or less
often. Measured on drawn people, with 5 % requested: 1.5 to 9 % (mean 5 to 6 %) of the searches for absent people
reached it, and 26 to 37 % of those for people in the gallery, with two small models."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("index", type=gallery_place, help="folder that `promptreid index` made, or a store's address")
    parser.add_argument(
        "root",
        type=folder_to_read,
        nargs="?",
        metavar="DATA",
        help="a dataset with captions, whose images look like the gallery's; default: no labels",
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="of the dataset; default: val")
    parser.add_argument(
        "--queries",
        type=some_path,
        metavar="FILE",
        help="instead of made-up sentences, your own, one per line, about people who are not in the gallery",
    )
    parser.add_argument(
        "--false-alarms",
        type=_rate,
        default=0.05,
        metavar="SHARE",
        help="how often a search for an absent person may find something; default %(default)s",
    )
    add_model_arguments(parser, default="the one that made the index")
    add_data_arguments(parser)


def run(
    console: Output,
    /,
    *,
    index: Path | str,
    root: Path | None,
    split: str | None,
    queries: Path | None,
    false_alarms: float,
    layout: str | None,
    image_dir: Path | None,
    table: Path | None,
    on_bad: OnBad,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Calibrate the index."""
    from promptreid.retrieval.gallery_state import threshold_in_words

    check_file("--queries", queries)
    if not is_store(index):
        check_gallery_folder(Path(index), "calibrate", root)
    sentences, name, wanted = None if queries is None else read_sentences(queries), None, None
    if root is None:
        of_data = {"split": split, "layout": layout, "image_dir": image_dir, "table": table}
        refuse_unused({**of_data, "on_bad": on_bad == "skip"}, "it goes with a dataset, DATA")
    else:
        refuse_unused({"queries": queries}, "a dataset has its own sentences")
        split = split or "val"
        name, wanted = load_split(console, root, split, layout=layout, image_dir=image_dir, table=table, on_bad=on_bad)
    gallery = open_gallery(index, model, searched=root is None)
    chosen = gallery.calibrate(wanted, sentences=sentences, false_alarm_rate=false_alarms, progress=console.progress)
    console.record(index=str(index), data=name, split=split, calibration=asdict(chosen))
    console.say(f"threshold {chosen.threshold:.3f}, {threshold_in_words(chosen)}")
    console.say(f"measured with {counted(chosen.num_queries, 'sentence')} in {counted(chosen.gallery_size, 'image')}")
    if chosen.hit_rate is None:
        console.say(
            "only labelled data can tell how often a person in the gallery is found: promptreid calibrate GALLERY DATA"
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
