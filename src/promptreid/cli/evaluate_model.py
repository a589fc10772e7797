"""`promptreid evaluate`: scores a model on a split."""

import argparse
import os
from pathlib import Path

import torch

from promptreid.adaptation import score_table
from promptreid.cli.options import add_model_arguments, chosen_model, load_model
from promptreid.cli.output import Output
from promptreid.data.reader import load_dataset
from promptreid.data.records import ReIDSplit
from promptreid.evaluation.evaluate import evaluate
from promptreid.evaluation.sharding import is_main_process


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model on a data set",
        description="Rank-1/5/10, mAP and mINP of a model, text to image and image to text. Under torchrun each "
        "process encodes its share: torchrun --nproc-per-node 4 -m promptreid evaluate …",
    )
    parser.add_argument("root", type=Path, help="the data set's folder")
    add_model_arguments(parser)
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="folder for metrics.json and ranking.png; default: none written")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load pictures")
    parser.add_argument("--layout", help="CUHK-PEDES, ICFG-PEDES, RSTPReid or folder; default: found out")
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Evaluate the model."""
    choice = chosen_model(settings)
    data = load_dataset(settings.root, layout=settings.layout)
    splits: dict[str, ReIDSplit] = {split.name: split for split in data.splits}
    if settings.split not in splits:
        raise ValueError(f"{data.name} has no {settings.split} split; it has {', '.join(splits)}")
    device = _join_processes(settings.device)
    model = load_model(choice, device=device)
    try:
        scores = evaluate(
            model,
            splits[settings.split],
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            progress=output.progress,
            output_dir=settings.output,
        ).as_dict()
        if not is_main_process():
            output.as_json = False
            return 0
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    output.record(data=data.name, split=settings.split, model=choice.as_dict(), scores=scores)
    output.say(score_table({f"{settings.split} split": scores}))
    if settings.output is not None:
        output.say(f"metrics.json and ranking.png are in {settings.output}")
    return 0


def _join_processes(device: str) -> str:
    """Join the other processes that torchrun started, if it did; returns this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if not device.startswith("cuda"):
        torch.distributed.init_process_group("gloo")
        return device
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(own)
    torch.distributed.init_process_group("nccl")
    return own
