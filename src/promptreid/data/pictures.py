"""Opens pictures of any kind as RGB, and says of those that cannot be opened why not."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from promptreid.data.image_files import shown
from promptreid.errors import DatasetError

MAX_SIDE = 16_384  # pixels; a crop of a person has a few hundred
MAX_PIXELS = 64 * 2**20
MIN_SIDE = 8
# Pillow's own limits, which it applies before ours; the second is a warning unless warnings are errors.
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class PictureFault(NamedTuple):
    """What is wrong with a picture; `kind` is one of `problems.KINDS`."""

    kind: str
    what: str


class Inspection(NamedTuple):
    """What opening a picture showed: what is wrong with it, and a digest of the file's bytes."""

    faults: tuple[PictureFault, ...]
    digest: bytes


def open_image(path: Any) -> Image.Image:
    """Open a picture as RGB, turned as its EXIF data says; of an animation the first frame.

    Transparency is dropped, CMYK is converted, and 16 bits a channel become 8.

    Args:
        path: A file, or an open binary stream.

    Raises:
        DatasetError: It cannot be read, or is absurdly large.
    """
    try:
        with Image.open(path) as image:
            fault = _size_fault(image)
            if fault is None:
                return _to_rgb(ImageOps.exif_transpose(image))
    except _BOMBS as error:
        raise DatasetError(f"the image {_name(path)} is absurdly large ({error}); take its record out") from error
    # Pillow's readers raise whatever a broken file makes them stumble over: struct.error, KeyError, zlib.error, …
    except Exception as error:
        raise DatasetError(
            f"cannot read the image {_name(path)} ({_words(error)}); copy it again, or take its record out"
        ) from error
    raise DatasetError(f"the image {_name(path)} {fault.what}; take its record out")


def inspect_image(path: Path) -> Inspection:
    """Read a picture fully and say what is wrong with it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Inspection((PictureFault("unreadable", f"cannot be read ({_words(error)})"),), b"")
    digest = blake2b(content, digest_size=16).digest()
    if not content:
        return Inspection((PictureFault("empty file", "has zero bytes"),), digest)
    return Inspection(tuple(_content_faults(path, content)), digest)


def inspect_images(
    paths: Sequence[Path], *, num_threads: int | None = None, progress: bool = True, label: str = "opening images"
) -> list[Inspection]:
    """Read many pictures, in several threads, with a progress bar."""
    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        results = pool.map(inspect_image, paths)
        return list(tqdm(results, total=len(paths), desc=label, unit="image", disable=not progress, leave=False))


def _content_faults(path: Path, content: bytes) -> list[PictureFault]:
    try:
        with Image.open(BytesIO(content)) as image:
            size = _size_fault(image)
            if size is not None:
                return [size]
            faults = _remarks(path, image)
            _to_rgb(ImageOps.exif_transpose(image))
            return faults
    except _BOMBS as error:
        return [PictureFault("oversized", f"is absurdly large ({_words(error)})")]
    except Exception as error:  # as in open_image
        words = _words(error)
        cut = "truncated" in words.lower() or "broken data stream" in words.lower()
        return [PictureFault("truncated" if cut else "unreadable", f"cannot be read ({words})")]


def _size_fault(image: Image.Image) -> PictureFault | None:
    """Said from the header alone, before memory is taken for the pixels."""
    width, height = image.size
    if min(width, height) < 1:
        return PictureFault("unreadable", f"has {width} x {height} pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        return PictureFault(
            "oversized",
            f"has {width} x {height} pixels, more than {MAX_SIDE} a side or {MAX_PIXELS:,} in all, and is no crop of "
            "a person",
        )
    return None


def _remarks(path: Path, image: Image.Image) -> list[PictureFault]:
    """What does not keep a picture from being used."""
    remarks: list[PictureFault] = []
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        remarks.append(PictureFault("tiny", f"has {width} x {height} pixels"))
    known = Image.registered_extensions().get(path.suffix.lower())
    if image.format is not None and known != image.format and {known, image.format} != {"JPEG", "MPO"}:
        remarks.append(PictureFault("extension", f"is {image.format}, which its name does not say"))
    if getattr(image, "is_animated", False) and image.format != "MPO":
        remarks.append(PictureFault("animated", f"has {getattr(image, 'n_frames', 2)} frames"))
    return remarks


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16 bits: convert() would cut at 255 and give white
        values = np.asarray(image).astype(np.int64)
        if values.max() > 0xFFFF or values.min() < 0:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of palettes with transparency
    return image.convert("RGB")


def _name(path: Any) -> str:
    return shown(path if isinstance(path, str | os.PathLike) else getattr(path, "name", path))


def _words(error: BaseException) -> str:
    return shown(error) or type(error).__name__
