"""Pretrain the small base `promptreid-tiny` on generated pictures; writes the weights that the package ships.

    python tools/pretrain_tiny.py

It is contrastive pretraining as CLIP's, on drawings of single garments, heads and people (`data/generated/web.py`),
never on the pedestrians that the examples adapt to. Settings and the loss curve go into `training.json`.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import trange

from promptreid.data.generated.web import WEB_SIZE, draw_web_pair

FOLDER = Path(__file__).parents[1] / "src/promptreid/backbones/tiny"
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


def draw_pairs(count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Draw `count` pictures, (count, 3, 64, 64) uint8, and their captions."""
    pictures = np.empty((count, WEB_SIZE, WEB_SIZE, 3), dtype=np.uint8)
    captions: list[str] = []
    for index in trange(count, desc="drawing"):
        image, caption = draw_web_pair(np.random.default_rng([seed, index]))
        pictures[index] = np.asarray(image)
        captions.append(caption)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), captions


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


def main() -> None:
    """Draw, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=24_000)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--batch-size", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    torch.manual_seed(settings.seed)

    pictures, captions = draw_pairs(settings.pairs, settings.seed)
    tokens = open_clip.SimpleTokenizer()(captions)
    lengths = tokens.argmax(-1) + 1
    open_clip.add_model_config(FOLDER / "promptreid-tiny.json")
    clip = open_clip.create_model("promptreid-tiny")
    decay = [parameter for parameter in clip.parameters() if parameter.ndim >= 2]
    rest = [parameter for parameter in clip.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    curve: list[tuple[int, float]] = []
    started = time.perf_counter()
    stream = batches(lengths, settings.batch_size, torch.Generator().manual_seed(settings.seed))
    bar = trange(settings.steps, desc="pretraining")
    for step in bar:
        chosen = next(stream)
        images = (pictures[chosen].float() / 255 - MEAN) / STD
        image_features = F.normalize(clip.encode_image(images), dim=-1)
        text_features = encode_text(clip, tokens[chosen], int(lengths[chosen].max()))
        logits = clip.logit_scale.exp() * image_features @ text_features.T
        target = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        if step % 50 == 0 or step == settings.steps - 1:
            curve.append((step, round(loss.item(), 4)))
            bar.set_postfix(loss=f"{loss.item():.3f}")

    save_file(
        {key: value.half().contiguous() for key, value in clip.state_dict().items()},
        FOLDER / "promptreid-tiny.safetensors",
    )
    digest = hashlib.sha256(pictures.numpy().tobytes() + "\n".join(captions).encode()).hexdigest()
    report = {
        "settings": vars(settings),
        "data_sha256": digest,
        "seconds": round(time.perf_counter() - started),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        },
        "loss_curve": curve,
    }
    (FOLDER / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
