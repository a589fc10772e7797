"""Adds features to a store in small commits and prints each that was acknowledged: `worker.py URL NUMBER COMMITS`."""

import sys

import torch

from promptreid.retrieval.lance_store import LanceStore, renumbered
from promptreid.retrieval.table import ImageTable

DIMENSIONS, ROWS = 64, 100


def main() -> None:
    url, number, commits = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = LanceStore.open(url)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for commit in range(commits):
        keys = [f"worker{number}/{commit:04}_{row:03}.jpg" for row in range(ROWS)]
        made = torch.randn(ROWS, DIMENSIONS, generator=torch.Generator().manual_seed(1000 * number + commit))
        table = renumbered(ImageTable.of_keys(keys, metadata=[{"camera": f"cam_{number}"}] * ROWS))
        store.add(table, torch.nn.functional.normalize(made, dim=-1))
        sys.stdout.write(f"{commit}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
