"""Opens and inspects image files."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from promptreid.data.image_files import content_kind, first_reasons
from promptreid.data.problems import Problem
from promptreid.data.records import ReIDSplit
from promptreid.defaults import OnBad
from promptreid.errors import DatasetError, printable
from promptreid.files import content_digest, open_file

Result = TypeVar("Result")

# What sets an image upright, by the EXIF tag Orientation (JEITA CP-3451, section 4.6.4); 1 is upright.
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow reads that tag


class _UnknownRangeError(ValueError):
    """Pixels whose range is unknown, so that a fresh copy of the file would not help."""


MAX_SIDE = 16_384  # pixels; a crop of a person has a few hundred

MAX_PIXELS = 64 * 2**20  # of a JPEG that can be reduced while it is decoded

MAX_PIXELS_WHOLE = 16 * 2**20  # of others, which are decoded whole, in about 150 MB

KEPT_PIXELS = 4 * 2**20  # larger images are reduced to at most this many

MIN_SIDE = 8

# Pillow's own limits, which it applies before ours; the second is a warning unless warnings are errors.
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class Inspection(NamedTuple):
    """The result of opening an image: its problems, and a digest of the file's bytes."""

    problems: tuple[Problem, ...]
    digest: bytes


def open_image(path: Any) -> Image.Image:
    """Open an image as RGB, turned as its EXIF data says; of an animation the first frame.

    Transparency is dropped, CMYK is converted, and 16 bits a channel become 8. An image of more than `KEPT_PIXELS` is
    reduced by a whole number as it is read.

    Args:
        path: A file, or an open binary stream.

    Raises:
        DatasetError: It cannot be read, is not a regular file, or is absurdly large.
    """
    source: AbstractContextManager[Any]
    try:
        source = nullcontext(path) if hasattr(path, "read") else open_file(path)
        with source as stream, identify(stream) as image:
            problem = _size_problem(image)
            if problem is None:
                return _decode(image)
    except _BOMBS as error:
        raise DatasetError(f"the image {_name(path)} is absurdly large ({error}); take its record out") from error
    except _UnknownRangeError as error:
        raise DatasetError(
            f"cannot read the image {_name(path)} ({error}); convert it to 8 or 16 bits per channel, or remove its "
            "record"
        ) from error
    # Pillow's readers raise many errors for a broken file: struct.error, KeyError, zlib.error, …
    except Exception as error:
        raise DatasetError(
            f"cannot read the image {_name(path)} ({_words(error)}); copy it again, or take its record out"
        ) from error
    raise DatasetError(f"the image {_name(path)} {problem.message}; take its record out")


def inspect_image(path: Path) -> Inspection:
    """Read an image fully and say what is wrong with it."""
    try:
        with open_file(path) as stream:
            digest = content_digest(stream).digest()
            if not stream.tell():
                return Inspection((Problem("empty file", "has zero bytes"),), digest)
            stream.seek(0)
            return Inspection(tuple(_content_problems(path, stream)), digest)
    except OSError as error:
        return Inspection((Problem("unreadable", f"cannot be read ({_words(error)})"),), b"")


def inspect_images(
    paths: Sequence[Path], *, num_threads: int | None = None, progress: bool = True, label: str = "opening images"
) -> list[Inspection]:
    """Read many images, in several threads, with a progress bar."""
    return list(map_in_threads(inspect_image, paths, num_threads=num_threads, progress=progress, label=label))


def map_in_threads(
    function: Callable[[Path], Result],
    paths: Sequence[Path],
    *,
    num_threads: int | None,
    progress: bool,
    label: str,
    pending: int = 1024,
) -> Iterator[Result]:
    """The results of a function for each image file, in order, computed in several threads.

    Args:
        function: From a path to a result.
        paths: The files.
        num_threads: Threads; `None` for one a core.
        progress: Show a progress bar.
        label: What it says.
        pending: Results at most that wait to be taken, since a decoded image is large.
    """
    bar = tqdm(total=len(paths), desc=label, unit="image", disable=not progress, leave=False)
    with bar, ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        for start in range(0, len(paths), pending):
            for result in pool.map(function, paths[start : start + pending]):
                bar.update()
                yield result


def identify(stream: BinaryIO) -> Image.Image:
    """Open an image as Pillow does; where that does not know the format, say what it is.

    Raises:
        ValueError: Pillow does not know it.
    """
    try:
        return Image.open(stream)
    except UnidentifiedImageError as error:
        stream.seek(0)
        kind, _ = content_kind(stream)
        raise ValueError(f"cannot identify image file{kind and f': it is {kind}'}") from error


def _decode(image: Image.Image) -> Image.Image:
    """The pixels as RGB, upright, and few enough."""
    if (factor := _reduction(image)) > 1:
        image.draft(None, (image.width // factor, image.height // factor))  # only JPEG can
    rgb = _convert(upright(image))
    return rgb.reduce(_reduction(rgb))


def _reduction(image: Image.Image) -> int:
    return math.ceil(math.sqrt(image.width * image.height / KEPT_PIXELS))


def _content_problems(path: Path, stream: BinaryIO) -> list[Problem]:
    try:
        with identify(stream) as image:
            size = _size_problem(image)
            if size is not None:
                return [size]
            problems = _remarks(path, image)
            _decode(image)
            return problems
    except _BOMBS as error:
        return [Problem("oversized", f"is absurdly large ({_words(error)})")]
    except Exception as error:  # as in open_image
        words = _words(error)
        cut = "truncated" in words.lower() or "broken data stream" in words.lower()
        return [Problem("truncated" if cut else "unreadable", f"cannot be read ({words})")]


def _size_problem(image: Image.Image) -> Problem | None:
    """Found from the header, before memory is allocated for the pixels."""
    width, height = image.size
    if min(width, height) < 1:
        return Problem("unreadable", f"has {width} x {height} pixels")
    reducible = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    limit = MAX_PIXELS if reducible else MAX_PIXELS_WHOLE
    if max(width, height) > MAX_SIDE or width * height > limit:
        return Problem(
            "oversized",
            f"has {width} x {height} pixels, more than {MAX_SIDE} on a side or {limit:,} in all, and is not a crop of "
            "a person",
        )
    return None


def _remarks(path: Path, image: Image.Image) -> list[Problem]:
    """Remarks on an image that can be used."""
    remarks: list[Problem] = []
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        remarks.append(Problem("tiny", f"has {width} x {height} pixels"))
    known = Image.registered_extensions().get(path.suffix.lower())
    if image.format is not None and known != image.format and {known, image.format} != {"JPEG", "MPO"}:
        remarks.append(Problem("extension", f"is {image.format}, which its name does not say"))
    if getattr(image, "is_animated", False) and image.format != "MPO":
        remarks.append(Problem("animated", f"has {getattr(image, 'n_frames', 2)} frames"))
    return remarks


def to_rgb(image: Image.Image) -> Image.Image:
    """An open image as RGB, turned as its EXIF data says.

    Raises:
        ValueError: Its pixels are of unknown range.
    """
    return _convert(upright(image))


def upright(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF data says."""
    # Not ImageOps.exif_transpose, which also writes these data anew, and fails where they are damaged.
    image.load()  # by which a TIFF is turned
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in _ORIENTED:  # or what is turned would say that it still has to be
        turned.info.pop(name, None)
    return turned


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F":
        raise _UnknownRangeError("its pixels are floating-point numbers of unknown range")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of which Pillow makes 16 bits
        raise _UnknownRangeError("its pixels have more than 16 bits, of unknown range")
    if image.mode.startswith("I"):  # 16 bits: convert() would cut at 255 and give white
        values = np.asarray(image)
        image = Image.fromarray((values // 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of palettes with transparency
    return image.convert("RGB")


def _name(path: Any) -> str:
    return printable(path if isinstance(path, str | os.PathLike) else getattr(path, "name", path))


def _words(error: BaseException) -> str:
    return printable(error) or type(error).__name__


def keep_readable(
    split: ReIDSplit, *, on_bad: OnBad = "strict", num_threads: int | None = None, progress: bool = True
) -> ReIDSplit:
    """Open every image of a split, and refuse or leave out those that cannot be used.

    Args:
        split: The images.
        on_bad: `"strict"` raises with the list; `"skip"` leaves them out, with one warning that counts and names them.
        num_threads: Threads that open images; `None` for one a core.
        progress: Show a progress bar.

    Returns:
        The split, or in `"skip"` mode one without the bad images.

    Raises:
        DatasetError: Images are bad in `"strict"` mode, or all of them are.
        ValueError: `on_bad` is something else.

    Example:
        >>> train = keep_readable(dataset.train, on_bad="skip")  # doctest: +SKIP
    """
    check_on_bad(on_bad)
    paths = list(dict.fromkeys(split.paths))
    inspections = inspect_images(paths, num_threads=num_threads, progress=progress)
    bad: dict[Path, str] = {}
    for path, inspection in zip(paths, inspections, strict=True):
        errors = [problem.message for problem in inspection.problems if problem.severity == "error"]
        if errors:
            bad[path] = errors[0]
    report_bad(bad, len(paths), on_bad=on_bad, what=f"images of the {split.name} split")
    return split.without(bad) if bad else split


def check_on_bad(on_bad: str) -> None:
    """Refuse an invalid mode.

    Raises:
        ValueError: It is neither `"strict"` nor `"skip"`.
    """
    if on_bad not in ("strict", "skip"):
        raise ValueError(f"on_bad is {on_bad!r}, expected 'strict' or 'skip'")


def report_bad(bad: Mapping[Path, str], total: int, *, on_bad: OnBad, what: str) -> None:
    """Raise or warn, once, with the number of bad images and the first ten of them."""
    if not bad:
        return
    first = first_reasons(bad)
    if on_bad == "strict" or len(bad) == total:
        mend = "copy them again, take their records out, or leave them out with on_bad='skip'"
        raise DatasetError(f"{len(bad):,} of {total:,} {what} cannot be used; {mend}: {first}")
    warnings.warn(f"{len(bad):,} of {total:,} {what} cannot be used and are left out: {first}", stacklevel=3)
