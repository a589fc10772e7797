"""`promptreid check`: finds everything that is wrong with a dataset."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.argument_types import folder_to_read, whole
from promptreid.cli.options import (
    DividedDataArguments,
    add_data_arguments,
    add_division_arguments,
    check_division,
    refuse_unused,
)
from promptreid.cli.output import Output
from promptreid.defaults import is_gallery, is_store
from promptreid.errors import shell_word

if TYPE_CHECKING:
    from typing_extensions import Unpack

DESCRIPTION = """Read the annotation of CUHK-PEDES, ICFG-PEDES, RSTPReid or your own folder and open every image;
report all problems at once. Given a folder that `promptreid index` made, read the whole gallery and compare its
checksums. Exit code 1 if there are errors."""

SHOWN = 10
CLIP = "ViT-B-16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("root", type=folder_to_read, help="the dataset's folder, or a gallery")
    add_data_arguments(parser)
    add_division_arguments(parser)
    parser.add_argument("--no-images", action="store_true", help="only check that images exist: much faster")
    parser.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="the open_clip model (hf-hub:USER/NAME@REVISION too) that captions must not be too long for; default "
        f"{CLIP}, whose 77 tokens most CLIP models share",
    )
    parser.add_argument("--limit", type=whole(0), help=f"messages shown of each kind; default {SHOWN}")


def run(
    console: Output,
    /,
    *,
    root: Path,
    no_images: bool,
    tokenizer: str | None,
    limit: int | None,
    **reading: "Unpack[DividedDataArguments]",
) -> int:
    """Check the dataset, or the gallery."""
    from promptreid.data.check import check_dataset
    from promptreid.data.image_files import explained_if_closed
    from promptreid.data.reader import holds_dataset
    from promptreid.data.table_layout import describes_images, find_tables
    from promptreid.towers.tokenizer import tokenizer_of

    with explained_if_closed(root):
        tables = find_tables(root) if reading["table"] is None else [root / reading["table"]]
        has_gallery, has_data = is_gallery(root), holds_dataset(root) or any(map(describes_images, tables))
    if is_store(root):
        advice = f"promptreid store info {shell_word(root)} looks at it"
        if not (has_gallery or has_data):
            raise ValueError(f"{root} is a store; {advice}")
        console.note(f"note: {root} holds a store too, which is not checked; {advice}")
    if has_gallery and has_data:
        console.note(f"note: {root} holds a gallery too, which is not checked; better make it in a folder of its own")
    elif has_gallery:
        given = {**reading, "no_images": no_images, "on_bad": reading["on_bad"] == "skip"}
        given |= {"tokenizer": tokenizer is not None, "limit": limit is not None}
        refuse_unused(given, f"{root} is an index, and not a dataset")
        return _check_gallery(console, root)
    check_division(reading["split"], reading["split_seed"])
    report = check_dataset(
        root, images=not no_images, tokenizer=tokenizer_of(tokenizer or CLIP), progress=console.progress, **reading
    )
    for line in report.lines(limit=SHOWN if limit is None else limit):
        console.say(line)
    console.record(**report.as_dict())
    return 0 if report.ok else 1


def _check_gallery(console: Output, folder: Path) -> int:
    from promptreid.retrieval.gallery_files import check_gallery

    problems, notes = check_gallery(folder)
    for line in (*problems, *notes):
        console.say(line)
    if not problems:
        console.say(f"the index {folder} is whole")
    console.record(ok=not problems, problems=problems, notes=notes)
    return 1 if problems else 0
