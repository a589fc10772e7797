"""Writers that are killed at any moment, and readers beside them, see whole galleries only."""

import json
import random
import time
from pathlib import Path

import pytest
import torch

from promptreid.retrieval.gallery_files import read_gallery, write_gallery
from promptreid.retrieval.index import ExactIndex
from promptreid.retrieval.table import ImageTable

pytestmark = pytest.mark.posix

WRITER = Path(__file__).with_name("killed_writer.py")


@pytest.fixture
def index(tmp_path):
    """2,000 rows that each hold their own number throughout."""
    rows = torch.arange(2000).float()[:, None].expand(-1, 64)
    table = ImageTable.of([f"{number}.jpg" for number in range(2000)], first_id=0)
    write_gallery(tmp_path / "index", ExactIndex(table, rows), {"header": {}, "next_id": 2000}, replaces=None)
    return tmp_path / "index"


def check_whole(folder):
    """Every image has its own features; returns how many there are."""
    saved, _ = read_gallery(folder)
    numbers = saved.images.ids.float()
    assert torch.equal(saved.features, numbers[:, None].expand(-1, 64))
    assert [f"{int(number)}.jpg" for number in numbers] == list(saved.images.paths)
    assert saved.images.paths[:2000] == [f"{number}.jpg" for number in range(2000)]
    return len(saved.images)


@pytest.fixture
def start(fork, index):
    """Starts a writer."""

    def ready():
        writer = fork(WRITER, index)
        assert writer.stdout.readline() == "ready\n"
        return writer

    return ready


def kill_after(writer, seconds):
    time.sleep(seconds)
    writer.kill()
    assert writer.communicate() == ("", "")


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_gallery_whose_writer_is_killed_loses_nothing(start, index, kills):
    generator = random.Random(kills)
    for _ in range(kills):
        kill_after(start(), generator.uniform(0.0, 0.3))
        assert check_whole(index) >= 2000
    # What killed writers left behind goes with the next write.
    saved, description = read_gallery(index)
    write_gallery(index, saved, description, replaces=description["generation"])
    segments = json.loads((index / "gallery.json").read_bytes())["segments"]
    named = {files[kind] for files in segments for kind in ("features", "images")}
    assert {path.name for path in index.iterdir()} == {"gallery.json", "gallery.lock"} | named


@pytest.mark.parametrize("seconds", [1.5, pytest.param(20, marks=pytest.mark.slow)])
def test_gallery_that_is_read_while_it_is_written_is_always_whole(start, index, seconds):
    writer = start()
    sizes, reads, end = set(), 0, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            sizes.add(check_whole(index))
            reads += 1
    finally:
        kill_after(writer, 0)
    assert reads > 5
    assert len(sizes) > 1
