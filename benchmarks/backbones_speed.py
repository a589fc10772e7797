"""Costs and savings of prompts, of their kinds, of freezing, and of skipping unused computation, as ratios.

    python benchmarks/backbones_speed.py                  # ViT-B/16 at 384 x 128, random weights, all cores
    python benchmarks/backbones_speed.py --precision fp32 --only prompted frozen
    python benchmarks/backbones_speed.py --only kinds --page docs/prompts.md  # and the page's table
    python benchmarks/backbones_speed.py --device cuda    # also with torch.compile, and the share of the matrix rate

Each comparison has its own process, in which its two variants take turns. Before a variant is timed it runs once
untimed, so that memory is not laid out as the other variant left it: a user of one never runs the other. A ratio is
the median over the rounds of one variant's time over the other's in the same round: a machine that is slow for a while
is slow for both. Writes benchmarks/results/backbones_speed_cpu.json, or backbones_speed_cuda.json.
"""

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _bench import (
    RESULTS,
    in_own_process,
    in_words,
    made_with,
    make_parser,
    paired_ratio,
    random_captions,
    seconds,
    spread,
    take_turns,
    write_between,
    write_json,
)
from promptreid import PromptConfig, PromptedCLIP, load_clip

MODEL, IMAGE_SIZE = "ViT-B-16", (384, 128)
BATCH, CAPTIONS, CAPTION_TOKENS = 8, 32, 30
PROMPTS = 4
PROMPTED = "prompted forward / bare forward"
FROZEN = "frozen forward: as it comes / ours bare"
STEP = "stage-1 step / all-trainable step"
CAPTION = f"{CAPTIONS} captions: at 77 / cut to {CAPTION_TOKENS}"
LAST_BLOCK = "last blocks: every token / the pooled one"
COMPARISONS = ("prompted", "frozen", "steps", "captions", "last_blocks", "kinds")
WORKS = ("forward", "step")
CAMERAS = tuple(f"camera {number}" for number in range(6))
# Each against independent tokens in every block, which are the default.
KINDS = {
    "kept": PromptConfig(PROMPTS, PROMPTS, 1, 1),
    "coupled": PromptConfig(PROMPTS, PROMPTS, kind="coupled"),
    "prefix": PromptConfig(PROMPTS, PROMPTS, kind="prefix"),
    "grouped": PromptConfig(PROMPTS, PROMPTS, kind="grouped", groups=CAMERAS),
}
Work = Callable[[], Any]


def ratio(first: Work, second: Work, *, rounds: int, device: str) -> dict[str, Any]:
    """Time of `first` over time of `second`."""
    works = {"first": first, "second": second}
    variants = {name: lambda work=work: seconds(work, device=device, warm_up=1) for name, work in works.items()}
    times = take_turns(variants, rounds=rounds, mirrored=True)
    found = paired_ratio(times["first"], times["second"]).rounded(3)
    return {
        "ratio": found.median,
        "lowest": found.lowest,
        "highest": found.highest,
        "seconds": [round(spread(values).median, 4) for values in times.values()],
    }


def made_up_captions(count: int, *, device: str) -> torch.Tensor:
    """Made-up captions whose longest has CAPTION_TOKENS tokens with start and end."""
    return random_captions(count, words=[CAPTION_TOKENS - 2 - row % 8 for row in range(count)]).to(device)


class Bench:
    """One precision on one device.

    Args:
        device: `"cpu"` or `"cuda"`.
        bf16: Under bfloat16 autocast.
        rounds: How often each pair is measured.
        batch_size: Images, and captions beside them.
    """

    def __init__(self, device: str, *, bf16: bool, rounds: int, batch_size: int = BATCH) -> None:
        torch.manual_seed(0)
        self.device, self.bf16, self.rounds, self.batch_size = device, bf16, rounds, batch_size
        self.bare = load_clip(MODEL, image_size=IMAGE_SIZE, device=device).requires_grad_(False)
        config = PromptConfig(text_length=PROMPTS, vision_length=PROMPTS)
        self.model = PromptedCLIP(copy.deepcopy(self.bare), config).eval()
        self.images = torch.randn(batch_size, 3, *IMAGE_SIZE, device=device)
        self.tokens = made_up_captions(batch_size, device=device)
        self.many = made_up_captions(CAPTIONS, device=device)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast or nothing."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def compare(self, name: str, first: Work, second: Work, *, rounds: int | None = None) -> dict[str, Any]:
        """The ratio of two pieces of work, printed at once."""
        result = ratio(first, second, rounds=rounds or self.rounds, device=self.device)
        print(f"{'bf16' if self.bf16 else 'fp32'}  {name:<50}{result}", flush=True)
        return result

    def groups(self, model: Any) -> dict[str, Any]:
        """Of each image its camera, where the prompts are for each camera."""
        ids = torch.arange(self.batch_size, device=self.device) % len(CAMERAS)
        return {"groups": ids} if getattr(model, "groups", ()) else {}

    def forward(self, model: nn.Module, *, bare: bool = False, image: bool = True, text: bool = True) -> Work:
        """One encoder or both, without gradients."""
        groups = self.groups(model)

        def work() -> None:
            with torch.no_grad(), self.precision(), model.disabled() if bare else nullcontext():
                if image:
                    model.encode_image(self.images, **groups)
                if text:
                    model.encode_text(self.tokens)

        return work

    def step(self, *, everything: bool, model: PromptedCLIP | None = None) -> Work:
        """One step of training with prompts only, or with every parameter."""
        model = self.model if model is None else model
        prompts, encoders, groups = model.prompt_parameters(), model.encoder_parameters(), self.groups(model)

        def work() -> None:
            for parameter in encoders:
                parameter.requires_grad_(everything)
            parameters = [*prompts, *encoders] if everything else prompts
            optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
            with self.precision():
                output = model(self.images, self.tokens, **groups)
                logits = 50 * output["image_features"].float() @ output["text_features"].float().T
                loss = nn.functional.cross_entropy(logits, torch.arange(self.batch_size, device=self.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.requires_grad_(False)
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

    def kinds(self) -> dict[str, Any]:
        """What each kind of prompts takes over independent tokens, to encode and to train."""
        found: dict[str, Any] = {}
        for kind, config in KINDS.items():
            other = PromptedCLIP(copy.deepcopy(self.bare), config).eval()
            other.clip.requires_grad_(False)
            forwards = self.forward(other), self.forward(self.model)
            found[f"{kind} forward / independent forward"] = self.compare(f"{kind}: forward", *forwards)
            steps = self.step(everything=False, model=other), self.step(everything=False)
            found[f"{kind} step / independent step"] = self.compare(f"{kind}: step", *steps)
        return {"kinds": {**made_with(), "rounds": self.rounds, "batch": self.batch_size, **found}}

    def captions(self) -> dict[str, Any]:
        """What cutting captions saves, and that it changes nothing."""
        result = {CAPTION: self.compare(CAPTION, self.text(trim=False), self.text(trim=True))}
        whole, cut = self.text(trim=False)().float(), self.text(trim=True)().float()
        difference = (whole - cut).abs().max() / whole.abs().max()
        return result | {f"{CAPTIONS} captions: largest relative difference": float(f"{difference.item():.2g}")}

    def last_blocks(self) -> dict[str, Any]:
        """What leaving out all but the pooled token in the last blocks saves: encoding, stage 1, all trainable."""
        whole = PromptedCLIP(copy.deepcopy(self.bare), self.model.config).eval()
        for encoder in (whole.vision, whole.text):
            encoder.last_block.remove()
        found = {f"{LAST_BLOCK}, forward": self.compare(LAST_BLOCK, self.forward(whole), self.forward(self.model))}
        for name, everything in (("stage-1 step", False), ("all-trainable step", True)):
            steps = (self.step(everything=everything, model=each) for each in (whole, self.model))
            found[f"{LAST_BLOCK}, {name}"] = self.compare(f"{LAST_BLOCK}, {name}", *steps)
        return found


def kinds_table(results: dict[str, Any]) -> str:
    """The ratios of the kinds as docs/prompts.md shows them, with their machine."""
    measured = [name for name in ("fp32", "bf16") if "kinds" in results.get(name, {})]
    lines = [f"| kind | {' | '.join(f'{work}, {name}' for name in measured for work in WORKS)} |"]
    lines.append("|---" * (1 + len(WORKS) * len(measured)) + "|")
    for kind in KINDS:
        ratios = [results[name]["kinds"][f"{kind} {work} / independent {work}"] for name in measured for work in WORKS]
        cells = [f"{each['ratio']:.2f} ({each['lowest']:.2f} to {each['highest']:.2f})" for each in ratios]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    made = results[measured[0]]["kinds"]
    words = f"Time over that of independent tokens, median (lowest to highest) of {made['rounds']} rounds in turn"
    shared = "; others used the machine meanwhile" if made["machine_was_shared"] else ""
    where = f"{MODEL} at {IMAGE_SIZE[0]} × {IMAGE_SIZE[1]}, {PROMPTS} prompts, batch {made['batch']}; {in_words(made)}"
    return "\n".join([f"{words}. {where}, {made['date']}{shared}.", "", *lines])


def measure(comparison: str, device: str, bf16: bool, rounds: int, batch_size: int) -> dict[str, Any]:
    """One comparison; called in a process of its own."""
    bench = Bench(device, bf16=bf16, rounds=rounds, batch_size=batch_size)
    bench.model.clip.requires_grad_(False)
    return getattr(bench, comparison)()


def compiled_ratios(rounds: int, batch_size: int) -> dict[str, Any]:
    """On a GPU: compiled against eager, and the share of the card's measured matrix rate."""
    bench = Bench("cuda", bf16=True, rounds=rounds, batch_size=batch_size)
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
    work = batch_size * 12 * tokens * (24 * 768**2 + 4 * 768 * tokens)
    share = (work / result["seconds"][1]) / (2 * side**3 / rate["seconds"][0])
    return {"image encoder: eager / compiled": result, "compiled: share of the matrix rate": round(share, 3)}


def main() -> None:
    """Measure, print and write down."""
    parser = make_parser(__doc__, output=None)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=BATCH, help="of images; default %(default)s")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--shared", action="store_true", help="note that the machine was used by others meanwhile")
    parser.add_argument("--page", type=Path, help="page that gets the table of kinds, such as docs/prompts.md")
    parser.add_argument("--only", nargs="+", default=COMPARISONS, choices=COMPARISONS, help="default: all of them")
    arguments = parser.parse_args()
    if arguments.batch_size < 1:
        parser.error(f"--batch-size is {arguments.batch_size}, expected at least 1")
    path = arguments.output or RESULTS / f"backbones_speed_{arguments.device}.json"
    # What is measured now replaces what the file said of it; each precision keeps the machine it was measured on.
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rounds, batch_size = arguments.rounds, arguments.batch_size
    results |= {"model": MODEL, "image_size": IMAGE_SIZE, "prompts": PROMPTS}
    for name in arguments.precision:
        results[name] = results.get(name, {})
        if set(arguments.only) - {"kinds"}:  # whose machine stands beside them
            results[name] |= made_with() | {"rounds": rounds, "batch": batch_size}
        for comparison in arguments.only:
            found = in_own_process(measure, comparison, arguments.device, name == "bf16", rounds, batch_size)
            if comparison == "kinds":
                found["kinds"]["machine_was_shared"] = arguments.shared
            results[name] |= found
            write_json(path, results)
    if arguments.device == "cuda":
        results["compiled"] = compiled_ratios(rounds, batch_size)
        write_json(path, results)
    print(f"written to {path}")
    if arguments.page is not None:
        write_between(arguments.page, "kinds speed", kinds_table(results))


if __name__ == "__main__":
    main()
