"""How the three data sets lay out annotations and pictures on disk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Layout = Literal["CUHK-PEDES", "ICFG-PEDES", "RSTPReid"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Format:
    """One data set's habits.

    Attributes:
        annotation: Name of the annotation file.
        path_key: What a record calls the picture's path.
        folder: Sub-folder of a picture below `imgs/`; `{camera}` and `{split}` stand for the picture's own.
        first_id: The smallest identity number.
        captions: Sentences an image.
        has_val: Whether there is a validation split.
        has_tokens: Whether records hold `processed_tokens`.
    """

    annotation: str
    path_key: str
    folder: str
    first_id: int
    captions: int
    has_val: bool
    has_tokens: bool

    def picture_path(self, *, camera: str, split: str, number: int, index: int) -> str:
        """Path below `imgs/` of the picture `index` of person `number` (counted from 0)."""
        name = f"{number + self.first_id:05d}_{index}.jpg"
        if not self.folder:  # all pictures in one folder: the camera goes into the name
            name = f"{number + self.first_id:05d}_{camera}_{index}.jpg"
        return f"{self.folder.format(camera=camera, split=split)}{name}"

    def record(self, *, split: str, captions: Sequence[str], path: str, number: int) -> dict[str, Any]:
        """The annotation of one picture."""
        entry: dict[str, Any] = {"split": split, "captions": list(captions), self.path_key: path}
        if self.has_tokens:
            entry["processed_tokens"] = [re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower()) for text in captions]
        return {**entry, "id": number + self.first_id}


FORMATS: dict[Layout, Format] = {
    "CUHK-PEDES": Format("reid_raw.json", "file_path", "{camera}/", 1, 2, True, True),
    "ICFG-PEDES": Format("ICFG-PEDES.json", "file_path", "{split}/", 0, 1, False, True),
    "RSTPReid": Format("data_captions.json", "img_path", "", 0, 2, True, False),
}
