"""Writes datasets of Hugging Face's `datasets` as an imagefolder, which is read like any other folder."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from promptreid.data.annotation import SPLIT_NAMES
from promptreid.data.table_layout import METADATA, lines_of
from promptreid.errors import DatasetError
from promptreid.files import write_bytes_atomically

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

    Image files are copied unchanged, byte for byte; images that exist only in memory become PNG. Images that are in
    the folder already are not written again.

    Args:
        dataset: Rows with an image, a caption or a list of them, a person, and perhaps a column `split`; or such rows
            by the split's name (`train`, `validation`, `test` and their usual variants). They are read twice.
        folder: Where to write; made if it does not exist.
        image: Column of the image: an `Image` feature, a PIL image, or a path.
        caption: Column of the caption or captions.
        person_id: Column of the person, a number or a name.
        progress: Show a bar.

    Returns:
        The folder, for `load_dataset`.

    Raises:
        DatasetError: A row lacks a column, or its image cannot be read; the message names the row.
        FileExistsError: The folder holds another dataset.
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
    # Without the images, which may be more than memory holds: they are read again below, one by one.
    described = [_as_read({name: row[name] for name in row if name != "image"}) for row in _rows(dataset, columns)]
    if table.is_file():
        if _described_in(table) == described:
            return place
        raise FileExistsError(f"{place} holds another dataset; give a new folder, or load it with load_dataset")
    lines: list[str] = []
    bar = tqdm(
        _rows(dataset, columns),
        total=len(described),
        desc="writing images",
        unit="image",
        disable=None if progress else True,
    )
    for index, row in enumerate(bar):
        content, ending = _content(row["image"], f"row {index}")
        name = f"{row.get('split', 'images')}/{index:07d}{ending}"
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(place / name, content)
        lines.append(json.dumps({"file_name": name, **described[index]}, ensure_ascii=False))
    # UTF-8 has no half characters; JSON has an escape for them, and who reads the table says which row holds one.
    content = ("\n".join(lines) + "\n").encode(errors="backslashreplace")
    write_bytes_atomically(table, content)  # last: it says that all images are there
    return place


def _as_read(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON gives it back: a tuple of captions is a list then."""
    return json.loads(json.dumps(row))


def _described_in(table: Path) -> list[Any]:
    """What a table says of its images, other than their files; `None` for what is no row of ours."""
    try:
        found = [row for _, row in lines_of(table)]
    except UnicodeDecodeError:
        return [None]
    rows = [cast("dict[str, Any]", row) if isinstance(row, dict) else None for row in found]
    return [row and {name: value for name, value in row.items() if name != "file_name"} for row in rows]


def _rows(dataset: Any, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Every row by our names, with the split that is known of it."""
    if not isinstance(dataset, Mapping):
        yield from _rows_of(dataset, columns, None)
        return
    for name, part in cast("Mapping[str, Any]", dataset).items():
        if name.lower() not in SPLIT_NAMES:
            raise ValueError(f"the split {name!r} is unknown, expected some of {', '.join(SPLIT_NAMES)}")
        yield from _rows_of(part, columns, SPLIT_NAMES[name.lower()])


def _rows_of(part: Any, columns: Mapping[str, str], split: str | None) -> Iterator[dict[str, Any]]:
    if hasattr(part, "cast_column"):  # a Dataset: its images as they are stored, not decoded
        from datasets import Image as ImageFeature  # pyright: ignore[reportMissingImports]

        if isinstance(part.features[columns["image"]], ImageFeature):
            part = part.cast_column(columns["image"], ImageFeature(decode=False))
    for index, row in enumerate(part):
        missing = [column for column in columns.values() if row.get(column) is None]
        if missing:
            raise DatasetError(
                f"row {index} of {split or 'the dataset'} has no {', '.join(missing)} (found: {', '.join(row)}); name "
                "the columns: image=, caption=, person_id="
            )
        made = {name: row[column] for name, column in columns.items()}
        named = split or SPLIT_NAMES.get(str(row.get("split", "")).lower())
        yield made | ({} if named is None else {"split": named})


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
