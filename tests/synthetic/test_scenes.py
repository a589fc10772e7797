"""scenes.json gives back what was drawn, and says so when it cannot."""

from pathlib import Path

import numpy as np
import pytest

from promptreid.errors import DatasetError
from promptreid.synthetic import DescribedImage, load_scenes
from promptreid.synthetic.scenes import SCENES, Scene, write_scenes
from promptreid.synthetic.sentences import describe


def test_load_scenes_gives_back_what_was_written(tmp_path: Path, scenes: list[Scene]) -> None:
    pictures = [
        DescribedImage(
            tmp_path / "imgs" / f"{scene.camera}/{index}.jpg",
            index,
            "train",
            None if index % 2 else index + 1,
            scene,
            tuple(describe(np.random.default_rng([index, turn]), scene) for turn in range(2)),
        )
        for index, scene in enumerate(scenes[:20])
    ]
    write_scenes(tmp_path, pictures)
    assert load_scenes(tmp_path) == pictures


def test_load_scenes_without_file_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no scenes\.json; give a folder that write_generated wrote"):
        load_scenes(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"people": {}, "pictures": [{}]}', '{"people": 3, "pictures": [{"id": 1}]}', "\xff"]
)
def test_load_scenes_damaged_file_raises(tmp_path: Path, content: str) -> None:
    (tmp_path / SCENES).write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match="is damaged"):
        load_scenes(tmp_path)
