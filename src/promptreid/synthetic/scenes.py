"""The ground truth of each image: the person, the view, the camera and the captions; kept in `scenes.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptreid.data.layouts import IMAGES
from promptreid.errors import DatasetError
from promptreid.synthetic.person import Person, as_seen, pick

OCCLUDERS = ("none", "none", "none", "none", "none", "bench", "bush", "post")
HIDING_FEET = ("bench", "bush")


@dataclass(frozen=True)
class Scene:
    """The content of an image.

    Attributes:
        person: Who it is.
        camera: Name of the camera.
        view: `"front"`, `"back"` or `"side"`.
        facing: 1 towards the right edge, -1 towards the left one; matters from the side.
        phase: Of the walking cycle, in [0, 1).
        occluder: The object in front of the person: `"none"`, `"bench"`, `"bush"` or `"post"`.
        style: `"street"`, or `"web"` where it is drawn as in the base's own domain.
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
        """The person as this image shows them; what it hides is `"none"`."""
        feet = self.occluder not in HIDING_FEET
        return as_seen(self.person, self.view, shoes=feet, small_things=self.sharp)


def draw_scene(
    random: np.random.Generator, person: Person, *, camera: str, view: str, sharp: bool, gap: float
) -> Scene:
    """Pose a person; with probability 1 - `gap` the image is in the web's style, where nothing is in the way."""
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


@dataclass(frozen=True)
class Caption:
    """A caption and what it says.

    Attributes:
        text: The sentence or sentences.
        said: Attribute of the person to the value that the caption gives it.
        mistakes: Those attributes whose value is wrong, on purpose.
    """

    text: str
    said: dict[str, str]
    mistakes: tuple[str, ...]


SCENES = "scenes.json"


@dataclass(frozen=True)
class DescribedImage:
    """A synthetic image and the truth about it.

    Attributes:
        path: The image file.
        person_id: Identity, as the annotation numbers it.
        split: `"train"`, `"val"` or `"test"`.
        twin_of: The identity that this person is a near-twin of, or `None`.
        scene: What the image shows; `scene.seen` is what of the person can be seen.
        captions: Its sentences with what they say and which of it is wrong.
    """

    path: Path
    person_id: int
    split: str
    twin_of: int | None
    scene: Scene
    captions: tuple[Caption, ...]


def write_scenes(root: Path, images: Sequence[DescribedImage]) -> None:
    """Write `scenes.json`; each person is described once."""
    people: dict[int, Any] = {}
    entries: list[dict[str, Any]] = []
    for image in images:
        scene = asdict(image.scene)
        people[image.person_id] = scene.pop("person") | {"twin_of": image.twin_of}
        entries.append(
            {
                "path": image.path.relative_to(root / IMAGES).as_posix(),
                "id": image.person_id,
                "split": image.split,
                **scene,
                "captions": [asdict(caption) for caption in image.captions],
            }
        )
    content = json.dumps({"people": people, "pictures": entries}, separators=(",", ":"))
    (root / SCENES).write_bytes(content.encode())


def load_scenes(root: str | Path) -> list[DescribedImage]:
    """The contents of the images of a synthetic dataset, in the annotation's order.

    Args:
        root: A folder that `write_generated` wrote.

    Returns:
        One entry an image.

    Raises:
        DatasetError: There is no `scenes.json`, or it is damaged.
    """
    path = Path(root) / SCENES
    if not path.is_file():
        raise DatasetError(f"{root} has no {SCENES}; give a folder that write_generated wrote with this version")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return [_image(Path(root), content["people"], entry) for entry in content["pictures"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); delete {root} and write it again") from error


def _image(root: Path, people: Any, entry: Any) -> DescribedImage:
    person = dict(people[str(entry["id"])])
    twin_of = person.pop("twin_of")
    keys = ("camera", "view", "facing", "phase", "occluder", "style", "sharp")
    captions = tuple(
        Caption(caption["text"], dict(caption["said"]), tuple(caption["mistakes"])) for caption in entry["captions"]
    )
    scene = Scene(person=Person(**person), **{key: entry[key] for key in keys})
    return DescribedImage(root / IMAGES / entry["path"], entry["id"], entry["split"], twin_of, scene, captions)
