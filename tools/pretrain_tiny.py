"""Pretrain the small base `promptreid-tiny` on drawings, as the weights that the package ships were made.

    python tools/pretrain_tiny.py --output runs/base    # version 2, "generated"
    python tools/pretrain_tiny.py --further 15000 --start generated --pairs 200000 --device cuda --output runs/version3
    python tools/pretrain_tiny.py --further 20000 --pairs 200000 --seed 1 --output runs/longer    # from what ships

Every `--checkpoint-every` steps a checkpoint is written beside the weights; the same command resumes from it, and
on the CPU ends as it would have ended. Before the first step, and as often, the model is scored on pairs that it never
sees, and the curve is kept.

It is contrastive pretraining as CLIP's, on drawings of single things and paper dolls (`web_world.py`), never
on the pedestrians that the examples adapt to. Settings, hashes, the loss curve and the validation curve go into
`training.json`.
"""

import argparse
import hashlib
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import torch
from open_clip.transformer import PatchDropout
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm, trange
from web_world import PLAIN_WORLD, VARIED_WORLD, World, draw_web_pair

from promptreid.evaluation.metrics import compute_metrics
from promptreid.towers.tiny import TINY_FOLDER, TINY_TAG, TINY_WEIGHTS
from promptreid.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint

VERSION = 2  # of the base that a whole pretraining makes
ROUNDS = (PLAIN_WORLD, VARIED_WORLD)  # single things and short captions first
WEIGHTS, CHECKPOINTS = "promptreid-tiny.safetensors", "checkpoints"
NOT_SETTINGS = ("output", "device", "checkpoint_every", "version")  # what does not change the weights
FURTHER_SEED = 0  # with which version 3 was pretrained further
DRAWN_AT_ONCE = 2000
HELD_OUT_SEED, HELD_OUT = 3_000_000, 1000  # pairs to score on, which no pretraining and no study draws
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


def draw_pairs(count: int, seed: int, world: World) -> tuple[torch.Tensor, list[str]]:
    """Draw `count` images, (count, 3, 64, 64) uint8, and their captions; many of them in a process a core."""
    rows = [range(start, min(start + DRAWN_AT_ONCE, count)) for start in range(0, count, DRAWN_AT_ONCE)]
    if len(rows) == 1:
        parts = [draw_rows(rows[0], seed, world)]
    else:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            drawn = pool.map(partial(draw_rows, seed=seed, world=world), rows)
            parts = list(tqdm(drawn, desc="drawing", total=len(rows)))
    images = torch.from_numpy(np.concatenate([images for images, _ in parts]))
    return images.permute(0, 3, 1, 2).contiguous(), [caption for _, captions in parts for caption in captions]


def draw_rows(rows: range, seed: int, world: World) -> tuple[np.ndarray, list[str]]:
    """Some of the pairs that a seed stands for; the images are (len(rows), 64, 64, 3) uint8."""
    drawn = [draw_web_pair(np.random.default_rng([seed, row]), world) for row in rows]
    return np.stack([np.asarray(image) for image, _ in drawn]), [caption for _, caption in drawn]


def batches(lengths: torch.Tensor, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches for ever; each holds captions of similar length, so that short ones are cheap."""
    while True:
        order = torch.randperm(len(lengths), generator=generator)
        for pool in order.split(batch_size * 8):
            ranked = pool[lengths[pool].argsort()].split(batch_size)
            for place in torch.randperm(len(ranked), generator=generator):
                if len(ranked[place]) == batch_size:
                    yield ranked[place]


def encode_text(clip: torch.nn.Module, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Text features from the first `length` positions, which hold every caption's end: exact in a causal tower."""
    sequence = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    sequence = clip.transformer(sequence, attn_mask=clip.attn_mask[:length, :length])
    pooled = clip.ln_final(sequence)[torch.arange(len(tokens)), tokens.argmax(-1)]
    return F.normalize(pooled @ clip.text_projection, dim=-1)


def encode_images(clip: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unit image features, from uint8 (B, 3, H, W)."""
    normalized = (images.float() / 255 - MEAN.to(images.device)) / STD.to(images.device)
    return F.normalize(clip.encode_image(normalized), dim=-1)


class HeldOut:
    """Pairs of the last world that pretraining never sees, to score on.

    Args:
        device: Where.
        count: How many.
    """

    def __init__(self, device: str, count: int = HELD_OUT) -> None:
        images, captions = draw_pairs(count, HELD_OUT_SEED, ROUNDS[-1])
        self.images, self.tokens = images.to(device), open_clip.SimpleTokenizer()(captions).to(device)
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        self.ids = torch.tensor([numbers[caption] for caption in captions])  # one sentence is one thing

    def rank1(self, clip: torch.nn.Module) -> float:
        """Rank-1, text to image; draws no random numbers and leaves the model's mode."""
        training = clip.training
        clip.eval()
        with torch.inference_mode():
            images = torch.cat([encode_images(clip, part) for part in self.images.split(250)])
            length = int(self.tokens.argmax(-1).max()) + 1
            texts = torch.cat([encode_text(clip, part, length) for part in self.tokens.split(250)])
        clip.train(training)
        return round(compute_metrics(texts.cpu(), images.cpu(), self.ids, self.ids).rank[1], 4)


class Progress:
    """A round on the disk: what resumes it.

    Args:
        folder: Gets the checkpoints.
        every: Steps between two.
        settings: What a round that is resumed must have in common with the one that was stopped.
    """

    def __init__(self, folder: Path, every: int, settings: dict[str, Any]) -> None:
        self.folder, self.every = folder, every
        self.settings = json.loads(json.dumps(settings))

    def save(self, clip: torch.nn.Module, optimizer: torch.optim.Optimizer, position: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        checkpoint = Checkpoint(state={"settings": self.settings, "position": position, "random": []})
        checkpoint.add("model", clip.state_dict())
        checkpoint.add("random", {"torch": torch.get_rng_state()})
        for index, values in optimizer.state_dict()["state"].items():
            checkpoint.add(f"optimizer.{index}", values)
        save_checkpoint(checkpoint, self.folder, step=position["step"], keep=1)

    def load(self, clip: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Set model, optimiser and random numbers as they were; returns where the round stood, if it had begun.

        Raises:
            SystemExit: The checkpoint is of a round with other settings.
        """
        found = list_checkpoints(self.folder)
        if not found:
            return None
        checkpoint = load_checkpoint(found[-1])
        if checkpoint.state["settings"] != self.settings:
            sys.exit(
                f"{found[-1]} is of a round with {checkpoint.state['settings']}, not {self.settings}; give the options "
                f"it was started with, another --output, or delete {self.folder}"
            )
        clip.load_state_dict(checkpoint.take("model"))
        state = optimizer.state_dict()
        count = sum(len(group["params"]) for group in state["param_groups"])
        optimizer.load_state_dict(
            {
                "state": {index: checkpoint.take(f"optimizer.{index}") for index in range(count)},
                "param_groups": state["param_groups"],
            }
        )
        torch.set_rng_state(checkpoint.tensors["random.torch"])
        return checkpoint.state["position"]


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate: 100 steps of warm-up, then a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def make_optimizer(clip: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW as CLIP's: biases, norms and the temperature do not decay."""
    decay = [parameter for parameter in clip.parameters() if parameter.ndim >= 2]
    rest = [parameter for parameter in clip.parameters() if parameter.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def contrastive_loss(clip: torch.nn.Module, images: torch.Tensor, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """CLIP's symmetric loss of one batch."""
    image_features = encode_images(clip, images)
    text_features = encode_text(clip, tokens, length)
    logits = clip.logit_scale.exp() * image_features @ text_features.T
    target = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(
    clip: torch.nn.Module,
    images: torch.Tensor,
    tokens: torch.Tensor,
    settings: argparse.Namespace,
    *,
    number: int,
    steps: int,
    progress: Progress,
    held_out: HeldOut,
) -> dict[str, list[tuple[int, float]]]:
    """Train in place; returns (step, mean loss) of every fifty steps and (step, Rank-1) of every checkpoint.

    Half of the patches are left out for the first 80 % of the steps, as in FLIP (arXiv 2212.00794): nearly half the
    time for nearly the same model.
    """
    lengths = tokens.argmax(-1) + 1
    optimizer = make_optimizer(clip, settings.learning_rate)
    stream = batches(lengths, settings.batch_size, torch.Generator().manual_seed(settings.seed + number))
    position = progress.load(clip, optimizer)
    if position is None:
        position = {"step": 0, "recent": [], "loss_curve": [], "validation_curve": [(0, held_out.rank1(clip))]}
    for _ in range(position["step"]):
        next(stream)
    # Made after loading: what it notes of the rates is then that of this step.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step + position["step"], steps))
    recent, start = position["recent"], position["step"]
    clip.train()
    clip.visual.patch_dropout = PatchDropout(0.5) if start < round(0.8 * steps) else torch.nn.Identity()
    bar = trange(start, steps, desc="pretraining", mininterval=10, initial=start, total=steps)
    for step in bar:
        if step == round(0.8 * steps):
            clip.visual.patch_dropout = torch.nn.Identity()
        chosen = next(stream)
        batch = images[chosen].to(settings.device), tokens[chosen].to(settings.device)
        loss = contrastive_loss(clip, *batch, int(lengths[chosen].max()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step == steps - 1:
            position["loss_curve"].append((step + 1, round(sum(recent) / len(recent), 4)))
            recent.clear()
            bar.set_postfix(loss=f"{position['loss_curve'][-1][1]:.3f}")
        if (step + 1) % progress.every == 0 or step == steps - 1:
            position["validation_curve"].append((step + 1, held_out.rank1(clip)))
            progress.save(clip, optimizer, position | {"step": step + 1})
    return {name: position[name] for name in ("loss_curve", "validation_curve")}


def settle_unseen_words(clip: torch.nn.Module, seen: torch.Tensor) -> None:
    """Give every token that no caption held the mean embedding of those that one did."""
    with torch.no_grad():
        clip.token_embedding.weight[~seen] = clip.token_embedding.weight[seen].mean(0)


def parse_settings() -> argparse.Namespace:
    """Read the command line; refuse what would never yield a batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=24_000)
    parser.add_argument("--steps", type=int, nargs=len(ROUNDS), default=[700, 320], help="of each round")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--further",
        type=int,
        metavar="STEPS",
        help="one more round in the second world, from weights that ship, instead of a whole pretraining",
    )
    parser.add_argument(
        "--start", default=TINY_TAG, choices=list(TINY_WEIGHTS), help="the weights for --further; default %(default)s"
    )
    parser.add_argument(
        "--version", type=int, help="of the base that --further makes, for its record, if it is to ship"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS", help="default %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights and training.json")
    settings = parser.parse_args()
    if settings.further is not None and settings.steps != parser.get_default("steps"):
        parser.error("--further says how many steps there are; leave out --steps")
    if settings.further is not None and settings.further < 1:
        parser.error(f"--further is {settings.further}, expected at least 1 step")
    if settings.further is not None and settings.start == TINY_TAG and settings.seed == FURTHER_SEED:
        parser.error(f"--seed {FURTHER_SEED} would draw the pairs that {TINY_TAG} was trained on; give another one")
    if settings.output.resolve() == TINY_FOLDER.resolve():
        parser.error("--output is the folder of what ships, whose weights never change; give another one")
    if settings.checkpoint_every < 1:
        parser.error(f"--checkpoint-every is {settings.checkpoint_every}, expected at least 1")
    if not 1 <= settings.batch_size <= settings.pairs:
        parser.error(f"--batch-size is {settings.batch_size}, expected 1 to --pairs ({settings.pairs})")
    return settings


def main() -> None:
    """Draw, train, save, once a round; resumes from the last checkpoint of an interrupted run."""
    settings = parse_settings()
    output: Path = settings.output
    output.mkdir(parents=True, exist_ok=True)
    if settings.further is not None:
        go_further(settings)
        return
    chosen = {key: value for key, value in vars(settings).items() if key not in (*NOT_SETTINGS, "further", "start")}
    report: dict[str, Any] = {
        "version": VERSION,
        "settings": {**chosen, "rounds": [vars(world) for world in ROUNDS]},
        "rounds": [],
    }
    weights, record = output / WEIGHTS, output / "training.json"
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    open_clip.add_model_config(TINY_FOLDER / "promptreid-tiny.json")
    torch.manual_seed(settings.seed)
    clip = open_clip.create_model("promptreid-tiny").to(settings.device)
    wanted = json.loads(json.dumps(report))["settings"]
    if found.get("settings") == wanted and len(found["rounds"]) < len(ROUNDS):
        report = found
    for number in range(len(report["rounds"]), len(ROUNDS)):
        if number:  # every round starts from the file, so that an interrupted run gives the same weights
            clip.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        done = run_round(clip, settings, number, world=ROUNDS[number], steps=settings.steps[number])
        report["rounds"].append(done)
        save(clip, report, output)
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def go_further(settings: argparse.Namespace) -> None:
    """One more round in the last world, on pairs of its own, from weights that ship."""
    open_clip.add_model_config(TINY_FOLDER / "promptreid-tiny.json")
    clip = open_clip.create_model("promptreid-tiny").to(settings.device)
    weights = load_file(TINY_FOLDER / TINY_WEIGHTS[settings.start])
    clip.load_state_dict({key: value.float() for key, value in weights.items()})
    chosen = {key: value for key, value in vars(settings).items() if key not in (*NOT_SETTINGS, "steps")}
    done = run_round(clip, settings, len(ROUNDS), world=ROUNDS[-1], steps=settings.further)
    report = {"version": settings.version, "settings": chosen, "rounds": [done]}
    save(clip, report, settings.output)
    shutil.rmtree(settings.output / CHECKPOINTS, ignore_errors=True)


def save(clip: torch.nn.Module, report: dict[str, Any], output: Path) -> None:
    """Write the weights and, after them, what made them."""
    weights = output / WEIGHTS
    save_file({key: value.half().contiguous().cpu() for key, value in clip.state_dict().items()}, weights)
    report["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (output / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_round(
    clip: torch.nn.Module, settings: argparse.Namespace, number: int, *, world: World, steps: int
) -> dict[str, Any]:
    """Train on pairs of the round's own drawing, `number` counting from 0; returns what was done."""
    seed = settings.seed + number
    if number:
        torch.manual_seed(seed + 1)
    images, captions = draw_pairs(settings.pairs, seed, world)
    tokens = open_clip.SimpleTokenizer()(captions)
    started = time.perf_counter()
    chosen = {key: value for key, value in vars(settings).items() if key not in NOT_SETTINGS}
    progress = Progress(
        settings.output / CHECKPOINTS / f"round-{number}",
        settings.checkpoint_every,
        {**chosen, "round": number, "round_steps": steps},
    )
    held_out = HeldOut(settings.device)
    curves = train(clip, images, tokens, settings, number=number, steps=steps, progress=progress, held_out=held_out)
    seen = torch.zeros(len(clip.token_embedding.weight), dtype=torch.bool)
    seen[tokens.unique()] = True
    settle_unseen_words(clip, seen)
    return {
        "data_sha256": hashlib.sha256(images.numpy().tobytes() + "\n".join(captions).encode()).hexdigest(),
        "tokens_seen": int(seen.sum()),
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name() if settings.device.startswith("cuda") else settings.device,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        **curves,
    }


if __name__ == "__main__":
    main()
