"""How datasets lie on disk: the three published ones as a table, and what another layout has to offer."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from promptreid.data.annotation import Annotation, id_remark, parse_entry, shown_value
from promptreid.data.image_files import found_beside_images
from promptreid.data.problems import Problem, RepeatedKeyError, repeated_keys, without_repeats
from promptreid.data.records import (
    ANNOTATIONS,
    SPLITS,
    ImageRecord,
    PublishedCounts,
    SplitCounts,
    is_synthetic,
    with_parent,
)
from promptreid.errors import DatasetError

IMAGES = "imgs"

# One file for each split, with an image's path under this key for every dataset, as TBPS-CLIP distributes them:
# https://github.com/Flame-Chasers/TBPS-CLIP/blob/main/misc/caption_dataset.py
SPLIT_FILES = {split: f"{split}_reid.json" for split in SPLITS}
SPLIT_FILES_KEY = "file_path"

ReadEntries = Callable[[Path], list[Any]]


def read_entries(path: Path) -> list[Any]:
    """The records of a JSON annotation, well-formed or not.

    Raises:
        DatasetError: The file is not UTF-8, not JSON, or not a list of records that is not empty.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is not valid JSON"
        what = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else what
        raise DatasetError(f"{path} {what} ({error}); copy it again from the archive") from error
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{path} holds {type(entries).__name__}, expected a list of records that is not empty")
    return cast("list[Any]", entries)


class Layout(Protocol):
    """How one kind of dataset is read; pass your own object to `load_dataset(root, layout=...)`."""

    def read(self, root: Path) -> Annotation:
        """Read the annotation in the folder `root`; `Annotation.of_entries` takes what `parse_entry` makes of it."""
        ...


@dataclass(frozen=True)
class JsonLayout:
    """A dataset whose annotation is a JSON list of records, or one for each split, with the images in `imgs/` beside.

    Attributes:
        name: The usual name, and that of the folder.
        annotations: Names under which users hold the annotation file, the usual one first.
        image_key: The field of a record that holds the image's path.
        published: Counts of a complete copy, if they are known.
        image_dir: The folder that the images' paths begin at; `None` for `imgs/` beside the annotation or its folder.
        top_folders: The first folders of the images' paths, by which an annotation in split files is recognised; an
            empty name where the images lie in no folder.
        image_folder: Sub-folder of an image below `imgs/`, for `{camera}` and `{split}`; empty if all lie in one.
        camera_pattern: Where the camera or the source is in an image's path, as a regular expression whose first
            group it is; empty if it is not in the path. A record's own field `camera` comes first.
        first_id: The smallest identity number.
        captions_per_image: Sentences that most images have.
        has_tokens: Whether records hold `processed_tokens`.
        useless_annotation: Name of another file that users hold and that cannot be used.
        useless_reason: Why not, and what to do.
        folders: Other names of the folder.
        read_splits: Whether the splits that records or files name are read; without, no record has one.
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
    image_dir: Path | None = None
    top_folders: tuple[str, ...] = ()
    camera_pattern: str = ""
    read_splits: bool = True

    @property
    def has_validation(self) -> bool:
        """Whether the dataset has a validation split."""
        return self.published is None or "val" in self.published.splits

    def find(self, root: Path) -> list[Path]:
        """The annotation files below `root`: one, or one for each split that is there; empty if there are none.

        They may lie in `root`, in the dataset's folder in `root`, or in a folder `annotations` of either.
        """
        for folder in self._folders(root):
            for name in self.annotations:
                if (folder / name).is_file():
                    return [folder / name]
            files = [folder / name for name in SPLIT_FILES.values() if (folder / name).is_file()]
            if files:
                return files
        return []

    def claims(self, files: Sequence[Path], read: ReadEntries) -> bool:
        """Whether these annotation files are of this dataset, and not of another one whose files have the names.

        Args:
            files: What `find` found.
            read: `read_entries`, or what remembers its answers for one who asks several layouts.
        """
        if not files or files[0].name in self.annotations:
            return bool(files)
        entries = read(files[0])
        records = [cast("dict[str, Any]", entry) for entry in entries[:100] if isinstance(entry, dict)]
        found = [record.get(SPLIT_FILES_KEY, record.get(self.image_key, "")) for record in records]
        paths = [str(path) for path in found if not isinstance(path, RepeatedKeyError)]
        tops = {path.partition("/")[0] if "/" in path else "" for path in paths}
        return bool(tops) and tops <= set(self.top_folders)

    def holds_useless_annotation(self, root: Path) -> bool:
        """Whether the file that cannot be used is there."""
        name = self.useless_annotation
        return name is not None and any((folder / name).is_file() for folder in self._folders(root))

    def read(self, root: Path, *, read: ReadEntries = read_entries) -> Annotation:
        """Read the annotation below `root`; `read` is as for `claims`.

        Raises:
            DatasetError: There is none, it is not a JSON list, or the folder of images is missing.
        """
        files = self._find_or_explain(root)
        images = self._images_beside(files[0])
        entries, starts = _read_files(files, read)
        parse = self._parser(images)
        annotation = Annotation.of_entries(
            (parse(entry, split) for entry, split in entries),
            name=self.name,
            path=files[0],
            images=images,
            published=None if is_synthetic(files[0].parent) else self.published,
            path_key=self.image_key,
            files=starts,
        )
        remarks = id_remark([entry for entry, _ in entries], annotation.near)
        located = [Problem(remark.kind, f"{files[0]}: {remark.message}") for remark in remarks]
        return replace(annotation, problems=[*annotation.problems, *located])

    def _parser(self, images: Path) -> Callable[[Any, str | None], ImageRecord | list[Problem]]:
        """The function that makes a record of an entry and its file's split; `None` if the entry has the split."""

        def parse_with_camera(entry: Any, split: str | None) -> ImageRecord | list[Problem]:
            record = parse(entry, split)
            if not self.camera_pattern or not isinstance(record, ImageRecord) or record.camera is not None:
                return record
            found = re.search(self.camera_pattern, record.path.relative_to(images).as_posix())
            return record if found is None else replace(record, camera=found[1])

        def parse(entry: Any, split: str | None) -> ImageRecord | list[Problem]:
            if split is None or not isinstance(entry, dict):
                return parse_entry(entry, images, image_key=self.image_key, read_split=self.read_splits)
            fields = cast("dict[str, Any]", entry)
            key = self.image_key if self.image_key in fields else SPLIT_FILES_KEY
            stated = fields.get("split", split)
            if stated != split and self.read_splits:
                what = f"split is {shown_value(stated)}, in a file of the {split} split"
                return repeated_keys(fields, ["split"]) or [Problem("record", what)]
            return parse_entry({**fields, "split": split}, images, image_key=key, read_split=self.read_splits)

        return parse_with_camera

    def _images_beside(self, annotation: Path) -> Path:
        """The folder of images that belongs to an annotation file."""
        folder = annotation.parent
        places = [self.image_dir] if self.image_dir is not None else [each / IMAGES for each in with_parent(folder)]
        found = next((place for place in places if place.is_dir()), None)
        if found is not None:
            return found
        if self.image_dir is not None:
            raise DatasetError(f"there is no folder of images {self.image_dir}; give the one that the paths begin at")
        raise DatasetError(
            f"{folder} has {annotation.name} but no folder {IMAGES}/; unpack the images there, or give the folder that "
            "the paths begin at: image_dir= (on the command line --image-dir)"
        )

    def _folders(self, root: Path) -> Sequence[Path]:
        folders = (root, *(root / name for name in dict.fromkeys((self.name, *self.folders))))
        return [place for folder in folders for place in (folder, folder / ANNOTATIONS)]

    def _find_or_explain(self, root: Path) -> list[Path]:
        names = " or ".join(self.annotations)
        if not root.is_dir():
            raise DatasetError(f"there is no folder {root}; give the folder that holds {names} and {IMAGES}/")
        files = self.find(root)
        if files:
            return files
        if self.holds_useless_annotation(root):
            raise DatasetError(f"{root} has {self.useless_annotation}, {self.useless_reason}")
        raise DatasetError(
            f"{root} has no {names} (found: {found_beside_images(root)}). Give the folder of {self.name}, which "
            f"holds {names} and {IMAGES}/, or its parent; the authors provide the dataset on request"
        )


def _read_files(
    files: Sequence[Path], read: ReadEntries
) -> tuple[list[tuple[Any, str | None]], list[tuple[int, Path]]]:
    """The entries of annotation files, each with the split that its file is for, and where each file begins."""
    splits = {name: split for split, name in SPLIT_FILES.items()}
    entries: list[tuple[Any, str | None]] = []
    starts: list[tuple[int, Path]] = []
    for file in files:
        starts.append((len(entries), file))
        entries += [(entry, splits.get(file.name)) for entry in read(file)]
    return entries, starts if len(files) > 1 else []


CUHK_PEDES = JsonLayout(
    name="CUHK-PEDES",
    annotations=("reid_raw.json",),
    image_key="file_path",
    image_folder="{camera}/",
    top_folders=("cam_a", "cam_b", "CUHK01", "CUHK03", "Market", "test_query", "train_query"),
    camera_pattern=r"^([^/]+)/",
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
    top_folders=("train", "test"),
    camera_pattern=r"/\d+_\d+_(\d+)_[^/]*$",  # MSMT17's names: person, image, camera, day
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
    top_folders=("",),
    camera_pattern=r"_(c\d+|cam_[a-z]+)_[^/]*$",
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
