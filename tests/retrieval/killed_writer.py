"""Adds and removes images of a gallery over and over, until it is killed: `killed_writer.py FOLDER`."""

import sys
from pathlib import Path

import torch

from promptreid.retrieval.gallery_state import GalleryState
from promptreid.retrieval.table import ImageTable


def main() -> None:
    folder = sys.argv[1]
    store = GalleryState.load(Path(folder))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ids = store.images.ids.tolist()
        if len(ids) > 3000:
            store.change(removed=ids[2000:])
            continue
        first = store.take_ids(200)
        # Every row holds its own number throughout, so that a reader can tell whether it belongs to its image.
        rows = torch.arange(first, first + 200).float()[:, None].expand(-1, 64)
        names = [f"{number}.jpg" for number in range(first, first + 200)]
        store.change(added=(ImageTable.of(names, first_id=first), rows))


if __name__ == "__main__":
    main()
