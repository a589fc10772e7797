"""Small data sets on disk, in CUHK-PEDES' layout, for every test of this room."""

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


def draw_picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (16, 8)) -> Path:
    """Write a picture of (height, width) noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


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
        for number, entry in enumerate(content if isinstance(content, list) else []):
            name = entry.get("file_path") if isinstance(entry, dict) else None
            if isinstance(name, str) and re.fullmatch(r"cam_[ab]/\d+\.png", name):
                draw_picture(root / "imgs" / name, seed=number)
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
