import numpy as np
import pytest

from promptreid.data.generated.person import Person, draw_person


@pytest.fixture
def people() -> list[Person]:
    return [draw_person(np.random.default_rng([7, index])) for index in range(200)]
