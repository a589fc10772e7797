"""Loads your own data: a folder of pictures with a table of captions and persons."""

import re
from pathlib import Path

from promptreid.data.annotation import Annotation
from promptreid.data.benchmark_layout import found_in
from promptreid.data.problems import Problem
from promptreid.data.records import ImageRecord, ReIDDataset
from promptreid.data.structure import build_dataset
from promptreid.data.table import COLUMNS, Row, read_table
from promptreid.errors import DatasetError

TABLE_ENDINGS = (".csv", ".jsonl")


def load_folder(root: str | Path, *, table: str | Path | None = None) -> ReIDDataset:
    """Read a folder of pictures with a CSV or JSONL table of `image, caption, person_id, split`.

    One row is one caption of one image; an image with several captions has several rows. Paths are relative to the
    table. Persons may be numbers or names; names are numbered in alphabetical order. A split that no row names is
    empty, so a table of test images alone can be evaluated.

    Args:
        root: The folder.
        table: The table, if there are several in the folder.

    Returns:
        The data set.

    Raises:
        DatasetError: There is no table, a row is malformed, or an image is missing; the message names file and line.

    Example:
        >>> dataset = load_folder("my-crops")  # doctest: +SKIP
        >>> print(dataset.summary())  # doctest: +SKIP
        my-crops: train 40 persons, 120 images, 120 captions; test 10 persons, 30 images, 30 captions
    """
    return build_dataset(read_folder(root, table=table))


def find_tables(root: Path) -> list[Path]:
    """The tables in a folder."""
    return sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_ENDINGS and path.is_file())


def read_folder(root: str | Path, *, table: str | Path | None = None) -> Annotation:
    """Read the table of a folder.

    Raises:
        DatasetError: There is no table, or more than one and none is named, or it cannot be read.
    """
    path = _find_table(Path(root), table)
    rows, faults, count = read_table(path)
    problems = [Problem(fault.kind, f"{path}, line {line}: {fault.what}", line) for line, fault in faults]
    records, places = _merge(rows, path, problems)
    return Annotation(
        name=path.parent.resolve().name,
        root=path.parent,
        path=path,
        images=path.parent,
        records=records,
        places=places,
        problems=problems,
        num_entries=count,
        published=None,
        required=(),
        place_name="line",
        path_key="image",
    )


def _find_table(root: Path, table: str | Path | None) -> Path:
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give the folder of pictures that holds the table")
    if table is not None:
        path = Path(table) if Path(table).is_absolute() else root / table
        if not path.is_file() or path.suffix.lower() not in TABLE_ENDINGS:
            raise DatasetError(f"there is no table {path}; give a .csv or .jsonl file with {', '.join(COLUMNS)}")
        return path
    tables = find_tables(root)
    if len(tables) == 1:
        return tables[0]
    if tables:
        names = ", ".join(path.name for path in tables)
        raise DatasetError(f"{root} has {len(tables)} tables ({names}); name one of them as table")
    raise DatasetError(
        f"{root} has no .csv or .jsonl file (found: {found_in(root)}); write a table with the columns "
        f"{', '.join(COLUMNS)}, one row for each image and caption"
    )


def _merge(rows: list[Row], path: Path, problems: list[Problem]) -> tuple[list[ImageRecord], list[int]]:
    """One record an image, with the captions of all its rows; a row that contradicts an earlier one is a problem."""
    numbers = _number_persons(rows)
    first: dict[tuple[str, str, str], Row] = {}
    captions: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        key = (str(row.image), row.person, row.split)
        sentences = captions.setdefault(key, [])
        before = first.setdefault(key, row)
        if row.caption in sentences:
            what = f"image {str(row.image)!r} has this very caption in an earlier line, {before.line} or below"
            problems.append(Problem("duplicate", f"{path}, line {row.line}: {what}", row.line, str(row.image)))
        else:
            sentences.append(row.caption)
    records = [
        ImageRecord(path.parent / row.image, numbers[row.person], tuple(captions[key]), row.split)
        for key, row in first.items()
    ]
    return records, [row.line for row in first.values()]


def _number_persons(rows: list[Row]) -> dict[str, int]:
    """Identities as numbers: those that are written, if all are, else places in the alphabet."""
    names = sorted({row.person for row in rows})
    if all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(names)}
