"""How datasets lie on disk: the three published ones as a table, and what another layout has to offer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from promptreid.data.annotation import Annotation, parse_entry
from promptreid.data.records import PublishedCounts, SplitCounts
from promptreid.errors import DatasetError

IMAGES = "imgs"

SYNTHETIC_STAMP = "generated.json"  # beside the annotation of a synthetic copy, whose counts are not the published ones


class Layout(Protocol):
    """How one kind of dataset is read; an object of your own can be given to `load_dataset(root, layout=...)`."""

    def read(self, root: Path) -> Annotation:
        """Read the annotation in the folder `root`; `Annotation.of_entries` takes what `parse_entry` makes of it."""
        ...


@dataclass(frozen=True)
class JsonLayout:
    """A dataset whose annotation is a JSON list of records, with the images in `imgs/` beside it.

    Attributes:
        name: The usual name, and that of the folder.
        annotations: Names under which users hold the annotation file, the usual one first.
        image_key: The field of a record that holds the image's path.
        published: Counts of a complete copy, if they are known.
        image_folder: Sub-folder of an image below `imgs/`, for `{camera}` and `{split}`; empty if all lie in one.
        first_id: The smallest identity number.
        captions_per_image: Sentences that most images have.
        has_tokens: Whether records hold `processed_tokens`.
        useless_annotation: Name of another file that users hold and that cannot be used.
        useless_reason: Why not, and what to do.
        folders: Other names of the folder.
    """

    name: str
    annotations: tuple[str, ...]
    image_key: str
    published: PublishedCounts | None = None
    image_folder: str = ""
    first_id: int = 0
    captions_per_image: int = 2
    has_tokens: bool = False
    useless_annotation: str | None = None
    useless_reason: str = ""
    folders: tuple[str, ...] = ()

    @property
    def has_validation(self) -> bool:
        """Whether the dataset has a validation split."""
        return self.published is None or "val" in self.published.splits

    def find(self, root: Path) -> Path | None:
        """The annotation file in `root`, or in the dataset's folder in `root`; `None` if there is none."""
        paths = (folder / name for folder in self._folders(root) for name in self.annotations)
        return next((path for path in paths if path.is_file()), None)

    def holds_useless_annotation(self, root: Path) -> bool:
        """Whether the file that cannot be used is there."""
        name = self.useless_annotation
        return name is not None and any((folder / name).is_file() for folder in self._folders(root))

    def read(self, root: Path) -> Annotation:
        """Read the annotation below `root`.

        Raises:
            DatasetError: There is none, it is not a JSON list, or the folder of images is missing.
        """
        path = self._find_or_explain(root)
        images = path.parent / IMAGES
        if not images.is_dir():
            raise DatasetError(f"{path.parent} has {path.name} but no folder {IMAGES}/; unpack the images there")
        return Annotation.of_entries(
            (parse_entry(entry, images, image_key=self.image_key) for entry in read_entries(path)),
            name=self.name,
            path=path,
            images=images,
            published=None if (path.parent / SYNTHETIC_STAMP).is_file() else self.published,
            path_key=self.image_key,
        )

    def _folders(self, root: Path) -> Sequence[Path]:
        return (root, *(root / name for name in dict.fromkeys((self.name, *self.folders))))

    def _find_or_explain(self, root: Path) -> Path:
        names = " or ".join(self.annotations)
        if not root.is_dir():
            raise DatasetError(f"there is no folder {root}; give the folder that holds {names} and {IMAGES}/")
        path = self.find(root)
        if path is not None:
            return path
        if self.holds_useless_annotation(root):
            raise DatasetError(f"{root} has {self.useless_annotation}, {self.useless_reason}")
        raise DatasetError(
            f"{root} has no {names} (found: {found_in(root)}). Give the folder of {self.name}, which holds {names} and "
            f"{IMAGES}/, or its parent; the dataset is to be had from its authors on request"
        )


def found_in(folder: Path) -> str:
    """The first names in a folder, for an error message."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def read_entries(path: Path) -> list[Any]:
    """The records of a JSON annotation, well-formed or not.

    Raises:
        DatasetError: The file is not UTF-8, not JSON, or not a list of records that is not empty.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is not valid JSON"
        what = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else what
        raise DatasetError(f"{path} {what} ({error}); copy it again from the archive") from error
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{path} holds {type(entries).__name__}, expected a list of records that is not empty")
    return cast("list[Any]", entries)


CUHK_PEDES = JsonLayout(
    name="CUHK-PEDES",
    annotations=("reid_raw.json",),
    image_key="file_path",
    image_folder="{camera}/",
    first_id=1,
    has_tokens=True,
    published=PublishedCounts(
        splits={
            "train": SplitCounts(11_003, 34_054, 68_126),
            "val": SplitCounts(1_000, 3_078, 6_158),
            "test": SplitCounts(1_000, 3_074, 6_156),
        },
        other_copies={"train": (SplitCounts(11_003, 34_054, 68_108),)},
    ),
    useless_annotation="caption_all.json",
    useless_reason=(
        "which has no splits. Ask the dataset's authors for reid_raw.json, which comes with the same archive, and "
        "put it beside imgs/"
    ),
)

ICFG_PEDES = JsonLayout(
    name="ICFG-PEDES",
    annotations=("ICFG-PEDES.json", "ICFG_PEDES.json"),
    image_key="file_path",
    image_folder="{split}/",
    captions_per_image=1,
    has_tokens=True,
    published=PublishedCounts(
        splits={"train": SplitCounts(3_102, 34_674, 34_674), "test": SplitCounts(1_000, 19_848, 19_848)},
        other_copies={},
    ),
    folders=("ICFG_PEDES",),
)

RSTPREID = JsonLayout(
    name="RSTPReid",
    annotations=("data_captions.json",),
    image_key="img_path",
    published=PublishedCounts(
        splits={
            "train": SplitCounts(3_701, 18_505, 37_010),
            "val": SplitCounts(200, 1_000, 2_000),
            "test": SplitCounts(200, 1_000, 2_000),
        },
        other_copies={},
    ),
)

PUBLISHED: dict[str, JsonLayout] = {layout.name: layout for layout in (CUHK_PEDES, ICFG_PEDES, RSTPREID)}
