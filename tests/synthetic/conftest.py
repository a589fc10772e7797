import sys
from pathlib import Path

import numpy as np
import pytest

from promptreid.synthetic.camera import CAMERAS
from promptreid.synthetic.person import Person, draw_person, pick
from promptreid.synthetic.scenes import Scene, draw_scene

sys.path.append(str(Path(__file__).parents[2] / "tools"))  # the small base's pretraining world


@pytest.fixture(scope="session")
def people() -> list[Person]:
    return [draw_person(np.random.default_rng([7, index])) for index in range(200)]


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """Street scenes of 600 persons, all cameras, views and occluders among them."""
    found = []
    for index in range(600):
        random = np.random.default_rng([8, index])
        camera = CAMERAS[index % len(CAMERAS)]
        view = pick(random, camera.views)
        person = draw_person(random)
        found.append(draw_scene(random, person, camera=camera.name, view=view, sharp=camera.sharp, gap=1.0))
    return found
