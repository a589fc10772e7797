"""Distance of both stages from the peak matrix rate: time of a step over the least time of its products.

    python benchmarks/limit.py                                              # ViT-B-16, 384 x 128, batch 8, fp32
    python benchmarks/limit.py --device cuda --batch-size 64 --precision bf16

The least time is the arithmetic of a step's matrix products, forward and backward, as torch counts them, at the rate of
a large square product measured in turn with the steps. 1.00 would mean that nothing but products takes time. Without
--output it writes nothing.
"""

import argparse
import statistics
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from _bench import made_with, make_parser, report, seconds, take_turns
from promptreid import PromptConfig, PromptedCLIP, TwoStageSchedule, load_clip
from promptreid.training.processes import make_accelerator
from promptreid.training.step import RunningStage
from training_throughput import batch_of


def stage_step(arguments: argparse.Namespace, stage: int) -> Any:
    """A step of one stage on a batch that is on the device already."""
    clip = load_clip(arguments.model, image_size=tuple(arguments.image_size), device=arguments.device)
    model = PromptedCLIP(clip, PromptConfig())
    schedule = TwoStageSchedule(model, num_identities=11_003)
    accelerator = make_accelerator(arguments.device, "bf16" if arguments.precision == "bf16" else "no")
    running = RunningStage(schedule[stage], accelerator, steps_per_epoch=1000)
    batch = batch_of(arguments.batch_size, model, arguments.device)
    return lambda: running.step(batch, where="benchmark", last_checkpoint=None)


def operations(step: Any) -> int:
    """Additions and multiplications of the matrix products, convolutions and attentions of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds, arithmetic and ratio of both stages; each stage's ratio is taken round by round."""
    side = arguments.side
    one = torch.randn(side, side, device=arguments.device)
    one = one.bfloat16() if arguments.precision == "bf16" else one
    stages = {name: stage_step(arguments, number) for number, name in enumerate(("stage_one", "stage_two"))}
    work = {name: operations(step) for name, step in stages.items()}
    variants = {"product": lambda: one @ one, **stages}
    found = take_turns(
        {name: lambda run=run: seconds(run, device=arguments.device) for name, run in variants.items()},
        rounds=arguments.rounds,
        warm_up=1,
    )
    rates = [2 * side**3 / taken for taken in found["product"]]
    result: dict[str, Any] = {"matrix_rate_gflops": round(statistics.median(rates) / 1e9, 1)}
    for name in stages:
        over = [taken * rate / work[name] for taken, rate in zip(found[name], rates, strict=True)]
        result[name] = {
            "gflop": round(work[name] / 1e9, 1),
            "seconds": round(statistics.median(found[name]), 4),
            "time_over_limit": [round(value, 3) for value in (statistics.median(over), min(over), max(over))],
        }
    return result


def main() -> None:
    """Measure and print; write where asked."""
    parser = make_parser(__doc__, output=None)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image-size", type=int, nargs=2, default=[384, 128])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=2048, help="of the square product; default %(default)s")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    report({"settings": settings} | compare(arguments) | made_with(), arguments.output)


if __name__ == "__main__":
    main()
