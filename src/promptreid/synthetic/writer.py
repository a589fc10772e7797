"""Writes a synthetic dataset to disk, laid out as one of the published ones."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from promptreid.data.layouts import IMAGES, PUBLISHED, JsonLayout
from promptreid.defaults import SYNTHETIC_STAMP
from promptreid.errors import DatasetError
from promptreid.files import rename_over
from promptreid.synthetic.camera import CAMERAS, photograph
from promptreid.synthetic.person import Person, draw_person, near_twin, pick
from promptreid.synthetic.scenes import SCENES, Caption, DescribedImage, draw_scene, write_scenes
from promptreid.synthetic.sentences import describe, web_description
from promptreid.values import check_choice, real_number, shown, whole_number

GENERATOR_VERSION = 3


@dataclass(frozen=True)
class _Plan:
    layout: str
    num_identities: tuple[int, int, int]
    images_per_identity: int
    gap: float
    near_twins: float
    seed: int

    @property
    def format(self) -> JsonLayout:
        return PUBLISHED[self.layout]

    def stamp(self) -> dict[str, Any]:
        """The settings that a folder must have been written with to be used again."""
        return {
            "generator_version": GENERATOR_VERSION,
            **vars(self),
            "num_identities": list(self.num_identities),  # as JSON gives it back
        }


@dataclass(frozen=True)
class _Member:
    person_id: int
    split: str
    person: Person
    twin_of: int | None


def write_generated(
    root: str | Path,
    *,
    layout: str = "CUHK-PEDES",
    num_identities: tuple[int, int, int] | None = None,
    images_per_identity: int = 4,
    gap: float = 1.0,
    near_twins: float = 0.3,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write drawn pedestrians with captions to `root`, laid out as one of the real datasets is.

    The images are drawings, not photographs, and no figure measured on them says anything about the real datasets.
    A complete set written by the same arguments is used again. Everything is written to a hidden folder beside `root`
    first and renamed at the end, so `root` never holds half a dataset.

    Args:
        root: Folder to write: `imgs/`, the annotation of `layout`, and `scenes.json` (see `load_scenes`).
        layout: Whose folders, annotation file and keys: `"CUHK-PEDES"`, `"ICFG-PEDES"` (one caption an image, no
            validation split) or `"RSTPReid"`.
        num_identities: Persons in the training, validation and test split; (300, 60, 200) if `None`, and no
            validation persons where the layout has no such split.
        images_per_identity: Images of each person.
        gap: How far look and captions are from the small base's own domain, 0 to 2. It is the share (at most 1) of
            images that show the street and have an annotator's captions, where the others are the web's dolls and
            lists; and the strength of what the cameras do to all of them.
        near_twins: Share of the persons, 0 to 1, who have a near-twin in their split: a person who differs in the
            colour of one thing only.
        seed: Everything is drawn from it.
        progress: Show a progress bar.

    Returns:
        `root` as a `Path`.

    Raises:
        DatasetError: `root` holds something else, or a synthetic set that has lost files.
        TypeError: A count or the seed is not a whole number, or a share is not a number.
        ValueError: The layout is unknown, a count or share is out of range, or the seed is negative.

    Example:
        >>> import tempfile
        >>> from promptreid.data import load_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_generated(folder, num_identities=(4, 2, 2), images_per_identity=2, progress=False)
        ...     print(load_dataset(root).summary())
        synthetic people (CUHK-PEDES layout): train 4 persons, 8 images, 16 captions; val 2 persons, 4 images, 8 captions; test 2 persons, 4 images, 8 captions
    """  # noqa: E501
    root = Path(root)
    check_choice("layout", layout, PUBLISHED)
    if num_identities is None:
        num_identities = (300, 60 if PUBLISHED[layout].has_validation else 0, 200)
    plan = _Plan(
        layout,
        _three_counts(num_identities),
        whole_number("images_per_identity", images_per_identity),
        real_number("gap", gap),
        real_number("near_twins", near_twins),
        whole_number("seed", seed),
    )
    _check_plan(plan)
    if _holds(root, plan):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(scratch, plan, progress)
        (scratch / SYNTHETIC_STAMP).write_text(json.dumps(plan.stamp()), encoding="utf-8")
        scratch.chmod(0o755)
        with suppress(OSError):  # an empty folder, which Windows does not replace
            root.rmdir()
        _take_place(scratch, root, plan)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return root


def _take_place(scratch: Path, root: Path, plan: _Plan) -> None:
    """Rename a dataset to its place, unless another process has just written the same one there."""
    try:
        rename_over(scratch, root)
    except OSError:
        if not _holds(root, plan):
            raise
        shutil.rmtree(scratch, ignore_errors=True)


def _three_counts(num_identities: Any) -> tuple[int, int, int]:
    """The persons of each split as plain integers."""
    if isinstance(num_identities, Sequence | np.ndarray) and len(num_identities) == 3:
        train, val, test = (whole_number("num_identities", count) for count in num_identities)
        return train, val, test
    raise ValueError(f"num_identities is {shown(num_identities)}, expected three counts (train, val, test)")


def _check_plan(plan: _Plan) -> None:
    counts, val_wanted = plan.num_identities, int(plan.format.has_validation)
    if counts[0] < 1 or counts[1] < val_wanted or counts[2] < 1 or plan.images_per_identity < 1:
        raise ValueError(
            f"num_identities is {counts} and images_per_identity {plan.images_per_identity}; expected three counts "
            "(train, val, test) and one, each at least 1"
        )
    if counts[1] and not val_wanted:
        raise ValueError(f"num_identities is {counts}, but {plan.layout} has no validation split: give 0 in the middle")
    if not 0 <= plan.gap <= 2:
        raise ValueError(f"gap is {plan.gap}, expected 0 (the base's own domain) to 2")
    if not 0 <= plan.near_twins <= 1:
        raise ValueError(f"near_twins is {plan.near_twins}, expected a share from 0 to 1")
    if plan.seed < 0:
        raise ValueError(f"seed is {plan.seed}, expected 0 or more")


def _holds(root: Path, plan: _Plan) -> bool:
    """Whether `root` is already this dataset; anything else there is refused."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    stamp, wanted = root / SYNTHETIC_STAMP, plan.stamp()
    try:
        found = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else None
    except (OSError, ValueError):
        found = None
    if found == wanted:
        _check_complete(root, plan.format)
        return True
    raise DatasetError(
        f"{root} already holds "
        + ("something that is not a synthetic dataset" if found is None else f"a dataset generated with {found}")
        + f"; choose another folder, or delete it to write one with {wanted}"
    )


def _check_complete(root: Path, form: JsonLayout) -> None:
    """Refuse a set whose files were deleted after it was written."""
    paths = [root / form.annotations[0], root / SCENES]
    if paths[0].is_file():
        records = json.loads(paths[0].read_text(encoding="utf-8"))
        paths += [root / IMAGES / record[form.image_key] for record in records]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"the synthetic dataset in {root} has lost {len(missing)} of its files, such as {missing[0]}; "
            "delete the folder to write it again"
        )


def draw_people(
    num_identities: tuple[int, int, int], *, near_twins: float, seed: int
) -> list[tuple[str, Person, int | None]]:
    """Draw all persons: (split, person, index of the near-twin in this list or `None`); no two look the same."""
    people: list[tuple[str, Person, int | None]] = []
    taken: set[Person] = set()
    for split, count in zip(("train", "val", "test"), num_identities, strict=True):
        for order in range(count):
            number = len(people)
            random = np.random.default_rng([seed, number, 0])
            # Every second person may be the twin of the one before.
            twin = order % 2 == 1 and bool(random.random() < near_twins)
            person = near_twin(random, people[-1][1]) if twin else draw_person(random)
            while person in taken:
                person = near_twin(random, person) if twin else draw_person(random)
            taken.add(person)
            people.append((split, person, number - 1 if twin else None))
    return people


def _write(root: Path, plan: _Plan, progress: bool) -> None:
    people = draw_people(plan.num_identities, near_twins=plan.near_twins, seed=plan.seed)
    images: list[DescribedImage] = []
    bar = tqdm(people, desc="drawing pedestrians", unit="person", disable=not progress, leave=False)
    for number, (split, person, twin) in enumerate(bar):
        random = np.random.default_rng([plan.seed, number, 1])
        first_id = plan.format.first_id
        member = _Member(number + first_id, split, person, None if twin is None else twin + first_id)
        images.extend(_write_image(root, random, member, index, plan) for index in range(plan.images_per_identity))
    records = [_entry(plan.format, image, root) for image in images]
    (root / plan.format.annotations[0]).write_text(json.dumps(records), encoding="utf-8")
    write_scenes(root, images)


def _write_image(root: Path, random: np.random.Generator, member: _Member, index: int, plan: _Plan) -> DescribedImage:
    form, camera = plan.format, CAMERAS[int(random.integers(len(CAMERAS)))]
    view = pick(random, camera.views)
    scene = draw_scene(random, member.person, camera=camera.name, view=view, sharp=camera.sharp, gap=plan.gap)
    folder = root / IMAGES / form.image_folder.format(camera=camera.name, split=member.split)
    # Where all images lie in one folder, the camera is part of the name.
    path = folder / f"{member.person_id:05d}{'' if form.image_folder else f'_{camera.name}'}_{index}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photograph(random, scene, camera, gap=plan.gap))
    count = form.captions_per_image
    if scene.style == "web":
        captions = tuple(Caption(web_description(random, scene.seen, view), {}, ()) for _ in range(count))
    else:
        captions = tuple(describe(random, scene) for _ in range(count))
    return DescribedImage(path, member.person_id, member.split, member.twin_of, scene, captions)


def _entry(form: JsonLayout, image: DescribedImage, root: Path) -> dict[str, Any]:
    """The annotation of one image."""
    captions = [caption.text for caption in image.captions]
    path = image.path.relative_to(root / IMAGES).as_posix()
    entry: dict[str, Any] = {"split": image.split, "captions": captions, form.image_key: path}
    if form.has_tokens:
        entry["processed_tokens"] = [re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower()) for text in captions]
    return {**entry, "id": image.person_id}
