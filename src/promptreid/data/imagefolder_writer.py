"""Writes datasets of Hugging Face's `datasets` as an imagefolder, which is read like any other folder."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from promptreid.data.annotation import SPLIT_NAMES
from promptreid.data.table_layout import METADATA, lines_of
from promptreid.errors import DatasetError
from promptreid.files import write_bytes_atomically
from promptreid.values import real_number, whole_number

_TABLE = METADATA[1]  # metadata.jsonl
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}


def write_imagefolder(
    dataset: Iterable[Mapping[str, Any]] | Mapping[str, Iterable[Mapping[str, Any]]],
    folder: str | Path,
    *,
    image: str = "image",
    caption: str = "text",
    person_id: str = "person_id",
    progress: bool = True,
) -> Path:
    """Write a `Dataset` or `DatasetDict` of Hugging Face's `datasets` as images with a `metadata.jsonl`.

    Image files are copied unchanged, byte for byte; images that exist only in memory become PNG. A folder that holds
    these rows already is used again: its images are compared, and those that have been deleted are written. If an
    image's own file is gone by then, what was written of it stays.

    Args:
        dataset: Rows with an image, a caption or a list of them, a person, and perhaps a column `split`; or such rows
            by the split's name (`train`, `validation`, `test` and their usual variants). They are read twice, and
            made a list if they can be read only once.
        folder: Where to write; made if it does not exist.
        image: Column of the image: an `Image` feature, a PIL image, or a path.
        caption: Column of the caption or captions.
        person_id: Column of the person, a number or a name.
        progress: Show a bar.

    Returns:
        The folder, for `load_dataset`.

    Raises:
        DatasetError: A row lacks a column, cannot be written as JSON, or its image cannot be read; the message names
            the row.
        FileExistsError: The folder holds another dataset, or other images for these rows.
        ValueError: A split has an unknown name.

    Example:
        ```python
        from datasets import load_dataset as load_from_hub
        from promptreid.data import load_dataset, write_imagefolder

        people = load_dataset(write_imagefolder(load_from_hub("user/people"), "people"))
        ```
    """
    place = Path(folder)
    columns = {"image": image, "text": caption, "person_id": person_id}
    table = place / _TABLE
    dataset = _readable_twice(dataset)
    # Without the images, which may be more than memory holds: they are read again below, one by one.
    described = [_as_read(row, index) for index, row in enumerate(_rows(dataset, columns))]
    written = _table_rows(table) if table.is_file() else None
    if written is not None and [_without_file(row) for row in written] != described:
        raise _another(place)
    names: list[str] = []
    bar = tqdm(
        _rows(dataset, columns),
        total=len(described),
        desc="writing images" if written is None else "comparing images",
        unit="image",
        disable=None if progress else True,
    )
    for index, row in enumerate(bar):
        try:
            content, ending = _content(row["image"], f"row {index}")
        except DatasetError as error:
            gone = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
            if not gone or written is None or not _has_file(place, written[index]):
                raise
            names.append("")  # its file stays
            continue
        names.append(f"{row.get('split', 'images')}/{index:07d}{ending}")
        path = place / names[index]
        if _holds(path, content, pixels=isinstance(row["image"], Image.Image)):
            continue
        if written is not None and (written[index] != {"file_name": names[index], **described[index]} or path.exists()):
            raise _another(place, "other images for these rows")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, content)
    if written is None:
        _write_table(table, names, described)  # last: it says that all images are there
    return place


def _write_table(table: Path, names: list[str], described: list[dict[str, Any]]) -> None:
    rows = [{"file_name": name, **row} for name, row in zip(names, described, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # UTF-8 has no half characters; JSON has an escape for them, and who reads the table says which row holds one.
    write_bytes_atomically(table, lines.encode(errors="backslashreplace"))


def _readable_twice(dataset: Any) -> Any:
    """The same with a list for what can be read once only, such as a generator."""
    if isinstance(dataset, Mapping):
        return {name: _readable_twice(part) for name, part in cast("Mapping[Any, Any]", dataset).items()}
    return list(cast("Iterator[Any]", dataset)) if isinstance(dataset, Iterator) else dataset


def _another(place: Path, what: str = "another dataset") -> FileExistsError:
    return FileExistsError(f"{place} holds {what}; give a new folder, or load it with load_dataset")


def _has_file(place: Path, row: dict[str, Any] | None) -> bool:
    name = (row or {}).get("file_name")
    return isinstance(name, str) and (place / name).is_file()


def _holds(path: Path, content: bytes, *, pixels: bool) -> bool:
    """Whether an image is there already, byte for byte; or only by its pixels, which another Pillow packs otherwise."""
    if not path.is_file():
        return False
    there = path.read_bytes()
    return there == content or (pixels and (known := _pixels(there)) is not None and known == _pixels(content))


def _pixels(content: bytes) -> Any:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode, image.size, image.getpalette(), image.info.get("transparency"), image.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # as Pillow raises for damaged files
        return None


def _as_read(row: dict[str, Any], index: int) -> dict[str, Any]:
    """A row without its image, as JSON gives it back: plain numbers, and a list for a tuple of captions."""
    plain: dict[str, Any] = {}
    for name in (name for name in row if name != "image"):
        try:
            plain[name] = json.loads(json.dumps(row[name], default=partial(_number, name)))
        except (TypeError, ValueError) as error:
            raise DatasetError(f"row {index} cannot be written: {error}") from error
    return plain


def _number(name: str, value: Any) -> int | float:
    """A number of numpy's, or a tensor without axes, as a plain one."""
    with suppress(TypeError):
        return whole_number(name, value)
    return real_number(name, value)


def _table_rows(table: Path) -> list[dict[str, Any] | None]:
    """The rows of a table; `None` for what is no row of ours."""
    try:
        found = [row for _, row in lines_of(table)]
    except UnicodeDecodeError:
        return [None]
    return [cast("dict[str, Any]", row) if isinstance(row, dict) else None for row in found]


def _without_file(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a row says of its image, other than the file."""
    return row and {name: value for name, value in row.items() if name != "file_name"}


def _rows(dataset: Any, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Every row by our names, with the split that is known of it."""
    if not isinstance(dataset, Mapping):
        yield from _rows_of(dataset, columns, None)
        return
    for name, part in cast("Mapping[str, Any]", dataset).items():
        if name.lower() not in SPLIT_NAMES:
            raise ValueError(_unknown(name))
        yield from _rows_of(part, columns, SPLIT_NAMES[name.lower()])


_EMPTY = ("None", "nan", "<NA>")  # cells without a value, of which pandas has two kinds


def _rows_of(part: Any, columns: Mapping[str, str], split: str | None) -> Iterator[dict[str, Any]]:
    class_name = None
    if hasattr(part, "cast_column"):  # a Dataset: its images as they are stored, not decoded
        from datasets import Image as ImageFeature  # pyright: ignore[reportMissingImports]

        if isinstance(part.features[columns["image"]], ImageFeature):
            part = part.cast_column(columns["image"], ImageFeature(decode=False))
        class_name = getattr(part.features.get("split"), "int2str", None)  # where the split is a ClassLabel
    for index, row in enumerate(part):
        missing = [column for column in columns.values() if row.get(column) is None]
        if missing:
            raise DatasetError(
                f"row {index} of {split or 'the dataset'} has no {', '.join(missing)} (found: {', '.join(row)}); name "
                "the columns: image=, caption=, person_id="
            )
        made = {name: row[column] for name, column in columns.items()}
        stated = row.get("split")
        if class_name and stated is not None:
            stated = class_name(stated) if stated >= 0 else None  # -1 where a row has no class
        stated = str(stated).strip()
        stated = "" if stated in _EMPTY else stated
        named = split or SPLIT_NAMES.get(stated.lower(), "")
        if stated and not named:
            raise ValueError(f"row {index}: {_unknown(stated)}; or leave out the column, and divide persons by chance")
        yield made | ({"split": named} if named else {})


def _unknown(split: str) -> str:
    return f"the split {split!r} is unknown, expected some of {', '.join(SPLIT_NAMES)}"


def _content(image: Any, where: str) -> tuple[bytes, str]:
    """An image's file and the ending of its name."""
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        return stream.getvalue(), ".png"
    fields = cast("Mapping[str, Any]", image) if isinstance(image, Mapping) else {"path": image}
    try:
        content = fields.get("bytes") or Path(fields["path"]).read_bytes()
        with Image.open(io.BytesIO(content)) as opened:
            return content, _ENDINGS.get(opened.format or "", ".img")
    except (OSError, TypeError, KeyError, UnidentifiedImageError) as error:
        raise DatasetError(f"the image of {where} cannot be read: {error}") from error
