"""Merges the same images into a store as several processes do: `merging_writer.py FOLDER COMMITS`, once GO is there."""

import sys
import time
from pathlib import Path

import torch

from promptreid.retrieval.lance_store import LanceStore, renumbered
from promptreid.retrieval.table import ImageTable

ROWS, DIMENSIONS = 50, 16


def main() -> None:
    folder, commits = Path(sys.argv[1]), int(sys.argv[2])
    store = LanceStore.open(folder)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not (folder / "GO").exists():
        time.sleep(0.005)
    for number in range(commits):
        keys = [f"cam/{number}_{row}.jpg" for row in range(ROWS)]
        features = torch.nn.functional.normalize(torch.randn(ROWS, DIMENSIONS), dim=-1)
        store.add(renumbered(ImageTable.of_keys(keys, metadata=[{"camera": number}] * ROWS)), features)


if __name__ == "__main__":
    main()
