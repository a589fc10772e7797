"""Reads your own data: a folder of images with a table of captions and persons, or Hugging Face's imagefolder."""

import csv
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, cast

from promptreid.data.annotation import (
    SPLIT_NAMES,
    Annotation,
    as_integer,
    camera_name,
    camera_problems,
    caption_problem,
    path_problem,
    shown_value,
    split_problem,
    two_cameras,
)
from promptreid.data.image_files import found_beside_images
from promptreid.data.problems import Problem, repeated_keys, without_repeats
from promptreid.data.records import ImageRecord
from promptreid.errors import DatasetError, missing_extra

COLUMNS = ("image", "caption", "person_id", "split")

# What Hugging Face's imagefolder calls the columns.
_ALSO = {"file_name": "image", "text": "caption", "label": "person_id"}

TABLE_ENDINGS = (".csv", ".jsonl")

# The table of an imagefolder, in the folder itself or in one for each split, whose name tells which:
# https://huggingface.co/docs/datasets/image_dataset#imagefolder
METADATA = tuple(f"metadata{ending}" for ending in (*TABLE_ENDINGS, ".parquet"))


@dataclass(frozen=True)
class Row:
    """One line of a table, by the number of its first one in the file: an image with one of its captions.

    `person` is the identity: a whole number, or a name; `split` is empty where the table does not say. A table may have
    a further column `camera`.
    """

    line: int
    image: PurePosixPath
    caption: str
    person: str
    split: str
    camera: str | None = None


@dataclass(frozen=True)
class TableLayout:
    """A folder of images with a table of captions and persons, or with one for each split.

    Attributes:
        table: The table, by its path below the folder, if there are several in it.
        read_splits: Whether the splits that it names are read; without, no record has one.
    """

    table: str | Path | None = None
    read_splits: bool = True

    def read(self, root: Path) -> Annotation:
        """Read the table of a folder.

        Raises:
            DatasetError: There is no table, or more than one and none is named, or it cannot be read.
        """
        tables = [] if self.table is not None else find_split_tables(root)
        tables = tables or [(_find_table(root, self.table), "")]
        if self.table is None:
            _check_no_others(root, tables)
        folder = tables[0][0].parent if len(tables) == 1 and not tables[0][1] else root
        starts: list[tuple[int, Path]] = []
        rows: list[Row] = []
        problems: list[Problem] = []
        count = start = 0
        for path, split in tables:
            split = split or _split_of(path.parent, root)
            found, wrong, number = read_table(path, split=split, read_splits=self.read_splits)
            below = path.parent.relative_to(folder)
            starts.append((start, path))
            rows += [replace(row, line=start + row.line, image=below / row.image) for row in found]
            problems += [replace(each, position=start + (each.position or 0)) for each in wrong]
            count += number
            # One line more, or the last position of this table would be that before the first one of the next.
            start += 1 + max([*(row.line for row in found), *(each.position or 0 for each in wrong)])
        numbers, names = _number_persons(rows)
        records, num_rows = _merge(rows, numbers, folder, starts, problems)
        return Annotation(
            name=folder.resolve().name,
            path=tables[0][0],
            images=folder,
            records=records,
            positions=list(num_rows),
            problems=problems,
            num_entries=count,
            required=(),
            position_name="line",
            path_key="image",
            files=starts if len(starts) > 1 else (),
            num_rows={position: count for position, count in num_rows.items() if count > 1},
            names=names,
        )


def find_tables(root: Path) -> list[Path]:
    """The tables in a folder; hidden files are none, such as the `._people.csv` that a Mac writes beside a table."""
    shown = (path for path in root.iterdir() if not path.name.startswith("."))
    return sorted(path for path in shown if path.suffix.lower() in TABLE_ENDINGS and path.is_file())


def find_split_tables(root: Path) -> list[tuple[Path, str]]:
    """The tables of an imagefolder, each with the split that its folder is for; an empty one in the folder itself."""
    whole = _metadata_in(root)
    if whole or not root.is_dir():
        return [(path, "") for path in whole[:1]]
    folders = _split_folders(root)
    return [(path, _split_of(folder, root)) for folder in folders for path in _metadata_in(folder)]


def _metadata_in(folder: Path) -> list[Path]:
    return [folder / name for name in METADATA if (folder / name).is_file()]


def _split_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name.lower() in SPLIT_NAMES)


def _split_of(folder: Path, root: Path) -> str:
    """The split that a folder in `root` is for, however their paths are written, or an empty one."""
    if folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))  # not of other paths, whose links would be taken for folders
    return SPLIT_NAMES.get(folder.name.lower(), "") if folder.parent.resolve() == root.resolve() else ""


def read_table(path: Path, *, split: str = "", read_splits: bool = True) -> tuple[list[Row], list[Problem], int]:
    """Read a `.csv`, `.jsonl` or `.parquet` file.

    Args:
        path: The file.
        split: That of all rows, where the table has no such column.
        read_splits: Whether to read either; else rows have none.

    Returns:
        The well-formed rows, what is wrong with the others, and the number of rows.

    Raises:
        DatasetError: It cannot be read as a table at all: not UTF-8, no header, a column missing, or no rows.
        MissingExtraError: It is a Parquet file, and pyarrow is not installed.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    count = 0
    try:
        lines = list(lines_of(path))
        split = split if read_splits else ""
        unsplit = not read_splits or not any(isinstance(values, dict) and "split" in values for _, values in lines)
        for line, values in lines:
            count += 1
            for each in _one_caption_each(_with_our_names(values)):
                parsed = _parse(line, {**each, "split": split} if unsplit and isinstance(each, dict) else each, path)
                if isinstance(parsed, Row):
                    rows.append(parsed)
                else:
                    problems += [problem.located(f"{path}, line {line}:", line) for problem in parsed]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error
    if not count:
        raise DatasetError(f"{path} has no rows; expected one for each image and caption, with {', '.join(COLUMNS)}")
    return rows, problems, count


def _with_our_names(values: Any) -> Any:
    """A row whose columns have our names, where it has Hugging Face's."""
    if not isinstance(values, dict):
        return values
    fields = cast("dict[Any, Any]", values)
    return {_ALSO.get(name, name) if _ALSO.get(name) not in fields else name: value for name, value in fields.items()}


def _one_caption_each(values: Any) -> list[Any]:
    """A row once for each caption, where it has a list of them."""
    captions = cast("dict[Any, Any]", values).get("caption") if isinstance(values, dict) else None
    return (
        [{**values, "caption": caption} for caption in captions]
        if isinstance(captions, list) and captions
        else [values]
    )


def lines_of(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers of a table from 1, and what is there: fields, another JSON value, or the exception that JSON raised.

    JSON lines end with a line break and nowhere else: other separators, such as U+2028, are letters of a caption.
    """
    if path.suffix.lower() == ".parquet":
        yield from enumerate(_parquet_rows(path), start=1)
        return
    with path.open(encoding="utf-8-sig", newline="") as stream:
        if path.suffix.lower() == ".jsonl":
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    yield line, _json(text)
            return
        yield from _csv_rows(path, csv.reader(stream, strict=True))


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The first line of each row, and its fields as `csv.DictReader` gives them, which tells the last line only."""
    line = 1
    try:
        names = next(reader, [])
        _check_header(path, names)
        line = reader.line_num + 1
        for values in reader:
            if values:
                more = {None: values[len(names) :]} if len(values) > len(names) else {}
                yield line, dict(zip_longest(names, values[: len(names)])) | more
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(f"{path}, line {line}: not valid CSV ({error})") from error


def _parquet_rows(path: Path) -> list[Any]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise missing_extra(f"reading {path}", "pyarrow", "parquet") from error
    try:
        _check_repeats(path, parquet.read_schema(path).names)
        return parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise DatasetError(f"{path} is not a Parquet file ({error}); copy it again") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        return error


def _check_header(path: Path, found: list[str]) -> None:
    ours = {*found, *(_ALSO[name] for name in found if name in _ALSO)}
    missing = [name for name in COLUMNS[:-1] if name not in ours]
    if missing:
        hint = "; separate columns by commas" if len(found) == 1 and any(sign in found[0] for sign in ";\t") else ""
        raise DatasetError(
            f"{path}, line 1: the header is {', '.join(map(repr, found)) or 'missing'}, which has no "
            f"{', '.join(missing)}; expected the columns {', '.join(COLUMNS)}{hint}"
        )
    _check_repeats(path, found)


class _RepeatedColumnError(DatasetError):
    """A table of images whose header has a name twice."""


def _check_repeats(path: Path, names: list[str]) -> None:
    """Refuse two columns of one name, of which only one would be read; those that are not read may be anything."""
    read = (*COLUMNS, *(name for name, ours in _ALSO.items() if ours not in names), "camera")
    repeated = sorted({name for name in names if name in read and names.count(name) > 1})
    if repeated:
        raise _RepeatedColumnError(
            f"{path} has more than one column {', '.join(repeated)}; keep one of a name, and write one row for each "
            "caption of an image"
        )


def _parse(line: int, values: Any, path: Path) -> Row | list[Problem]:
    if not isinstance(values, dict):
        what = f"is not valid JSON ({values})" if isinstance(values, Exception) else f"is {type(values).__name__}"
        return [Problem("record", f"{what}, expected an object with {', '.join(COLUMNS)}")]
    fields = cast("dict[Any, Any]", values)
    if repeated := repeated_keys(fields, COLUMNS):
        return repeated
    problems: list[Problem] = []
    if None in fields:
        problems.append(Problem("record", f"has {len(fields[None])} values too many; quote captions that have commas"))
    missing = [key for key in COLUMNS if fields.get(key) is None]
    if missing:
        problems.append(Problem("record", f"has no {', '.join(missing)}"))
    found = (_field_problem(key, fields[key], path.parent) for key in COLUMNS if key not in missing)
    problems += [problem for problem in found if problem is not None]
    problems += camera_problems(fields.get("camera"))
    if problems:
        return problems
    image, caption, person, split = (fields[key] for key in COLUMNS)
    return Row(line, PurePosixPath(image), caption, _identity(person), split, camera_name(fields.get("camera")))


def _identity(person: Any) -> str:
    """The identity in one form: `7` for `007` and for the `7.0` of spreadsheets, `é` for `e` and its accent."""
    return str(as_integer(unicodedata.normalize("NFC", str(person)).strip()))


def _field_problem(key: str, value: Any, folder: Path) -> Problem | None:
    if key == "image":
        return path_problem("image", value, folder)
    if key == "split":
        return split_problem(value) if value else None
    if key == "caption":
        return caption_problem(value)
    known = isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not known or not str(value).strip():
        return Problem("record", f"person_id is {shown_value(value)}, expected a number or a name")
    return None


def _find_table(root: Path, table: str | Path | None) -> Path:
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give the folder of images that holds the table")
    if table is not None:
        path = Path(table) if Path(table).is_absolute() else root / table
        wanted = f"a .csv or .jsonl file with {', '.join(COLUMNS)}"
        if not path.is_file():
            raise DatasetError(f"there is no table {path}; give {wanted}, by its path below {root}")
        if path.suffix.lower() not in (*TABLE_ENDINGS, ".parquet"):
            raise DatasetError(
                f"{path} is not a table that can be read, by the ending of its name; save it as {wanted}"
            )
        return path
    tables = find_tables(root)
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise _several(root, tables)
    raise DatasetError(
        f"{root} has no .csv or .jsonl file (found: {found_beside_images(root)}); write a table with the columns "
        f"{', '.join(COLUMNS)}, one row for each image and caption"
    )


def _several(root: Path, tables: list[Path]) -> DatasetError:
    names = ", ".join(path.relative_to(root).as_posix() for path in tables)
    return DatasetError(
        f"{root} has {len(tables)} tables ({names}); name one of them: table= (on the command line --table), or move "
        "the others away"
    )


def _check_no_others(root: Path, chosen: list[tuple[Path, str]]) -> None:
    """Refuse a folder with further tables of images: nobody knows which are meant.

    One table for each split belongs to the layout, and tables of other columns may lie beside. Beside those of the
    splits, which `table=` cannot name together, another one is ignored with a warning; but not beside that of training
    alone, which may be only a part of it.

    Raises:
        DatasetError: There are some.
    """
    tables = [path for path, _ in chosen]
    metadata = [path for folder in (root, *_split_folders(root)) for path in _metadata_in(folder)]
    found = list(dict.fromkeys([*tables, *metadata]))
    beside = (path for folder in (root, *_split_folders(root)) for path in find_tables(folder))
    others = [path for path in beside if path not in found and describes_images(path)]
    by_split = {split for _, split in chosen} not in ({""}, {"train"})
    if not by_split:
        found += others
    if len(found) > len(tables) or len({path.parent for path in tables}) < len(tables):
        raise _several(root, found)
    if by_split and others:
        names = ", ".join(path.relative_to(root).as_posix() for path in others)
        are = "is" if len(others) == 1 else "are"
        read = ", ".join(path.relative_to(root).as_posix() for path in tables)
        warnings.warn(
            f"{names} in {root} {are} ignored: the tables of the splits are read ({read}); to read another one, name "
            "it: table= (on the command line --table)",
            stacklevel=5,
        )


def describes_images(path: Path) -> bool:
    """Whether a table has our columns, or Hugging Face's."""
    try:
        _, first = next(lines_of(path), (0, None))
    except _RepeatedColumnError:
        return True
    except (DatasetError, OSError, UnicodeDecodeError):
        return False
    return isinstance(first, dict) and set(COLUMNS[:-1]) <= _with_our_names(first).keys()


def _merge(
    rows: list[Row], numbers: Mapping[str, int], folder: Path, starts: list[tuple[int, Path]], problems: list[Problem]
) -> tuple[list[ImageRecord], dict[int, int]]:
    """One record an image, with the captions of all its rows; a row that contradicts an earlier one is a problem.

    Returns:
        The records, and of each the line where its first row begins, with the number of its rows.
    """
    merged: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        merged.setdefault((str(row.image), row.person, row.split), []).append(row)
    found = (problem for group in merged.values() for problem in _contradictions(group, starts))
    problems += sorted(found, key=lambda problem: problem.position or 0)
    records: list[ImageRecord] = []
    num_rows: dict[int, int] = {}
    for group in merged.values():
        first = group[0]
        captions = tuple(dict.fromkeys(row.caption for row in group))
        camera = next((row.camera for row in group if row.camera), None)
        records.append(ImageRecord(folder / first.image, numbers[first.person], captions, first.split, camera))
        num_rows[first.line] = len({row.line for row in group})
    return records, num_rows


def _contradictions(group: list[Row], starts: list[tuple[int, Path]]) -> Iterator[Problem]:
    """What rows of one image repeat, or say otherwise than an earlier one."""
    captions: set[str] = set()
    known = group[0]  # the first row that names the camera, if there is one
    for row in group:
        image = str(row.image)
        start, path = next(part for part in reversed(starts) if part[0] < row.line)
        if row.caption in captions:
            line = f", {group[0].line - start} or below" if group[0].line > start else ""
            what = f"image {image!r} has this very caption in an earlier line{line}"
            yield Problem("duplicate", what).located(f"{path}, line {row.line - start}:", row.line, image)
        captions.add(row.caption)
        known = known if known.camera else row
        if row.camera and known.camera and row.camera != known.camera:
            near = f"line {known.line - start}" if known.line > start else "an earlier table"
            what = f"image {image!r} is in {near} already, {two_cameras(known.camera, row.camera)}"
            yield Problem("conflict", what).located(f"{path}, line {row.line - start}:", row.line, image)


def _number_persons(rows: list[Row]) -> tuple[dict[str, int], dict[int, str]]:
    """Identities as numbers: the written ones, if all are numbers, else positions in the alphabet; and these names."""
    names = sorted({row.person for row in rows})
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return {name: int(name) for name in names}, {}
    return {name: number for number, name in enumerate(names)}, dict(enumerate(names))
