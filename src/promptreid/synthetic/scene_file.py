"""Keeps what every generated picture shows, to score by view, skin tone, build or words for gender."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptreid.errors import DatasetError
from promptreid.synthetic.captions import Caption
from promptreid.synthetic.person import Person
from promptreid.synthetic.scene import Scene

SCENES = "scenes.json"


@dataclass(frozen=True)
class DescribedPicture:
    """A generated picture and the truth about it.

    Attributes:
        path: The image file.
        person_id: Identity, as the annotation numbers it.
        split: `"train"`, `"val"` or `"test"`.
        twin_of: The identity that this person is a near-twin of, or `None`.
        scene: What the picture shows; `scene.seen` is what of the person can be seen.
        captions: Its sentences with what they say and which of it is wrong.
    """

    path: Path
    person_id: int
    split: str
    twin_of: int | None
    scene: Scene
    captions: tuple[Caption, ...]


def write_scenes(root: Path, pictures: Sequence[DescribedPicture]) -> None:
    """Write `scenes.json`; each person is described once."""
    people: dict[int, Any] = {}
    entries: list[dict[str, Any]] = []
    for picture in pictures:
        scene = asdict(picture.scene)
        people[picture.person_id] = scene.pop("person") | {"twin_of": picture.twin_of}
        entries.append(
            {
                "path": picture.path.relative_to(root / "imgs").as_posix(),
                "id": picture.person_id,
                "split": picture.split,
                **scene,
                "captions": [asdict(caption) for caption in picture.captions],
            }
        )
    content = json.dumps({"people": people, "pictures": entries}, separators=(",", ":"))
    (root / SCENES).write_text(content, encoding="utf-8")


def load_scenes(root: str | Path) -> list[DescribedPicture]:
    """What the pictures of a generated data set show, in the annotation's order.

    Args:
        root: A folder that `write_generated` wrote.

    Returns:
        One entry a picture.

    Raises:
        DatasetError: There is no `scenes.json`, or it is damaged.
    """
    path = Path(root) / SCENES
    if not path.is_file():
        raise DatasetError(f"{root} has no {SCENES}; give a folder that write_generated wrote with this version")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return [_picture(Path(root), content["people"], entry) for entry in content["pictures"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}); delete {root} and write it again") from error


def _picture(root: Path, people: Any, entry: Any) -> DescribedPicture:
    person = dict(people[str(entry["id"])])
    twin_of = person.pop("twin_of")
    keys = ("camera", "view", "facing", "phase", "occluder", "style", "sharp")
    captions = tuple(
        Caption(caption["text"], dict(caption["said"]), tuple(caption["mistakes"])) for caption in entry["captions"]
    )
    scene = Scene(person=Person(**person), **{key: entry[key] for key in keys})
    return DescribedPicture(root / "imgs" / entry["path"], entry["id"], entry["split"], twin_of, scene, captions)
