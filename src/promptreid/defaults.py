"""Numbers and names that the library and its command line share; to import them takes no time."""

import os
import signal
from pathlib import Path
from typing import Literal

BATCH_SIZE = 64  # images, captions or pairs at a time
IMAGE_SIZE = (384, 128)  # height and width in pixels, usual for crops of pedestrians
NUM_HITS = 10  # images that a search gives at most
NUM_THREADS = 4  # that read images ahead

GALLERY_FILE = "gallery.json"  # what makes a folder a gallery
STORE_TABLE = "images.lance"  # what makes a folder a store
SYNTHETIC_STAMP = "generated.json"  # beside the annotation of drawn pedestrians

# What a scheduler sends, and a terminal that is closed, which Windows does not have.
ENDING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)

OnBad = Literal["strict", "skip"]  # what is done with records and images that cannot be used


def is_store(place: Path | str) -> bool:
    """Whether this is a store, by its address or by what is in the folder.

    Only a table that has a version makes one: whoever makes a store makes the table's folder first.
    """
    return "://" in str(place) or os.path.isdir(os.path.join(place, STORE_TABLE, "_versions"))


def is_gallery(place: Path | str) -> bool:
    """Whether this is a gallery's folder; earlier versions let a store be made in one."""
    return os.path.isfile(os.path.join(place, GALLERY_FILE))  # to pathlib, a sentence is too long a name
