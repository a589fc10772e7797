"""Pretrain the small base `promptreid-tiny` on drawings; writes the weights that the package ships.

    python tools/pretrain_tiny.py
    python tools/pretrain_tiny.py --further 1000 --pairs 48000 --output runs/further    # what ships, pretrained further

It is contrastive pretraining as CLIP's, on drawings of single things and paper dolls (`web_world.py`), never
on the pedestrians that the examples adapt to. Settings, hashes and the loss curve go into `training.json`.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import torch
from open_clip.transformer import PatchDropout
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import trange
from web_world import PLAIN_WORLD, VARIED_WORLD, WEB_SIZE, World, draw_web_pair

VERSION = 2  # of the base: one more whenever its weights change
ROUNDS = (PLAIN_WORLD, VARIED_WORLD)  # single things and short captions first
WEIGHTS = "promptreid-tiny.safetensors"
FOLDER = Path(__file__).parents[1] / "src/promptreid/towers/tiny"
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


def draw_pairs(count: int, seed: int, world: World) -> tuple[torch.Tensor, list[str]]:
    """Draw `count` images, (count, 3, 64, 64) uint8, and their captions."""
    images = np.empty((count, WEB_SIZE, WEB_SIZE, 3), dtype=np.uint8)
    captions: list[str] = []
    for index in trange(count, desc="drawing"):
        image, caption = draw_web_pair(np.random.default_rng([seed, index]), world)
        images[index] = np.asarray(image)
        captions.append(caption)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions


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
    normalized = (images.float() / 255 - MEAN) / STD
    image_features = F.normalize(clip.encode_image(normalized), dim=-1)
    text_features = encode_text(clip, tokens, length)
    logits = clip.logit_scale.exp() * image_features @ text_features.T
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(
    clip: torch.nn.Module,
    images: torch.Tensor,
    tokens: torch.Tensor,
    settings: argparse.Namespace,
    *,
    number: int,
    steps: int,
) -> list[tuple[int, float]]:
    """Train in place; returns (step, mean loss) of every fifty steps.

    Half of the patches are left out for the first 80 % of the steps, as in FLIP (arXiv 2212.00794): nearly half the
    time for nearly the same model.
    """
    lengths = tokens.argmax(-1) + 1
    optimizer = make_optimizer(clip, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    stream = batches(lengths, settings.batch_size, torch.Generator().manual_seed(settings.seed + number))
    curve: list[tuple[int, float]] = []
    recent: list[float] = []
    clip.train()
    clip.visual.patch_dropout = PatchDropout(0.5)
    bar = trange(steps, desc="pretraining", mininterval=10)
    for step in bar:
        if step == round(0.8 * steps):
            clip.visual.patch_dropout = torch.nn.Identity()
        chosen = next(stream)
        loss = contrastive_loss(clip, images[chosen], tokens[chosen], int(lengths[chosen].max()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        recent.append(loss.item())
        if (step + 1) % 50 == 0 or step == steps - 1:
            curve.append((step + 1, round(sum(recent) / len(recent), 4)))
            recent.clear()
            bar.set_postfix(loss=f"{curve[-1][1]:.3f}")
    return curve


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
        help="one more round in the second world, from the weights that ship, instead of a whole pretraining",
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for the weights and training.json")
    settings = parser.parse_args()
    if settings.further is not None and settings.steps != parser.get_default("steps"):
        parser.error("--further says how many steps there are; leave out --steps")
    if settings.further is not None and (settings.further < 1 or settings.output.resolve() == FOLDER.resolve()):
        parser.error("--further takes at least 1 step, and an --output of its own: it must not change what ships")
    if not 1 <= settings.batch_size <= settings.pairs:
        parser.error(f"--batch-size is {settings.batch_size}, expected 1 to --pairs ({settings.pairs})")
    return settings


def main() -> None:
    """Draw, train, save, once a round; resumes after the last round that an interrupted run finished."""
    settings = parse_settings()
    output: Path = settings.output
    output.mkdir(parents=True, exist_ok=True)
    if settings.further is not None:
        go_further(settings)
        return
    chosen = {key: value for key, value in vars(settings).items() if key not in ("output", "further")}
    report: dict[str, Any] = {
        "version": VERSION,
        "settings": {**chosen, "rounds": [vars(world) for world in ROUNDS]},
        "rounds": [],
    }
    weights, record = output / WEIGHTS, output / "training.json"
    found = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    open_clip.add_model_config(FOLDER / "promptreid-tiny.json")
    torch.manual_seed(settings.seed)
    clip = open_clip.create_model("promptreid-tiny")
    wanted = json.loads(json.dumps(report))["settings"]
    if found.get("settings") == wanted and len(found["rounds"]) < len(ROUNDS):
        report = found
    for number in range(len(report["rounds"]), len(ROUNDS)):
        if number:  # every round starts from the file, so that an interrupted run gives the same weights
            clip.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
        done = run_round(clip, settings, number, world=ROUNDS[number], steps=settings.steps[number])
        report["rounds"].append(done)
        save(clip, report, output)


def go_further(settings: argparse.Namespace) -> None:
    """One more round in the last world, on pairs of its own, from the weights that ship."""
    open_clip.add_model_config(FOLDER / "promptreid-tiny.json")
    clip = open_clip.create_model("promptreid-tiny")
    clip.load_state_dict({key: value.float() for key, value in load_file(FOLDER / WEIGHTS).items()})
    chosen = {key: value for key, value in vars(settings).items() if key not in ("output", "steps")}
    done = run_round(clip, settings, len(ROUNDS), world=ROUNDS[-1], steps=settings.further)
    report = {"from_version": VERSION, "settings": chosen, "rounds": [done]}
    save(clip, report, settings.output)


def save(clip: torch.nn.Module, report: dict[str, Any], output: Path) -> None:
    """Write the weights and, after them, what made them."""
    weights = output / WEIGHTS
    save_file({key: value.half().contiguous() for key, value in clip.state_dict().items()}, weights)
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
    curve = train(clip, images, tokens, settings, number=number, steps=steps)
    seen = torch.zeros(len(clip.token_embedding.weight), dtype=torch.bool)
    seen[tokens.unique()] = True
    settle_unseen_words(clip, seen)
    return {
        "data_sha256": hashlib.sha256(images.numpy().tobytes() + "\n".join(captions).encode()).hexdigest(),
        "tokens_seen": int(seen.sum()),
        "seconds": round(time.perf_counter() - started),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "loss_curve": curve,
    }


if __name__ == "__main__":
    main()
