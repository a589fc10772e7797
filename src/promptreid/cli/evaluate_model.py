"""`promptreid evaluate`: scores a model on a split."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from promptreid.cli.argument_types import folder_to_read, folder_to_write, whole
from promptreid.cli.options import (
    ModelArguments,
    add_data_arguments,
    add_model_arguments,
    check_apart,
    check_device,
    chosen_model,
    joined_processes,
    load_model,
    load_split,
    note_model,
)
from promptreid.cli.output import Output
from promptreid.defaults import BATCH_SIZE, OnBad
from promptreid.towers.tiny import TINY_ADAPTED

if TYPE_CHECKING:
    from typing_extensions import Unpack


DESCRIPTION = """Rank-1/5/10, mAP and mINP of a model, text to image and image to text. Under torchrun each process
encodes its share: torchrun --nproc-per-node 4 -m promptreid evaluate …"""
NEEDS = [("output", "matplotlib", "viz")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("root", type=folder_to_read, help="the dataset's folder")
    add_model_arguments(parser, default=TINY_ADAPTED)
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="default: %(default)s")
    parser.add_argument(
        "--output", type=folder_to_write, help="folder for metrics.json and ranking.png; default: none written"
    )
    parser.add_argument("--batch-size", type=whole(1), default=BATCH_SIZE, help="default: %(default)s")
    parser.add_argument("--num-workers", type=whole(0), default=0, help="processes that load images")
    add_data_arguments(parser)


def run(
    console: Output,
    /,
    *,
    root: Path,
    split: str,
    output: Path | None,
    batch_size: int,
    num_workers: int,
    layout: str | None,
    image_dir: Path | None,
    table: Path | None,
    on_bad: OnBad,
    **model: "Unpack[ModelArguments]",
) -> int:
    """Evaluate the model."""
    if output is not None and not (output / "metrics.json").exists():  # as an earlier version wrote there
        check_apart(output, root, image_dir)
    choice = chosen_model(model)
    from promptreid.evaluation.evaluate import evaluate, score_table

    device = check_device(model["device"])
    name, wanted = load_split(console, root, split, layout=layout, image_dir=image_dir, table=table, on_bad=on_bad)
    note_model(console, choice, root)
    with joined_processes(console, device):
        scores = evaluate(
            load_model(choice, device=device),
            wanted,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=console.progress,
            output_dir=output,
        ).as_dict()
    console.record(data=name, split=split, model=choice.as_dict(), scores=scores)
    console.say(*score_table({f"{split} split": scores}).split("\n"))
    if output is not None:
        console.say(f"metrics.json and ranking.png are in {output}")
    return 0
