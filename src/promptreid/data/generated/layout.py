"""Writes a generated data set to disk in CUHK-PEDES' layout."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from promptreid.data.generated.camera import CAMERAS, photograph
from promptreid.data.generated.captions import describe
from promptreid.data.generated.person import Person, draw_person
from promptreid.errors import DatasetError

GENERATOR_VERSION = 2
_STAMP = "generated.json"


def write_generated(
    root: str | Path,
    *,
    num_identities: tuple[int, int, int] = (300, 60, 200),
    images_per_identity: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write drawn pedestrians with captions to `root`, laid out as CUHK-PEDES is.

    The pictures are drawings, not photographs, and no figure measured on them says anything about CUHK-PEDES. A
    complete set written by the same arguments is used again. Everything is written to a hidden folder beside `root`
    first and renamed at the end, so `root` never holds half a data set.

    Args:
        root: Folder to write: `imgs/<camera>/*.jpg`, `reid_raw.json`.
        num_identities: Persons in the training, validation and test split.
        images_per_identity: Pictures of each person, two captions each.
        seed: Everything is drawn from it.
        progress: Show a progress bar.

    Returns:
        `root` as a `Path`.

    Raises:
        DatasetError: `root` holds something else, or a generated set that has lost files.
        ValueError: A count is not positive, there are not three of them, or the seed is negative.
    """
    root = Path(root)
    _check_arguments(num_identities, images_per_identity, seed)
    wanted: dict[str, Any] = {
        "generator_version": GENERATOR_VERSION,
        "num_identities": list(num_identities),
        "images_per_identity": images_per_identity,
        "seed": seed,
    }
    if _holds(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        records = _write_images(scratch, num_identities, images_per_identity, seed, progress)
        (scratch / "reid_raw.json").write_text(json.dumps(records), encoding="utf-8")
        (scratch / _STAMP).write_text(json.dumps(wanted), encoding="utf-8")
        scratch.chmod(0o755)
        os.replace(scratch, root)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return root


def _check_arguments(num_identities: tuple[int, int, int], images_per_identity: int, seed: int) -> None:
    if len(num_identities) != 3 or min(num_identities) < 1 or images_per_identity < 1:
        raise ValueError(
            f"num_identities is {num_identities} and images_per_identity {images_per_identity}; expected three counts "
            "(train, val, test) and one, each at least 1"
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")


def _holds(root: Path, wanted: dict[str, Any]) -> bool:
    """Whether `root` is already this data set; anything else there is refused."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    stamp = root / _STAMP
    try:
        found = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else None
    except (OSError, ValueError):
        found = None
    if found == wanted:
        _check_complete(root)
        return True
    raise DatasetError(
        f"{root} already holds "
        + ("something that is not a generated data set" if found is None else f"a data set generated with {found}")
        + f"; choose another folder, or delete it to write one with {wanted}"
    )


def _check_complete(root: Path) -> None:
    """Refuse a set whose files were deleted after it was written."""
    annotation = root / "reid_raw.json"
    paths = [annotation]
    if annotation.is_file():
        records = json.loads(annotation.read_text(encoding="utf-8"))
        paths = [root / "imgs" / record["file_path"] for record in records]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"the generated data set in {root} has lost {len(missing)} of its files, such as {missing[0]}; "
            "delete the folder to write it again"
        )


def _write_images(
    root: Path, num_identities: tuple[int, int, int], images_per_identity: int, seed: int, progress: bool
) -> list[dict[str, Any]]:
    for camera in CAMERAS:
        (root / "imgs" / camera.name).mkdir(parents=True)
    splits = [name for name, count in zip(("train", "val", "test"), num_identities, strict=True) for _ in range(count)]
    records: list[dict[str, Any]] = []
    people: set[Person] = set()
    bar = tqdm(splits, desc="drawing pedestrians", unit="person", disable=not progress, leave=False)
    for person_id, split in enumerate(bar, start=1):
        random = np.random.default_rng([seed, person_id])
        person = draw_person(random)
        while person in people:
            person = draw_person(random)
        people.add(person)
        for index in range(images_per_identity):
            records.append(_write_image(root, random, person, person_id, index, split))
    return records


def _write_image(
    root: Path, random: np.random.Generator, person: Person, person_id: int, index: int, split: str
) -> dict[str, Any]:
    camera = CAMERAS[int(random.integers(len(CAMERAS)))]
    view = camera.views[int(random.integers(len(camera.views)))]
    path = f"{camera.name}/{person_id:05d}_{index}.jpg"
    (root / "imgs" / path).write_bytes(photograph(random, person, camera, view))
    captions = [describe(random, person, view) for _ in range(2)]
    return {
        "split": split,
        "captions": captions,
        "file_path": path,
        "processed_tokens": [caption.lower().replace(",", "").replace(".", "").split() for caption in captions],
        "id": person_id,
    }
