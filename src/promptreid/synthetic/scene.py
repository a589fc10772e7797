"""One picture before it is drawn: who stands how before which camera."""

from dataclasses import dataclass

import numpy as np

from promptreid.synthetic.person import Person, pick
from promptreid.synthetic.sight import as_seen

STYLES = ("street", "web")
OCCLUDERS = ("none", "none", "none", "none", "none", "bench", "bush", "post")
HIDING_FEET = ("bench", "bush")


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        person: Who it is.
        camera: Name of the camera.
        view: `"front"`, `"back"` or `"side"`.
        facing: 1 towards the right edge, -1 towards the left one; matters from the side.
        phase: Of the walking cycle, in [0, 1).
        occluder: What stands before the person: `"none"`, `"bench"`, `"bush"` or `"post"`.
        style: `"street"`, or `"web"` where the picture is drawn as the base's own domain is.
        sharp: Whether glasses and the kind of shoes can be made out.
    """

    person: Person
    camera: str
    view: str
    facing: int
    phase: float
    occluder: str
    style: str
    sharp: bool

    @property
    def seen(self) -> Person:
        """What of the person this picture shows; what it hides is `"none"`."""
        feet = self.occluder not in HIDING_FEET
        return as_seen(self.person, self.view, shoes=feet, small_things=self.sharp)


def draw_scene(
    random: np.random.Generator, person: Person, *, camera: str, view: str, sharp: bool, gap: float
) -> Scene:
    """Pose a person; with probability 1 - `gap` the picture is in the web's style, where nothing is in the way."""
    street = random.random() < gap
    facing, phase, occluder = 1 - 2 * int(random.integers(2)), float(random.random()), pick(random, OCCLUDERS)
    return Scene(
        person=person,
        camera=camera,
        view=view,
        facing=facing if street else 1,
        phase=phase,
        occluder=occluder if street else "none",
        style="street" if street else "web",
        sharp=sharp or not street,
    )
