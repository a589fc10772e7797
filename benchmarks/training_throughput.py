"""Images per second and peak memory of both stages on a GPU, compared with the usual method, as ratios.

    python benchmarks/training_throughput.py                         # ViT-B-16, 384 x 128, batches of 64 and 256
    python benchmarks/training_throughput.py --device cpu --model promptreid-tiny --batch-sizes 16 --steps 2

"usual" is what other repositories of the field do: the whole model in fp16 weights, all 77 tokens, fine-tuned directly
with Adam at the epsilon of IRRA, which fp16 moments need. The variants take turns, so that a GPU's changing clock
affects all of them equally; images and captions are on the device before the clock starts. On a GPU it writes
benchmarks/results/training_throughput.json; elsewhere it writes nothing, unless --output says where.
"""

import argparse
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch

from _bench import RESULTS, made_with, make_parser, random_captions, report, seconds, take_turns
from promptreid import PromptConfig, PromptedCLIP, TwoStageSchedule, load_clip
from promptreid.training.processes import make_accelerator
from promptreid.training.step import RunningStage

ROUNDS = 5
WORDS = 30  # tokens of a caption; CUHK-PEDES' average about 23 words


def batch_of(size: int, model: PromptedCLIP, device: str) -> dict[str, torch.Tensor]:
    """Random images and captions on the device; the labels stay on the CPU, where the trainer checks them."""
    return {
        "images": torch.randn(size, 3, *model.image_size, device=device),
        "tokens": random_captions(size, words=WORDS, context_length=model.context_length).to(device),
        "person_ids": torch.arange(size) % 100,
    }


def stage_step(arguments: argparse.Namespace, stage: int, size: int) -> Callable[[], Any]:
    """A step of one of our stages, in bf16 on a GPU."""
    clip = load_clip(arguments.model, image_size=tuple(arguments.image_size), device=arguments.device)
    model = PromptedCLIP(clip, PromptConfig())
    schedule = TwoStageSchedule(model, num_identities=11_003)
    accelerator = make_accelerator(arguments.device, "bf16" if arguments.device == "cuda" else "no")
    running = RunningStage(schedule[stage], accelerator, steps_per_epoch=1000)
    batch = batch_of(size, model, arguments.device)
    return lambda: running.step(batch, where="benchmark", last_checkpoint=None)


def usual_step(arguments: argparse.Namespace, size: int) -> Callable[[], Any]:
    """Direct fine-tuning with fp16 weights and every token, by hand."""
    clip = load_clip(arguments.model, image_size=tuple(arguments.image_size), device=arguments.device)
    half = arguments.device == "cuda"
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0), sequence_first=False, trim=False)
    stage = TwoStageSchedule(model, num_identities=11_003, stage_one_epochs=0)[0]
    stage.prepare()
    if half:
        model.half()
    optimizer = torch.optim.Adam(stage.parameters(), lr=1e-5, eps=1e-3)
    batch = batch_of(size, model, arguments.device)
    images = batch["images"].half() if half else batch["images"]
    person_ids = batch["person_ids"].to(arguments.device)

    def step() -> float:
        out = model(images, batch["tokens"])
        losses = stage.losses(out["image_features"], out["text_features"], person_ids)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        return losses["total"].item()

    return step


def measure(make: Callable[[], Callable[[], Any]], steps: int, device: str) -> tuple[float, float]:
    """Seconds a step and peak GiB of GPU memory."""
    gc.collect()  # the variant before may lie in cycles
    step = make()
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(lambda: [step() for _ in range(steps)], device=device) / steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    return taken, peak


def compare(arguments: argparse.Namespace, size: int) -> dict[str, dict[str, float]]:
    """All variants in turn at one batch size."""
    variants: dict[str, Callable[[], Callable[[], Any]]] = {
        "usual": lambda: usual_step(arguments, size),
        "stage_one": lambda: stage_step(arguments, 0, size),
        "stage_two": lambda: stage_step(arguments, 1, size),
    }
    found = take_turns(
        {name: lambda make=make: measure(make, arguments.steps, arguments.device) for name, make in variants.items()},
        rounds=arguments.rounds,
    )
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    usual_seconds, usual_peak = medians["usual"]
    return {
        name: {
            "images_per_second": round(size / taken, 1),
            "peak_gib": round(peak, 2),
            "speed_ratio": round(usual_seconds / taken, 3),
            "memory_ratio": round(peak / usual_peak, 3),
        }
        for name, (taken, peak) in medians.items()
    }


def main() -> None:
    """Measure and print; write the result where it was measured on a GPU, or where asked."""
    parser = make_parser(__doc__, output=None)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image-size", type=int, nargs=2, default=[384, 128])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.exit(1, "not run: torch sees no CUDA device; --device cpu tries the script out on a small model\n")
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    by_batch_size = {str(size): compare(arguments, size) for size in arguments.batch_sizes}
    output = arguments.output or (RESULTS / "training_throughput.json" if on_gpu else None)
    report({"settings": settings, "by_batch_size": by_batch_size} | made_with(), output)


if __name__ == "__main__":
    main()
