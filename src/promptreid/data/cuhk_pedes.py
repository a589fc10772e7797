"""Loads CUHK-PEDES (Li et al. 2017, Person Search with Natural Language Description, arXiv 1702.05729)."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, cast

from promptreid.data.records import ImageRecord, ReIDDataset, split_records
from promptreid.errors import DatasetError

ANNOTATION = "reid_raw.json"
FOLDER = "CUHK-PEDES"
SPLITS = ("train", "val", "test")


def load_cuhk_pedes(root: str | Path) -> ReIDDataset:
    """Read CUHK-PEDES' annotation and check that every image is there.

    Args:
        root: The folder that holds `reid_raw.json` and `imgs/`, or its parent.

    Returns:
        The data set; identities keep the annotation's numbers.

    Raises:
        DatasetError: The folder, the annotation or images are missing, or a record is malformed; the message names
            the file, the record and the mend.

    Example:
        >>> dataset = load_cuhk_pedes("data/CUHK-PEDES")  # doctest: +SKIP
        >>> dataset.train.num_identities  # doctest: +SKIP
        11003
    """
    folder = _find_folder(Path(root))
    annotation = folder / ANNOTATION
    entries = _read_json(annotation)
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f"{annotation} holds {type(entries).__name__}, expected a list of records that is not empty")
    listed = cast("list[Any]", entries)
    records = [_read_record(annotation, folder / "imgs", index, entry) for index, entry in enumerate(listed)]
    _check_images(folder / "imgs", records)
    return split_records(FOLDER, folder, records)


def _find_folder(root: Path) -> Path:
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give the folder that holds {ANNOTATION} and imgs/")
    for folder in (root, root / FOLDER):
        if (folder / ANNOTATION).is_file():
            if not (folder / "imgs").is_dir():
                raise DatasetError(f"{folder} has {ANNOTATION} but no folder imgs/; unpack the images there")
            return folder
    if any((folder / "caption_all.json").is_file() for folder in (root, root / FOLDER)):
        raise DatasetError(
            f"{root} has caption_all.json, which has no splits. Ask the data set's authors for {ANNOTATION}, which "
            "comes with the same archive, and put it beside imgs/"
        )
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DatasetError(
        f"{root} has no {ANNOTATION} (found: {found}). Give CUHK-PEDES' folder, which holds {ANNOTATION} and imgs/, "
        "or its parent; the data set is to be had from its authors on request"
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); copy it again from the archive") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}); copy it again from the archive") from error


def _read_record(annotation: Path, images: Path, index: int, entry: Any) -> ImageRecord:
    def refuse(what: str) -> DatasetError:
        return DatasetError(f"{annotation}, record {index}: {what}")

    if not isinstance(entry, dict):
        raise refuse(f"is {type(entry).__name__}, expected an object with split, captions, file_path and id")
    fields = cast("dict[str, Any]", entry)
    missing = [key for key in ("split", "captions", "file_path", "id") if key not in fields]
    if missing:
        raise refuse(f"has no {', '.join(missing)}")
    split, captions, file_path, person_id = (fields[key] for key in ("split", "captions", "file_path", "id"))
    if split not in SPLITS:
        raise refuse(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if not isinstance(person_id, int) or isinstance(person_id, bool):
        raise refuse(f"id is {person_id!r}, expected an integer")
    if not isinstance(file_path, str) or not file_path.strip("/"):
        raise refuse(f"file_path is {file_path!r}, expected a path below imgs/")
    pure = PurePosixPath(file_path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in file_path:
        raise refuse(f"file_path {file_path!r} leaves the folder imgs/")
    fault = _caption_fault(captions)
    if fault:
        raise refuse(fault)
    return ImageRecord(images / pure, person_id, tuple(captions), split)


def _caption_fault(captions: Any) -> str | None:
    """What is wrong with a record's captions, or `None`."""
    if not isinstance(captions, list) or not captions:
        return "captions is not a list of sentences, or is empty"
    for place, caption in enumerate(cast("list[Any]", captions)):
        if not isinstance(caption, str) or not caption.strip():
            return f"caption {place} is {caption!r}, expected a sentence"
    return None


def _check_images(images: Path, records: list[ImageRecord]) -> None:
    """Refuse missing images before training, with the sub-folders they are missing from."""
    missing = [record.path for record in records if not record.path.is_file()]
    if not missing:
        return
    folders = Counter(str(path.parent.relative_to(images)) for path in missing)
    counts = ", ".join(f"{folder}: {count}" for folder, count in sorted(folders.items()))
    first = ", ".join(str(path.relative_to(images)) for path in missing[:10])
    raise DatasetError(
        f"{len(missing)} of {len(records)} images are missing below {images} ({counts}); first: {first}. "
        "Unpack every archive of the data set there"
    )
