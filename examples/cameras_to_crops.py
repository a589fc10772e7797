"""Cut people out of a camera's frames, by the boxes of a detector or tracker, into a folder that can be searched.

    python examples/cameras_to_crops.py FRAMES BOXES crops/gate
    promptreid index crops --output gallery

FRAMES is a folder of images. BOXES is a MOTChallenge text file (.txt: frame, track, left, top, width, height,
confidence, …; the frame's number is in the image's name) or a COCO file (.json). Give each camera its own
folder: searches can be limited to it, `--where folder=gate`.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from PIL import Image

EVERY = 10  # frames: neighbouring ones show the same
SMALLEST = (48, 16)  # height and width in pixels; smaller crops show too little
PERSON = "person"  # the category in COCO files
PEDESTRIAN = "1"  # the class in MOTChallenge's ground truth


class Box(NamedTuple):
    """A person in a frame; pixels from the upper left corner, which is (0, 0)."""

    frame: str  # the image's name, or its number
    person: str
    left: float
    top: float
    width: float
    height: float


def mot_boxes(path: Path) -> Iterator[Box]:
    """Boxes of a MOTChallenge file, which counts from 1; without those that it marks as ignored or as no pedestrian."""
    with path.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.reader(stream, skipinitialspace=True), start=1):
            if not row:
                continue
            try:
                left, top, width, height = numbers_of(row[2:6])
                frame, confidence = int(row[0]), float(row[6]) if len(row) > 6 else 1.0
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: {error}; expected frame,track,left,top,width,height"
                ) from error
            is_other = len(row) == 9 and row[7] != PEDESTRIAN  # only the ground truth has nine columns
            if confidence != 0 and not is_other and (frame - 1) % EVERY == 0:
                yield Box(str(frame), track_of(row[1]) or f"line{number}", left - 1, top - 1, width, height)


def coco_boxes(path: Path) -> Iterator[Box]:
    """Boxes of the persons in a COCO file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"images", "categories", "annotations"} <= content.keys():
        raise ValueError(
            f"{path} has no images, categories and annotations, as COCO's annotations do; put a detector's list of "
            "results into such a file"
        )
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        persons = {category["id"] for category in content["categories"] if category["name"] == PERSON}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: every image needs an id and a file_name, every category an id and a name") from error
    for number, found in enumerate(content["annotations"], start=1):
        try:
            if found["category_id"] in persons and not found.get("iscrowd"):
                person = track_of(found.get("track_id")) or str(found.get("id", f"annotation{number}"))
                yield Box(names[found["image_id"]], person, *numbers_of(found["bbox"]))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path}, annotation {number} from the top: expected a category_id, the image_id of an image, and a "
                "bbox of four numbers"
            ) from error


def track_of(given: object) -> str | None:
    """The track as text; none where there is nothing or -1, as a detector that knows no tracks writes."""
    track = "" if given is None else str(given).strip()
    try:
        return track if track and float(track) >= 0 else None
    except ValueError:  # a name
        return track


def numbers_of(box: Iterable[float | str]) -> tuple[float, float, float, float]:
    """Left, top, width and height."""
    left, top, width, height = map(float, box)
    if not all(map(isfinite, (left, top, width, height))):
        raise ValueError("a number of the box is not finite")
    return left, top, width, height


def cut(frames: Path, boxes: Iterator[Box], crops: Path) -> int:
    """Write `NAME_PERSON.jpg` for each box that is large enough; return how many."""
    images = {path.name: path for path in sorted(frames.iterdir()) if path.is_file()}
    numbered = {str(int(digits[-1])): path for name, path in images.items() if (digits := re.findall(r"\d+", name))}
    crops.mkdir(parents=True, exist_ok=True)
    written: set[Path] = set()
    for box in boxes:
        path = images.get(Path(box.frame).name) or numbered.get(box.frame)
        if path is None:
            raise FileNotFoundError(f"{frames} has no image for frame {box.frame}; are the boxes of another video?")
        with Image.open(path) as image:
            left, top = max(0, round(box.left)), max(0, round(box.top))
            right = min(image.width, round(box.left + box.width))
            bottom = min(image.height, round(box.top + box.height))
            if bottom - top >= SMALLEST[0] and right - left >= SMALLEST[1]:
                target = crops / f"{path.stem}_{box.person}.jpg"
                if target in written:
                    raise ValueError(f"frame {path.name} has two boxes of person {box.person}; one crop would be lost")
                image.convert("RGB").crop((left, top, right, bottom)).save(target, quality=95)
                written.add(target)
    return len(written)


def main() -> None:
    """Read the boxes, cut, count."""
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    frames, boxes, crops = map(Path, sys.argv[1:])
    read = {".txt": mot_boxes, ".json": coco_boxes}.get(boxes.suffix)
    if read is None:
        raise SystemExit(f"error: {boxes} ends in {boxes.suffix or 'nothing'}, expected .txt (MOT) or .json (COCO)")
    print(f"{cut(frames, read(boxes), crops)} crops in {crops}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
