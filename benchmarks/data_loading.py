"""Speed of data loading, compared with the usual method of the field, on the same images in one run.

    python benchmarks/data_loading.py
    THP_MEM_ALLOC_ENABLE=1 python benchmarks/data_loading.py    # torch takes its memory in huge pages (Linux)

The usual method opens, resizes (Pillow), augments as floats and tokenises for every caption in every epoch. Ours is
timed without and with the cache of decoded images. The variants take turns, and the median ratio is reported; each runs
in this process on one thread, through a DataLoader with batches of 64: crops of about 110 x 290 pixels, 384 x 128 for
the model. The time to join items into a batch, which is the same for all, is given by itself. Processor time is
reported beside wall-clock time, for machines that also do other work. Then: reading an annotation of CUHK-PEDES' size,
68,126 training captions of 80,430 in all, tokenising these, and the memory the records take. Images are smoothed noise;
captions are made up of the field's words. It prints one line per figure and writes results/data_loading.json, or
results/data_loading_huge_pages.json.
"""

import json
import os
import random
import sys
import tempfile
import time
import timeit
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms

from _bench import RESULTS, made_with, make_parser, paired_ratio, seconds, spread, take_turns, write_json
from promptreid.data.annotation import parse_entry
from promptreid.data.captions import tokenize_captions
from promptreid.data.dataset import CaptionedImages
from promptreid.data.image_cache import build_image_cache
from promptreid.data.layouts import read_entries
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.data.transforms import train_transform

IMAGE_SIZE = (384, 128)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGES, ROUNDS, BATCH = 256, 5, 64
TRAIN_IMAGES, OTHER_IMAGES = 34_054, 6_152  # CUHK-PEDES
WORDS = [
    "a", "the", "man", "woman", "is", "wearing", "has", "with", "and", "in", "on", "blue", "red", "black", "white",
    "grey", "striped", "short", "long", "sleeved", "shirt", "coat", "trousers", "jeans", "skirt", "shoes", "sneakers",
    "backpack", "handbag", "carrying", "walking", "standing", "hair", "glasses", "left", "right", "hand",
]  # fmt: skip


class UsualWay(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """What the field's repositories do for every pair: open, transform and tokenise."""

    def __init__(self, split: ReIDSplit, tokenizer: Callable[..., torch.Tensor]) -> None:
        self.pairs = [(r.path, caption, r.person_id) for r in split.records for caption in r.captions]
        self.tokenizer = tokenizer
        self.transform = transforms.Compose(
            [
                transforms.Resize(IMAGE_SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(0.5),
                transforms.Pad(10),
                transforms.RandomCrop(IMAGE_SIZE),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(scale=(0.02, 0.4), value=0),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        path, caption, person_id = self.pairs[index]
        image = self.transform(Image.open(path).convert("RGB"))
        return image, self.tokenizer([caption])[0], person_id


def make_caption(generator: random.Random) -> str:
    """About 23 words, as CUHK-PEDES' captions have."""
    return " ".join(generator.choices(WORDS, k=generator.randint(15, 31))) + "."


def make_split(folder: Path) -> ReIDSplit:
    """Images of the size that surveillance crops have, two captions each."""
    numbers, words = np.random.default_rng(0), random.Random(0)
    records = []
    for index in range(IMAGES):
        width, height = int(numbers.integers(80, 140)), int(numbers.integers(220, 360))
        small = numbers.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        records.append(ImageRecord(path, index // 4, (make_caption(words), make_caption(words)), "train"))
    return ReIDSplit("train", records)


def seconds_an_epoch(dataset: Dataset[Any]) -> tuple[float, float]:
    """Wall-clock and processor time to load every pair once, in this process."""
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    start, processor_start = time.perf_counter(), time.process_time()
    for _ in loader:
        pass
    return time.perf_counter() - start, time.process_time() - processor_start


def measure_loading(folder: Path) -> dict[str, Any]:
    """Pairs a second of the three ways, and the ratios of each round."""
    (folder / "imgs").mkdir()
    split = make_split(folder / "imgs")
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    transform = train_transform(IMAGE_SIZE, mean=MEAN, std=STD)
    start = time.perf_counter()
    paths = [record.path for record in split.records]
    cache = build_image_cache(paths, folder / "cache", image_size=IMAGE_SIZE, num_threads=1, progress=False)
    build_seconds = time.perf_counter() - start
    ways: dict[str, Dataset[Any]] = {
        "usual": UsualWay(split, tokenizer),
        "without_cache": CaptionedImages(split, transform=transform, tokenizer=tokenizer),
        "with_cache": CaptionedImages(split, transform=transform, tokenizer=tokenizer, cache=cache),
    }
    times = take_turns(
        {name: lambda dataset=dataset: seconds_an_epoch(dataset) for name, dataset in ways.items()},
        rounds=ROUNDS,
        warm_up=1,
    )
    result: dict[str, Any] = {}
    for clock, kind in enumerate(("", "_processor_time")):
        usual = [taken[clock] for taken in times["usual"]]
        for name in ways:
            ours = [taken[clock] for taken in times[name]]
            result[f"pairs_per_second_{name}{kind}"] = 2 * IMAGES / spread(ours).median
            if name != "usual":
                ratio = paired_ratio(usual, ours)
                result[f"ratio_{name}{kind}"] = ratio.median
                result[f"ratio_{name}{kind}_range"] = list(ratio.rounded(3)[1:])
    result["build_cache_images_per_second"] = IMAGES / build_seconds
    items = [ways["with_cache"][index] for index in range(BATCH)]
    result["ms_a_pair_with_cache"] = 1000 / result["pairs_per_second_with_cache"]
    result["ms_a_pair_joining_a_batch"] = 1000 * min(timeit.repeat(lambda: default_collate(items), number=1)) / BATCH
    return result


def write_annotation(root: Path) -> Path:
    """An annotation of CUHK-PEDES' size, 68,126 training captions; every image is one and the same byte."""
    words = random.Random(1)
    entries = []
    for index in range(TRAIN_IMAGES + OTHER_IMAGES):
        train = index < TRAIN_IMAGES
        captions = [make_caption(words) for _ in range(3 if index < 18 else 2)]
        folder = ("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query")[index % 7]
        entries.append(
            {
                "split": "train" if train else ("val", "test")[index % 2],
                "captions": captions,
                "file_path": f"{folder}/{index:07d}.png",
                "processed_tokens": [caption.lower().split() for caption in captions],
                "id": index // 3 + 1 if train else 20_000 + 2 * (index // 3) + index % 2,
            }
        )
    for entry in entries:
        path = root / "imgs" / str(entry["file_path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    (root / "reid_raw.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


def parse(root: Path) -> None:
    """Read every entry of an annotation without looking for its image."""
    for entry in read_entries(root / "reid_raw.json"):
        parse_entry(entry, root / "imgs", image_key="file_path")


def measure_annotation(folder: Path) -> dict[str, Any]:
    """Seconds to read and tokenise, and the memory of the records."""
    root = write_annotation(folder / "CUHK-PEDES")
    times = take_turns(
        {
            "parse_seconds": lambda: seconds(lambda: parse(root)),
            "load_seconds_with_images_looked_up": lambda: seconds(lambda: load_cuhk_pedes(root, check_counts=False)),
        },
        rounds=3,
    )
    result: dict[str, Any] = {name: spread(taken).median for name, taken in times.items()}
    tracemalloc.start()
    dataset = load_cuhk_pedes(root, check_counts=False)
    result["records_mb"], result["records_peak_mb"] = (number / 1e6 for number in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    captions = [caption for record in dataset.train.records for caption in record.captions]
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    for name in ("tokenise_first_seconds", "tokenise_cached_seconds"):
        start = time.perf_counter()
        tokens = tokenize_captions(captions, tokenizer, cache_dir=folder / "tokens", progress=False)
        result[name] = time.perf_counter() - start
    result["captions"] = len(tokens)
    return result


def main() -> None:
    """Measure, print and write."""
    name = "data_loading_huge_pages.json" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else "data_loading.json"
    arguments = make_parser(__doc__, output=RESULTS / name).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {**measure_loading(Path(folder)), **measure_annotation(Path(folder))}
    settings = {"image_size": list(IMAGE_SIZE), "pictures": IMAGES, "rounds": ROUNDS, "batch": BATCH}
    for figure, value in figures.items():
        print(f"{figure:<48}{value if isinstance(value, int | list) else round(value, 3)}")
    write_json(arguments.output, made_with() | {"settings": settings} | figures)
    if figures["ratio_with_cache"] < 3 or figures["ratio_without_cache"] < 1.2:
        sys.exit("loading is slower than promised: 3 times the usual way with the cache, 1.2 times without")


if __name__ == "__main__":
    main()
