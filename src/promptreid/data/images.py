"""Finds, opens and inspects image files."""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from tqdm import tqdm

from promptreid.data.problems import Problem
from promptreid.data.records import ReIDSplit
from promptreid.defaults import OnBad
from promptreid.errors import DatasetError, found_in, printable
from promptreid.files import check_plain, content_digest, open_file

Presence = Literal["present", "missing", "outside"]

Result = TypeVar("Result")

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")

# These have no root, drive or step upwards, and nearly all paths match: pathlib is used only for the others.
_PLAINLY_BELOW = re.compile(r"(?!/)(?!.*\.\.)[^\\:\0]*", re.DOTALL)


def leaves_folder(path: str) -> bool:
    """Whether a path is absolute, climbs with `..` or cannot name a file, on POSIX or on Windows."""
    if _PLAINLY_BELOW.fullmatch(path):
        return False
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    anchored = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    return anchored or ".." in posix.parts or ".." in windows.parts or "\0" in path


class ImageLookup:
    """Answers where many files below one folder are, reading each sub-folder once.

    Args:
        root: The image folder; it may be a link itself, but nothing in it may link out of it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool] | None] = {}

    def locate(self, path: PurePosixPath) -> Presence:
        """Whether a relative path is a file, is missing, or leads out of the folder over a link."""
        parent = str(path.parent)
        if parent not in self._listed:
            self._listed[parent] = self._list(parent)
        names = self._listed[parent]
        if names is None:
            return "outside"
        plain = names.get(path.name)
        if plain:
            return "present"
        # Links, what is not a file, and names that the file system spells otherwise (case, Unicode form).
        full = os.path.join(self.root, *path.parts)
        if not os.path.isfile(full):
            return "missing"
        return "present" if self._inside(os.path.realpath(full)) else "outside"

    def _list(self, parent: str) -> dict[str, bool] | None:
        """Names in a sub-folder, with whether they are plain files; `None` if it lies outside."""
        folder = os.path.join(self.root, parent)
        if not self._inside(os.path.realpath(folder)):
            return None
        try:
            with os.scandir(folder) as entries:
                return {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        except OSError:
            return {}

    def _inside(self, real: str) -> bool:
        return real == self._real or real.startswith(os.path.join(self._real, ""))


_HEAD_BYTES = 16
_HEIC = "HEIC, which Pillow cannot read; convert it to JPEG"
_OTHER = ", which is not read here; convert it to JPEG"
_RAW = "TIFF or a camera's raw file under another ending; convert it to JPEG, or name it .tif"

# How files of each format begin, for those whose ending says something else.
_HEADS: tuple[tuple[bytes, str], ...] = (
    (rb"\xff\xd8\xff", "JPEG"), (rb"\x89PNG\r\n\x1a\n", "PNG"), (rb"GIF8[79]a", "GIF"), (rb"RIFF.{4}WEBP", "WEBP"),
    (rb"BM.{4}\0{4}", "BMP"), (rb".{4}ftyp(avif|avis)", "AVIF"), (rb".{4}ftyp(hei|hev|mif1|msf1)", _HEIC),
    (rb"II\*\0|MM\0\*", _RAW), (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", f"JPEG 2000{_OTHER}"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", f"JPEG XL{_OTHER}"), (rb"P[1-6]\s+(#|\d)", f"Netpbm{_OTHER}"),
    (rb"8BPS\0\x01", f"Photoshop's format{_OTHER}"), (rb"v/1\x01", f"OpenEXR{_OTHER}"),
)  # fmt: skip


class _UnknownRangeError(ValueError):
    """Pixels whose range is unknown, so that a fresh copy of the file would not help."""


def _content_kind(stream: BinaryIO) -> tuple[str, bool]:
    """The format of an open file by its first bytes (empty if no image), and whether it can be read."""
    head = stream.read(_HEAD_BYTES)
    kind = next((kind for pattern, kind in _HEADS if re.match(pattern, head, re.DOTALL)), "")
    if kind == "AVIF" and not features.check("avif"):
        return "AVIF, which this Pillow cannot read; update Pillow, or convert it to JPEG", False
    if kind == _HEIC and "HEIF" in Image.OPEN:  # pillow-heif has been registered
        return "HEIC", True
    return kind, kind not in ("", _HEIC, _RAW) and not kind.endswith(_OTHER)


def list_images(folder: str | Path, *, unreadable: list[str] | None = None) -> list[Path]:
    """Every image in a plain folder and its sub-folders, in the order of their paths: a gallery to search.

    A file is taken for an image by its ending (`IMAGE_ENDINGS`) or, with another one, by its first bytes. Hidden files
    and folders (`.name`) are not looked at; links to files are followed. One warning counts and names what looks like
    an image and cannot be used (HEIC, pipes, dead links) and linked folders, another what cannot be read.

    Args:
        folder: The folder.
        unreadable: A list that gets what cannot be looked into: images may be missing from the result.

    Returns:
        The image files, whether or not their content can be read.

    Raises:
        DatasetError: There is no such folder, or it cannot be read.
    """
    return sorted(walk_images(folder, unreadable=unreadable))


def no_images_in(folder: Path) -> DatasetError:
    """The error for a folder in which `list_images` finds nothing, to be raised by the caller."""
    return DatasetError(
        f"{folder} has no images ({', '.join(IMAGE_ENDINGS)}) in it or below; give the folder that holds the crops "
        f"(found there: {found_in(folder)})"
    )


def walk_images(folder: str | Path, *, unreadable: list[str] | None = None) -> Iterator[Path]:
    """The images that `list_images` finds, one by one as they are found; warns at the end."""
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"there is no folder {root}; give a folder of images")
    left_out: dict[Path, str] = {}
    closed: list[str] = [] if unreadable is None else unreadable
    for parent, folders, names in os.walk(root, onerror=lambda error: closed.append(str(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [path for path in (Path(parent, name) for name in folders) if path.is_symlink()]
        left_out.update(dict.fromkeys(linked, "is a link to a folder; give that folder itself, or copy it there"))
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            reason = _why_no_image(path, closed)
            if reason is None:
                yield path
            elif reason:
                left_out[path] = reason
    if str(root) in closed:
        raise DatasetError(f"the folder {root} cannot be read; is it mounted, and may you read it?")
    if closed:
        first = ", ".join(printable(path) for path in closed[:10])
        warnings.warn(f"{len(closed)} folders or files cannot be looked into and are left out: {first}", stacklevel=3)
    if left_out:
        count = f"{len(left_out):,} files and folders are left out of {printable(folder)}"
        warnings.warn(f"{count}: {_first_of(left_out)}", stacklevel=3)


def _why_no_image(path: Path, closed: list[str]) -> str | None:
    """`None` for an image, the reason for what looks like one and cannot be used, empty for everything else."""
    named = path.name.lower().endswith(IMAGE_ENDINGS)
    try:
        if named:
            check_plain(path.stat())
            return None
        with open_file(path) as stream:
            kind, readable = _content_kind(stream)
            return None if readable else kind and f"is {kind}"
    except FileNotFoundError:  # or a file that was deleted just now
        return "is a link that leads nowhere" if named else ""
    except OSError as error:
        if named and error.errno is not None:
            closed.append(str(path))
        return f"cannot be read ({error})" if named and error.errno is None else ""


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
        with source as stream, _identify(stream) as image:
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


def _identify(stream: BinaryIO) -> Image.Image:
    """Open an image as Pillow does; where that does not know the format, say what it is."""
    try:
        return Image.open(stream)
    except UnidentifiedImageError as error:
        stream.seek(0)
        kind, _ = _content_kind(stream)
        raise ValueError(f"cannot identify image file{kind and f': it is {kind}'}") from error


def _decode(image: Image.Image) -> Image.Image:
    """The pixels as RGB, upright, and few enough."""
    if (factor := _reduction(image)) > 1:
        image.draft(None, (image.width // factor, image.height // factor))  # only JPEG can
    ImageOps.exif_transpose(image, in_place=True)
    rgb = _convert(image)
    return rgb.reduce(_reduction(rgb))


def _reduction(image: Image.Image) -> int:
    return math.ceil(math.sqrt(image.width * image.height / KEPT_PIXELS))


def _content_problems(path: Path, stream: BinaryIO) -> list[Problem]:
    try:
        with _identify(stream) as image:
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
    return _convert(ImageOps.exif_transpose(image))


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F":
        raise _UnknownRangeError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16 bits: convert() would cut at 255 and give white
        values = np.asarray(image)
        if values.max() > 0xFFFF or values.min() < 0:
            raise _UnknownRangeError("its pixels have more than 16 bits")
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
    first = _first_of(bad)
    if on_bad == "strict" or len(bad) == total:
        mend = "copy them again, take their records out, or leave them out with on_bad='skip'"
        raise DatasetError(f"{len(bad):,} of {total:,} {what} cannot be used; {mend}: {first}")
    warnings.warn(f"{len(bad):,} of {total:,} {what} cannot be used and are left out: {first}", stacklevel=3)


def _first_of(reasons: Mapping[Path, str]) -> str:
    more = f"; and {len(reasons) - 10:,} more" if len(reasons) > 10 else ""
    return "; ".join(f"{printable(path)} {reason}" for path, reason in list(reasons.items())[:10]) + more
