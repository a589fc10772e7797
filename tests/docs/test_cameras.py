"""The functions of docs/cameras.md, with an object in the place of ultralytics' tracker."""

import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from promptreid import Gallery, load_prompts
from promptreid.towers.tiny import tiny_prompts

PAGE = (Path(__file__).parents[2] / "docs" / "cameras.md").read_text(encoding="utf-8")
START = datetime(2026, 11, 27, 8)


@pytest.fixture
def page():
    names = {}
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(block, "cameras.md", "exec"), names)
    return SimpleNamespace(**names)


class Tracker:
    """Gives for each frame what ultralytics documents: `orig_img` in BGR, `boxes.xyxy` and `boxes.id`."""

    def __init__(self, *boxes_of_frames):
        self.boxes_of_frames = boxes_of_frames
        self.asked = None

    def track(self, video, **options):
        self.asked = (video, options)
        for boxes in self.boxes_of_frames:
            frame = np.zeros((128, 160, 3), dtype=np.uint8)
            frame[:, :, 2] = 200  # red
            ids = torch.tensor([float(track) for track in boxes]) if boxes else None
            yield SimpleNamespace(
                orig_img=frame,
                boxes=SimpleNamespace(xyxy=torch.tensor(list(boxes.values()), dtype=torch.float32), id=ids),
            )


def test_every_second_frame_gives_its_people_in_rgb_with_time_and_track(page):
    person, beyond, small = (10.4, 5.0, 60.9, 110.0), (-8.0, -3.0, 40.0, 90.0), (0.0, 0.0, 9.0, 100.0)
    tracker = Tracker({3: person}, {3: person}, {}, {}, {3: person, 4: beyond, 5: small})
    found = list(page.crops_of_video(tracker, "gate.mp4", "gate", START, frames_a_second=2, every=2))
    assert tracker.asked == ("gate.mp4", {"classes": [0], "stream": True, "verbose": False})
    assert [(crop.shape, key) for crop, key, _ in found] == [
        ((105, 50, 3), "gate/000000_3"),
        ((105, 50, 3), "gate/000004_3"),
        ((90, 40, 3), "gate/000004_4"),
    ]
    assert all((crop == [200, 0, 0]).all() and crop.flags.c_contiguous for crop, _, _ in found)
    assert found[2][2] == {"camera": "gate", "time": "2026-11-27T08:00:02", "track": 4}


def test_crops_of_a_video_are_found_by_camera_and_time(page, split):
    gallery = Gallery.build(load_prompts(tiny_prompts()), split.paths[:2], progress=False)
    page.add_video(gallery, page.crops_of_video(Tracker({1: (0, 0, 50, 100)}), "gate.mp4", "gate", START))
    (hit,) = gallery.search("a red coat", where={"camera": "gate", "time": ("2026-11-27", "2026-11-27")})
    assert hit.path.as_posix() == "gate/000000_1"


def test_video_without_people_changes_nothing(page):
    page.add_video(None, page.crops_of_video(Tracker({}, {}), "gate.mp4", "gate", START))
