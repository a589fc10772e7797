"""Cameras: the same picture for the same draw, each with a look of its own, milder as the gap closes."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from promptreid.synthetic.camera import CAMERAS, Camera, panorama, photograph
from promptreid.synthetic.scenes import Scene


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(jpeg)), dtype=float)


def shots(scene: Scene, camera: Camera, *, gap: float = 1.0) -> np.ndarray:
    """Eight pictures of one scene."""
    return np.stack([pixels(photograph(np.random.default_rng(seed), scene, camera, gap=gap)) for seed in range(8)])


def test_photograph_same_generator_state_gives_the_same_bytes(scenes: list[Scene]) -> None:
    first, second = (photograph(np.random.default_rng(2), scenes[0], CAMERAS[0]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_photograph_has_the_cameras_size(camera: Camera, scenes: list[Scene]) -> None:
    assert pixels(photograph(np.random.default_rng(1), scenes[1], camera)).shape == (*camera.size, 3)


def test_cameras_have_their_own_names_sizes_streets_and_casts() -> None:
    assert len({camera.name for camera in CAMERAS}) == len(CAMERAS) == 5
    assert len({camera.size for camera in CAMERAS}) == 5
    assert len({panorama(camera).tobytes() for camera in CAMERAS}) == 5
    assert len({camera.cast for camera in CAMERAS}) == 5


def test_photograph_two_cameras_differ_in_colour_cast(scenes: list[Scene]) -> None:
    bluish, yellowish = (shots(scenes[0], camera).mean(axis=(0, 1, 2)) for camera in CAMERAS[:2])
    assert bluish[2] - bluish[0] > yellowish[2] - yellowish[0] + 20


def test_photograph_gap_closed_leaves_noise_blur_and_cast_out(scenes: list[Scene]) -> None:
    scene = replace(scenes[0], occluder="none")
    mild, full, harsh = (shots(scene, CAMERAS[3], gap=gap) for gap in (0.0, 1.0, 2.0))
    # CUHK03 darkens and lowers contrast: the spread of a picture's values shrinks with the gap.
    spreads = [batch.std(axis=(1, 2)).mean() for batch in (mild, full, harsh)]
    assert spreads[0] > spreads[1] > spreads[2]


@pytest.mark.parametrize("occluder", ["bench", "bush", "post"])
def test_photograph_occluder_changes_the_picture(occluder: str, scenes: list[Scene]) -> None:
    free = replace(scenes[0], occluder="none")
    one, other = shots(free, CAMERAS[0]), shots(replace(free, occluder=occluder), CAMERAS[0])
    assert np.abs(one - other).mean() > 1.5


@pytest.mark.parametrize("occluder", ["bench", "bush"])
def test_photograph_bench_and_bush_hide_the_shoes(occluder: str, scenes: list[Scene]) -> None:
    """The rows of the feet look alike whatever shoes are worn; where nothing stands before them they do not."""

    def shoes(kind: str, colour: str, occluder: str) -> np.ndarray:
        person = replace(scenes[0].person, shoe_kind=kind, shoe_colour=colour, age="adult", lower_kind="trousers")
        return shots(replace(scenes[0], person=person, occluder=occluder, view="front"), CAMERAS[2])[:, 148:]

    for kind in ("shoes", "sneakers", "sandals"):
        hidden = np.abs(shoes(kind, "white", occluder) - shoes(kind, "black", occluder)).max()
        free = np.abs(shoes(kind, "white", "none") - shoes(kind, "black", "none")).max()
        assert hidden < 40 < 60 < free
