"""Writes datasets of Hugging Face's `datasets` as an imagefolder, which is read like any other folder."""

import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tqdm import tqdm

from promptreid.data.annotation import SPLIT_NAMES, camera_problems, plain_camera
from promptreid.data.images import identify, to_rgb, upright
from promptreid.data.table_layout import METADATA, lines_of
from promptreid.errors import DatasetError, listed, printable
from promptreid.files import write_bytes_atomically
from promptreid.values import given_path, real_number, whole_number

_TABLE = METADATA[1]  # metadata.jsonl
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
_NO_CAMERAS = "camera (not all of them names or whole numbers)"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")


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

    Image files are copied unchanged, byte for byte; images that exist only in memory become PNG, turned as their EXIF
    data say, and RGB where PNG has no such pixels. A column `camera` of names or whole numbers is written too; one
    warning names the columns that are not. A folder that holds these rows already is used again: its images are
    compared, and those that have been deleted are written. If an image's own file is gone by then, what was written
    of it stays.

    Args:
        dataset: Rows with an image, a caption or a list of them, a person, and perhaps the columns `split` and
            `camera`; or such rows by the split's name (`train`, `validation`, `test` and their usual variants). They
            are read twice, and made a list if they can be read only once.
        folder: Where to write; made if it does not exist.
        image: Column of the image: an `Image` feature, a PIL image, or a path.
        caption: Column of the caption or captions.
        person_id: Column of the person, a number or a name.
        progress: Show a bar.

    Returns:
        The folder, for `load_dataset`.

    Raises:
        DatasetError: A row lacks a column, cannot be written as JSON, or its image cannot be read or has pixels of
            unknown range; the message names the row. Or there are no rows.
        FileExistsError: The folder holds another dataset, or other images for these rows.
        ValueError: A split has an unknown name, or `folder` is empty.

    Example:
        ```python
        from datasets import load_dataset as load_from_hub
        from promptreid.data import load_dataset, write_imagefolder

        people = load_dataset(write_imagefolder(load_from_hub("user/people"), "people"))
        ```
    """
    place = given_path("folder", folder)
    columns = {"image": image, "text": caption, "person_id": person_id}
    dataset = _readable_twice(dataset)
    # Without the images, which may be more than memory holds: they are read again below, one by one.
    others: set[str] = set()
    described = [_as_read(row, index) for index, row in enumerate(_rows(dataset, columns, others))]
    if _NO_CAMERAS in others:
        described = _without("camera", described)
    if not described:
        raise DatasetError("the dataset has no rows; give some with an image, a caption and a person each")
    if others:
        unread = listed(sorted(map(str, others)), most=10)
        warnings.warn(f"columns that are not written, as load_dataset does not read them: {unread}", stacklevel=2)
    written, is_current = _rows_in(place, described)
    names: list[str] = []
    bar = tqdm(
        _rows(dataset, columns, others),
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
            names.append(written[index]["file_name"])  # which stays
            continue
        names.append(f"{row.get('split', 'images')}/{index:07d}{ending}")
        path = place / names[index]
        if _holds(path, content, pixels=isinstance(row["image"], Image.Image)):
            continue
        if written is not None and (written[index] != {"file_name": names[index], **described[index]} or path.exists()):
            raise _another(place, "other images for these rows")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(path, content)
    if not is_current:
        _write_table(place / _TABLE, names, described)  # last: it says that all images are there
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


def _rows_in(place: Path, described: list[dict[str, Any]]) -> tuple[list[dict[str, Any]] | None, bool]:
    """The described rows with the files that a folder's table has for them, and whether the table is as they are.

    Tables of earlier versions have no cameras. `None` if there is no table.

    Raises:
        FileExistsError: The table has other rows.
    """
    if not (place / _TABLE).is_file():
        return None, False
    found = _table_rows(place / _TABLE)
    if found is None:
        raise _another(place)
    rows = _without("file_name", found)
    if rows != described and rows != _without("camera", described):
        raise _another(place)
    written = [{"file_name": row.get("file_name"), **known} for row, known in zip(found, described, strict=True)]
    return written, rows == described


def _has_file(place: Path, row: dict[str, Any]) -> bool:
    name = row.get("file_name")
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


def _table_rows(table: Path) -> list[dict[str, Any]] | None:
    """The rows of a table; `None` if any is no row of ours."""
    try:
        found = [row for _, row in lines_of(table)]
    except UnicodeDecodeError:
        return None
    return cast("list[dict[str, Any]]", found) if all(isinstance(row, dict) for row in found) else None


def _without(column: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != column} for row in rows]


def _rows(dataset: Any, columns: Mapping[str, str], others: set[str]) -> Iterator[dict[str, Any]]:
    """Every row by our names, with the split and the camera that are known of it; `others` gets the other columns."""
    if not isinstance(dataset, Mapping):
        yield from _rows_of(dataset, columns, None, others)
        return
    for name, part in cast("Mapping[str, Any]", dataset).items():
        if name.lower() not in SPLIT_NAMES:
            raise ValueError(_unknown(name))
        yield from _rows_of(part, columns, SPLIT_NAMES[name.lower()], others)


_EMPTY = ("", "None", "nan", "<NA>")  # cells without a value, of which pandas has two kinds


def _rows_of(part: Any, columns: Mapping[str, str], split: str | None, others: set[str]) -> Iterator[dict[str, Any]]:
    features: Mapping[str, Any] = {}
    if hasattr(part, "cast_column"):  # a Dataset: its images as they are stored, not decoded
        from datasets import Image as ImageFeature  # pyright: ignore[reportMissingImports]

        if isinstance(part.features[columns["image"]], ImageFeature):
            part = part.cast_column(columns["image"], ImageFeature(decode=False))
        features = part.features
    for index, row in enumerate(part):
        missing = [column for column in columns.values() if row.get(column) is None]
        if missing:
            raise DatasetError(
                f"row {index} of {split or 'the dataset'} has no {', '.join(missing)} (found: "
                f"{', '.join(map(str, row))}); name the columns: image=, caption=, person_id="
            )
        others.update({*row} - {*columns.values(), "split", "camera"})
        made = {name: row[column] for name, column in columns.items()}
        stated, camera = (_stated(row.get(column), features.get(column)) for column in ("split", "camera"))
        camera = _camera(camera)
        if camera_problems(camera):
            others.add(_NO_CAMERAS)
            camera = None
        named = split or SPLIT_NAMES.get(str(stated).strip().lower(), "")
        if stated is not None and not named:
            what = _unknown(str(stated).strip())
            raise ValueError(f"row {index}: {what}; or leave out the column, and divide persons by chance")
        yield made | ({"split": named} if named else {}) | ({} if camera is None else {"camera": camera})


def _stated(value: Any, feature: Any) -> Any:
    """The value of a cell, by its name where it is of a `ClassLabel`; `None` for an empty one."""
    class_name = getattr(feature, "int2str", None)
    if class_name and value is not None:
        value = class_name(value) if value >= 0 else None  # -1 where a row has no class
    return None if str(value).strip() in _EMPTY else value


def _camera(value: Any) -> Any:
    """A camera as it is written: numbers of numpy's and tensors as plain ones, whole ones as integers."""
    with suppress(TypeError, ValueError):
        value = _number("camera", value)
    return plain_camera(value)


def _unknown(split: str) -> str:
    return f"the split {split!r} is unknown, expected some of {', '.join(SPLIT_NAMES)}"


def _content(image: Any, where: str) -> tuple[bytes, str]:
    """An image's file and the ending of its name."""
    path = None
    try:
        if isinstance(image, Image.Image):
            stream = io.BytesIO()
            (upright(image) if image.mode in _PNG_MODES else to_rgb(image)).save(stream, format="PNG")
            return stream.getvalue(), ".png"
        fields = cast("Mapping[str, Any]", image) if isinstance(image, Mapping) else {"path": image}
        path = fields.get("path")
        content = fields.get("bytes") or Path(fields["path"]).read_bytes()
        with identify(io.BytesIO(content)) as opened:
            return content, _ENDINGS.get(opened.format or "", ".img")
    except Exception as error:  # of many kinds, as in open_image
        words = str(error)
        if isinstance(path, str | Path) and str(path) not in words:
            words += f" ({path})"
        advice = "replace it, or leave the row out"
        raise DatasetError(f"the image of {where} cannot be read: {printable(words)}; {advice}") from error
