"""Small datasets on disk, in CUHK-PEDES' layout, for every test of this room."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

Entry = dict[str, Any]


def draw(path: Path, *, seed: int = 0, size: tuple[int, int] = (16, 8)) -> Path:
    """Write a picture of (height, width) noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def draw_picture() -> Callable[..., Path]:
    return draw


def cuhk_entry(number: int, *, person_id: int, split: str) -> Entry:
    """A record as CUHK-PEDES has it."""
    return {
        "split": split,
        "captions": [f"person {person_id} in coat {number}", f"picture {number} of a man"],
        "file_path": f"cam_{'ab'[number % 2]}/{number:04d}.png",
        "processed_tokens": [["person"], ["picture"]],
        "id": person_id,
    }


@pytest.fixture
def entries() -> list[Entry]:
    """Six training images of persons 3, 7 and 20, two validation images of 21, two test images of 30 and 31."""
    people = [(7, "train"), (3, "train"), (3, "train"), (20, "train"), (7, "train"), (20, "train")]
    people += [(21, "val"), (21, "val"), (30, "test"), (31, "test")]
    return [cuhk_entry(number, person_id=pid, split=split) for number, (pid, split) in enumerate(people)]


@pytest.fixture
def write_cuhk(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes an annotation, and a picture for every entry that names one; returns the folder."""

    def write(content: Any) -> Path:
        root = tmp_path / "CUHK-PEDES"
        (root / "imgs").mkdir(parents=True)
        (root / "reid_raw.json").write_text(json.dumps(content), encoding="utf-8")
        (root / "generated.json").write_text("{}", encoding="utf-8")  # so that no published counts are expected
        for number, entry in enumerate(content if isinstance(content, list) else []):
            name = entry.get("file_path") if isinstance(entry, dict) else None
            if isinstance(name, str) and re.fullmatch(r"cam_[ab]/\d+\.png", name):
                draw(root / "imgs" / name, seed=number)
        return root

    return write


def count_words(captions: list[str]) -> torch.Tensor:
    """A tokenizer: 510, one id a word, 511, then zeros, 12 in all; too long a caption is cut."""
    tokens = torch.zeros(len(captions), 12, dtype=torch.int64)
    for row, caption in enumerate(captions):
        words = [1 + sum(word.encode()) % 500 for word in caption.lower().split()][:10]
        tokens[row, : len(words) + 2] = torch.tensor([510, *words, 511])
    return tokens


@pytest.fixture
def tokenizer() -> Callable[[list[str]], torch.Tensor]:
    return count_words


BENCHMARK_FILES = {
    "CUHK-PEDES": ("reid_raw.json", "file_path"),
    "ICFG-PEDES": ("ICFG-PEDES.json", "file_path"),
    "RSTPReid": ("data_captions.json", "img_path"),
}


@pytest.fixture
def write_benchmark(tmp_path: Path) -> Callable[..., Path]:
    """Writes one of the three layouts with four persons, two images each, from 0 upwards; returns the folder."""

    def write(name: str, *, annotation: str | None = None, root: Path | None = None, stamp: bool = True) -> Path:
        usual, key = BENCHMARK_FILES[name]
        root = root or tmp_path / name
        entries: list[Entry] = []
        splits = ("train", "train", "test", "test") if name == "ICFG-PEDES" else ("train", "train", "val", "test")
        for number in range(8):
            path = f"{splits[number // 2]}/{number}.jpg" if name == "ICFG-PEDES" else f"{number}.jpg"
            captions = [f"caption {number}"] * (1 if name == "ICFG-PEDES" else 2)
            entries.append({"split": splits[number // 2], "captions": captions, key: path, "id": number // 2})
            draw(root / "imgs" / path, seed=number)
        (root / (annotation or usual)).write_text(json.dumps(entries), encoding="utf-8")
        if stamp:
            (root / "generated.json").write_text("{}", encoding="utf-8")
        return root

    return write
