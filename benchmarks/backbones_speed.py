"""What prompts, freezing and cutting captions cost or save, as ratios measured side by side.

    python benchmarks/backbones_speed.py                  # ViT-B/16 at 384 x 128, random weights, all cores
    python benchmarks/backbones_speed.py --precision fp32 --only prompted frozen
    python benchmarks/backbones_speed.py --device cuda    # also with torch.compile, and the share of the matrix rate

Each comparison has a process of its own, in which its two variants take turns. Before a variant is timed it runs once
untimed, because what it needs of memory is otherwise still shaped by the other: who uses the one never runs the other.
A ratio is the median over rounds of one variant's time over the other's of the same round: a machine that is slow for
a while is slow for both.
"""

import argparse
import copy
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import torch
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, load_clip

MODEL, IMAGE_SIZE = "ViT-B-16", (384, 128)
BATCH, CAPTIONS, CAPTION_TOKENS = 8, 32, 30
PROMPTS = 4
PROMPTED = "prompted forward / bare forward"
FROZEN = "frozen forward: as it comes / ours bare"
STEP = "stage-1 step / all-trainable step"
CAPTION = f"{CAPTIONS} captions: at 77 / cut to {CAPTION_TOKENS}"
COMPARISONS = ("prompted", "frozen", "steps", "captions")
RESULTS = Path(__file__).parent / "results"
Work = Callable[[], Any]


def ratio(first: Work, second: Work, *, rounds: int, synchronize: Work) -> dict[str, Any]:
    """Time of `first` over time of `second`."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        pair = ((0, first), (1, second)) if number % 2 else ((1, second), (0, first))
        for index, work in pair:
            work()
            synchronize()
            started = time.perf_counter()
            work()
            synchronize()
            seconds[index].append(time.perf_counter() - started)
    ratios = [one / other for one, other in zip(*seconds, strict=True)]
    return {
        "ratio": round(median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "seconds": [round(median(times), 4) for times in seconds],
    }


def made_up_captions(batch: int, *, device: str) -> torch.Tensor:
    """Made-up captions whose longest has CAPTION_TOKENS tokens with start and end."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(batch, 77, dtype=torch.int64)
    for row in range(batch):
        words = CAPTION_TOKENS - 2 - row % 8
        tokens[row, 1 : 1 + words] = torch.randint(1000, 40000, (words,), generator=generator)
        tokens[row, 0], tokens[row, 1 + words] = 49406, 49407
    return tokens.to(device)


class Bench:
    """One precision on one device.

    Args:
        device: `"cpu"` or `"cuda"`.
        bf16: Under bfloat16 autocast.
        rounds: How often each pair is measured.
    """

    def __init__(self, device: str, *, bf16: bool, rounds: int) -> None:
        torch.manual_seed(0)
        self.device, self.bf16, self.rounds = device, bf16, rounds
        self.bare = load_clip(MODEL, image_size=IMAGE_SIZE, device=device).requires_grad_(False)
        config = PromptConfig(text_length=PROMPTS, vision_length=PROMPTS)
        self.model = PromptedCLIP(copy.deepcopy(self.bare), config).eval()
        self.images = torch.randn(BATCH, 3, *IMAGE_SIZE, device=device)
        self.tokens = made_up_captions(BATCH, device=device)
        self.many = made_up_captions(CAPTIONS, device=device)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast or nothing."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def compare(self, name: str, first: Work, second: Work, *, rounds: int | None = None) -> dict[str, Any]:
        """The ratio of two pieces of work, printed at once."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        result = ratio(first, second, rounds=rounds or self.rounds, synchronize=wait)
        print(f"{'bf16' if self.bf16 else 'fp32'}  {name:<50}{result}", flush=True)
        return result

    def forward(self, model: nn.Module, *, bare: bool = False, image: bool = True, text: bool = True) -> Work:
        """One encoder or both, without gradients."""

        def work() -> None:
            with torch.no_grad(), self.precision(), model.disabled() if bare else nullcontext():
                if image:
                    model.encode_image(self.images)
                if text:
                    model.encode_text(self.tokens)

        return work

    def step(self, *, everything: bool) -> Work:
        """One step of training with prompts only, or with every parameter."""
        prompts, encoders = self.model.prompt_parameters(), self.model.encoder_parameters()

        def work() -> None:
            for parameter in encoders:
                parameter.requires_grad_(everything)
            parameters = [*prompts, *encoders] if everything else prompts
            optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
            with self.precision():
                output = self.model(self.images, self.tokens)
                logits = 50 * output["image_features"].float() @ output["text_features"].float().T
                loss = nn.functional.cross_entropy(logits, torch.arange(BATCH, device=self.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.model.requires_grad_(False)
            for parameter in prompts:
                parameter.requires_grad_(True)

        return work

    def text(self, *, trim: bool) -> Work:
        """The text encoder alone, captions cut or not."""

        def work() -> torch.Tensor:
            self.model.text.trim = trim
            with torch.no_grad(), self.precision():
                return self.model.encode_text(self.many)

        return work

    def prompted(self) -> dict[str, Any]:
        """What prompts cost: both encoders, and each alone."""
        parts: dict[str, dict[str, bool]] = {"": {}, ", images": {"text": False}, ", captions": {"image": False}}
        return {
            PROMPTED + name: self.compare(
                PROMPTED + name, self.forward(self.model, **part), self.forward(self.model, bare=True, **part)
            )
            for name, part in parts.items()
        }

    def frozen(self) -> dict[str, Any]:
        """What freezing costs the model as open_clip makes it: to encode, and in training, where attention differs."""
        results: dict[str, Any] = {}
        for name, training in ((FROZEN, False), (f"{FROZEN}, in training", True)):
            self.bare.train(training)
            self.model.train(training)
            results[name] = self.compare(name, self.forward(self.bare), self.forward(self.model, bare=True))
        return results

    def steps(self) -> dict[str, Any]:
        """What training the prompts alone saves."""
        rounds = max(1, self.rounds // 3)  # a step is long, and its ratio far from 1
        return {STEP: self.compare(STEP, self.step(everything=False), self.step(everything=True), rounds=rounds)}

    def captions(self) -> dict[str, Any]:
        """What cutting captions saves, and that it changes nothing."""
        result = {CAPTION: self.compare(CAPTION, self.text(trim=False), self.text(trim=True))}
        whole, cut = self.text(trim=False)().float(), self.text(trim=True)().float()
        difference = (whole - cut).abs().max() / whole.abs().max()
        return result | {f"{CAPTIONS} captions: largest relative difference": float(f"{difference.item():.2g}")}


def measure(comparison: str, device: str, bf16: bool, rounds: int) -> dict[str, Any]:
    """One comparison; called in a process of its own."""
    bench = Bench(device, bf16=bf16, rounds=rounds)
    bench.model.clip.requires_grad_(False)
    return getattr(bench, comparison)()


def compiled_ratios(rounds: int) -> dict[str, Any]:
    """On a GPU: compiled against eager, and the share of the card's measured matrix rate."""
    bench = Bench("cuda", bf16=True, rounds=rounds)
    compiled = torch.compile(bench.model.vision)

    def run(encoder: nn.Module) -> Work:
        def work() -> None:
            with torch.no_grad(), bench.precision():
                encoder(bench.images)

        return work

    result = bench.compare("image encoder: eager / compiled", run(bench.model.vision), run(compiled))
    side = 8192
    one = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    rate = bench.compare("matrix product", lambda: one @ one, lambda: one @ one)
    tokens = IMAGE_SIZE[0] // 16 * (IMAGE_SIZE[1] // 16) + 1 + PROMPTS
    # Per token and block: 24 width^2 for projections and MLP, 4 width L for attention; 12 blocks of width 768.
    work = BATCH * 12 * tokens * (24 * 768**2 + 4 * 768 * tokens)
    share = (work / result["seconds"][1]) / (2 * side**3 / rate["seconds"][0])
    return {"image encoder: eager / compiled": result, "compiled: share of the matrix rate": round(share, 3)}


def machine() -> dict[str, Any]:
    """What was measured on."""
    names = [line.split(":")[1].strip() for line in _processor() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "amx_bf16": any("amx_bf16" in line for line in _processor()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--only", nargs="+", default=COMPARISONS, choices=COMPARISONS, help="default: all of them")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"backbones_speed_{arguments.device}.json"
    # What is measured now replaces what the file said of it; each precision keeps the machine it was measured on.
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results |= {"model": MODEL, "image_size": IMAGE_SIZE, "batch": BATCH, "prompts": PROMPTS}
    for name in arguments.precision:
        results[name] = results.get(name, {}) | {"machine": machine(), "rounds": arguments.rounds}
        for comparison in arguments.only:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                call = (comparison, arguments.device, name == "bf16", arguments.rounds)
                results[name] |= pool.apply(measure, call)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if arguments.device == "cuda":
        results["compiled"] = compiled_ratios(arguments.rounds)
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
