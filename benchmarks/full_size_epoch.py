"""Time an epoch of CUHK-PEDES' exact size: 34,054 images with 68,126 captions of 11,003 persons, drawn.

    python benchmarks/full_size_epoch.py --device cuda --num-workers 8
    python benchmarks/full_size_epoch.py --share 0.0005 --batch-size 4 --output /tmp/dry.json      # a try on a CPU

One epoch of stage 1, of stage 2 and of direct fine-tuning with ViT-B/16 at 384 × 128, batch 64, bf16 on a GPU, and one
evaluation of the test split. Weights are random, which changes no time. Drawn images are smaller files than
photographs, which matters while the cache is built, not afterwards.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from _bench import RESULTS, describe, made_with, make_parser, report, seconds
from promptreid import PromptConfig, PromptedCLIP, evaluate, load_clip
from promptreid.adaptation import adapt
from promptreid.data.dataset import CaptionedImages
from promptreid.data.image_cache import build_image_cache
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ReIDDataset, ReIDSplit
from promptreid.synthetic import write_generated
from promptreid.training import ablations
from promptreid.training.recipe import Recipe

COUNTS = {"train": (11003, 34054, 68126), "val": (1000, 3078, 6158), "test": (1000, 3074, 6156)}
EPOCHS = (30, 60)  # of the recipe in benchmarks/paper
METHODS = {"direct": ablations.direct_fine_tuning, "pd": ablations.two_stages}
RESULT = RESULTS / "full_size_epoch.json"


def scaled(share: float) -> dict[str, tuple[int, int, int]]:
    """The counts of persons, images and captions, or a share of them."""
    if share == 1:
        return COUNTS
    persons = {name: max(4, round(share * counts[0])) for name, counts in COUNTS.items()}
    return {name: (count, 3 * count, 6 * count) for name, count in persons.items()}


def cut(split: ReIDSplit, persons: int, images: int, captions: int) -> ReIDSplit:
    """Keep some images and captions, spread evenly, of a split with four images a person and two captions an image.

    Where there are more captions than two an image, the first images get their first caption once more.
    """
    each, more = divmod(images, persons)
    seen: dict[int, int] = {}
    records = []
    for record in split.records:
        label = split.labels[record.person_id]
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= each + (label < more):
            records.append(record)
    spare = captions - sum(len(record.captions) for record in records)
    records = [
        replace(record, captions=(*record.captions, record.captions[0])) if number < spare else record
        for number, record in enumerate(records)
    ]
    return ReIDSplit(split.name, records)


def draw(folder: Path, share: float) -> ReIDDataset:
    """A drawn dataset of these counts."""
    counts = scaled(share)
    persons = (counts["train"][0], counts["val"][0], counts["test"][0])
    data = load_cuhk_pedes(write_generated(folder / "data", num_identities=persons, images_per_identity=4))
    if data.val is None:
        raise RuntimeError("the drawn data have no validation split")
    splits = {split.name: cut(split, *counts[split.name]) for split in (data.train, data.val, data.test)}
    for name, split in splits.items():
        found = (split.num_identities, len(split), split.num_captions)
        if found != counts[name]:
            raise RuntimeError(f"{name} has {found} persons, images and captions, expected {counts[name]}")
    return replace(data, **splits)


def make_model(name: str, settings: argparse.Namespace) -> PromptedCLIP:
    """A fresh model of a method."""
    clip = load_clip(settings.model, pretrained=None, image_size=tuple(settings.image_size), device=settings.device)
    length = 0 if name == "direct" else 4
    return PromptedCLIP(clip, PromptConfig(text_length=length, vision_length=length))


def time_epochs(data: ReIDDataset, settings: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of an epoch of each stage, of building the cache and of evaluating the test split."""
    started = time.perf_counter()
    paths = [record.path for record in data.train.records]
    cache = build_image_cache(paths, folder / "cache", image_size=tuple(settings.image_size))
    taken = {"building the cache": time.perf_counter() - started}
    for name, make_stages in METHODS.items():
        model = make_model(name, settings)
        found = adapt(
            model,
            data,
            Recipe(stage_one_epochs=1, stage_two_epochs=1, warmup_share=0.0),
            output_dir=folder / name,
            make_stages=make_stages,
            evaluate_test="never",
            save=False,
            evaluate=None,
            best_metric=None,
            train_data=CaptionedImages(
                data.train, transform=model.train_transform, tokenizer=model.tokenizer, cache=cache
            ),
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            trackers=(),
        )
        taken |= {stage: entries[-1]["seconds"] for stage, entries in found.histories.items()}
    taken["evaluation"] = seconds(lambda: evaluate(model, data.test, num_workers=settings.num_workers))
    return taken


def summarize(data: ReIDDataset, taken: dict[str, float], settings: argparse.Namespace) -> dict[str, Any]:
    """What is written: times, memory, and what the whole recipe would cost."""
    cuda = settings.device.startswith("cuda")
    made = made_with()
    whole = EPOCHS[0] * taken["stage_one"] + EPOCHS[1] * taken["stage_two"]
    return {
        "model": settings.model,
        "image_size": list(settings.image_size),
        "batch_size": settings.batch_size,
        "share_of_cuhk_pedes": settings.share,
        "device": torch.cuda.get_device_name() if cuda else describe(made["machine"] | {"gpu": None}),
        "persons": data.train.num_identities,
        "pictures": len(data.train),
        "pairs": data.train.num_captions,
        "test_pictures": len(data.test),
        "seconds": {name: round(value, 2) for name, value in taken.items()},
        "peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "hours_of_prompt_decoupling": round((whole + (sum(EPOCHS) + 1) * taken["evaluation"]) / 3600, 2),
        **made,
    }


def main() -> None:
    """Draw, time, print and write."""
    parser = make_parser(__doc__, output=RESULT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image-size", type=int, nargs=2, default=(384, 128), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of CUHK-PEDES' size, to try the script")
    settings = parser.parse_args()
    if settings.output == RESULT and (settings.share != 1 or not settings.device.startswith("cuda")):
        parser.error(f"{RESULT.name} is kept for the whole size on a GPU; give another --output for a try")
    with tempfile.TemporaryDirectory() as folder:
        data = draw(Path(folder), settings.share)
        print(data.summary(), flush=True)
        found = summarize(data, time_epochs(data, settings, Path(folder)), settings)
    report(found, settings.output)


if __name__ == "__main__":
    main()
