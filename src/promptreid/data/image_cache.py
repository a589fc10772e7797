"""Images decoded once, in one file that all loader workers share."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from promptreid.data.images import check_on_bad, map_in_threads, open_image, report_bad
from promptreid.data.transforms import check_image_size, check_interpolation, fit_image
from promptreid.defaults import OnBad
from promptreid.errors import DatasetError
from promptreid.files import (
    content_digest,
    flush,
    locked,
    open_file,
    remove_abandoned,
    remove_scratch,
    replaced,
    write_bytes_atomically,
)

FORMAT_VERSION = 1

_INDEX = "digests.json"


class PixelRows:
    """Rows of a file of pixels, read as they are needed; all processes share the memory.

    Args:
        path: The file.
        image_size: (height, width) of each image.
        interpolation: How they were resized.
    """

    def __init__(self, path: Path, image_size: tuple[int, int], interpolation: str = "bicubic") -> None:
        self.path = path
        self.interpolation = interpolation
        self.image_size = image_size
        self._pixels: Any = None

    def __getitem__(self, row: int) -> Tensor:
        """The pixels of one image, a copy, uint8 (3, H, W)."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, dtype=np.uint8, mode="r").reshape(-1, 3, *self.image_size)
        return torch.from_numpy(np.array(self._pixels[row]))

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a map would become its content: each worker opens the file itself.
        return {**self.__dict__, "_pixels": None}


class ImageCache:
    """Decoded images in a file. Made by `build_image_cache`.

    Args:
        pixels: The file's rows.
        rows: The row of each image in the file.
        bad: Images that could not be decoded, and why.

    Attributes:
        pixels: The file's rows, which are all that loader workers need.
        path: The file.
        image_size: (height, width) in pixels.
        bad: Images left out, with the reason.

    Shape:
        - an item: uint8 (3, H, W)
    """

    def __init__(self, pixels: PixelRows, *, rows: Mapping[Path, int], bad: Mapping[Path, str]) -> None:
        self.pixels = pixels
        self.path: Path = pixels.path
        self.image_size: tuple[int, int] = pixels.image_size
        self.bad: dict[Path, str] = dict(bad)
        self._rows = dict(rows)

    def __len__(self) -> int:
        """Images that can be read from it."""
        return len(self._rows)

    def __contains__(self, path: Path) -> bool:
        return path in self._rows

    def __getitem__(self, path: Path) -> Tensor:
        """The pixels of an image, a copy, uint8 (3, H, W)."""
        return self.pixels[int(self.rows([path])[0])]

    def rows(self, paths: Sequence[Path]) -> Tensor:
        """The rows of images in `pixels`, (len(paths),) int64.

        Raises:
            KeyError: One is not in the cache.
        """
        absent = [path for path in paths if path not in self._rows]
        if absent:
            raise KeyError(
                f"{len(absent):,} of {len(paths):,} images are not in the cache {self.path}, such as {absent[0]}; "
                "build it for these images"
            )
        return torch.tensor([self._rows[path] for path in paths], dtype=torch.int64)


def build_image_cache(
    paths: Sequence[Path],
    cache_dir: str | Path,
    *,
    image_size: tuple[int, int],
    interpolation: str = "bicubic",
    on_bad: OnBad = "strict",
    num_threads: int | None = None,
    progress: bool = True,
) -> ImageCache:
    """Decode images once, at the size that training takes, or use what was decoded before.

    The file is named after the contents of the images and the size, so a changed image is never served from an old
    cache. Contents are known by each file's size and time of change, so unchanged files are not read again; and where
    only some images changed, the pixels of the others are copied from an earlier cache in the folder. The file is
    renamed into place when it is complete, so a build that was killed leaves nothing in use; of several builders one
    builds, and the others wait and use what it built. Images that could not be decoded are tried again by each call.
    The disk space that it needs is stated and checked first. Old caches are never deleted: delete the folder when you
    want the space back.

    Args:
        paths: The images; of those named twice, or of equal content, one is stored.
        cache_dir: Folder for it, made if need be.
        image_size: (height, width) in pixels.
        interpolation: How images are resized, as the transform does it: `"bicubic"` or `"bilinear"`.
        on_bad: `"strict"` refuses images that cannot be decoded, with the list; `"skip"` leaves them out.
        num_threads: Threads that decode; `None` for one a core.
        progress: Say what is built, and show progress bars.

    Returns:
        The cache, to give to `CaptionedImages(..., cache=cache)`.

    Raises:
        DatasetError: There are no images, or some cannot be decoded, or the disk is too full.
        ValueError: The size, the interpolation or `on_bad` is invalid.

    Example:
        >>> cache = build_image_cache(split.paths, "cache", image_size=(384, 128))  # doctest: +SKIP
    """
    check_image_size(image_size)
    check_interpolation(interpolation)
    check_on_bad(on_bad)
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise DatasetError("there are no images to build a cache of")
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    digests = dict(zip(paths, digest_files(paths, folder, num_threads=num_threads, progress=progress), strict=True))
    contents = {digests[path]: path for path in reversed(paths) if digests[path]}
    contents = {digest: contents[digest] for digest in sorted(contents)}
    target = folder / f"{_stem(image_size, interpolation)}-{_key(list(contents), image_size)}.uint8"
    pixels = PixelRows(target, image_size, interpolation)
    manifest = _read_manifest(target)
    if manifest is None:
        with locked(target.with_suffix(".lock"), action=f"building the image cache {target}"):
            manifest = _read_manifest(target) or _build(pixels, contents, num_threads, progress)
    elif manifest["bad"]:
        with suppress(OSError):  # a folder that is read-only or full is used as it is
            manifest = _decode_bad_again(pixels, contents, manifest, num_threads, progress)
    reasons = {**manifest["bad"], "": "cannot be read"}
    bad = {path: reasons[digest] for path, digest in digests.items() if digest in reasons}
    report_bad(bad, len(paths), on_bad=on_bad, what="images")
    row_of = {digest: row for row, digest in enumerate(contents)}
    rows = {path: row_of[digest] for path, digest in digests.items() if path not in bad}
    return ImageCache(pixels, rows=rows, bad=bad)


def cache_bytes(num_images: int, image_size: tuple[int, int]) -> int:
    """Disk space that a cache takes.

    Example:
        >>> cache_bytes(34_054, (384, 128)) / 1e9  # CUHK-PEDES' training images, in GB
        5.021466624
    """
    return num_images * 3 * image_size[0] * image_size[1]


def digest_files(
    paths: Sequence[Path], cache_dir: Path, *, num_threads: int | None = None, progress: bool = True
) -> list[str]:
    """A digest of the content of each file; `""` for one that cannot be read.

    Digests are kept in `cache_dir` with the file's size and time of change, as make and git do, so that they are
    computed again only where a file changed.

    Args:
        paths: The files.
        cache_dir: Folder for the index.
        num_threads: Threads that read; `None` for one a core.
        progress: Show a progress bar.
    """
    known = _read_object(cache_dir / _INDEX) or {}  # a damaged index is forgotten: it only saves time

    def digest(path: Path) -> list[Any] | None:
        try:
            stat = path.stat()
            entry = known.get(str(path.absolute()))
            if entry is not None and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
                return entry
            return [stat.st_size, stat.st_mtime_ns, _digest(path)]
        except OSError:
            return None

    found = list(map_in_threads(digest, paths, num_threads=num_threads, progress=progress, label="reading images"))
    fresh = {str(path.absolute()): entry for path, entry in zip(paths, found, strict=True) if entry is not None}
    if any(known.get(path) != entry for path, entry in fresh.items()):
        _write_object(cache_dir / _INDEX, {**known, **fresh})
    return ["" if entry is None else entry[2] for entry in found]


def _digest(path: Path) -> str:
    with open_file(path) as stream:
        return content_digest(stream).hexdigest()


def _stem(image_size: tuple[int, int], interpolation: str) -> str:
    """How the names of caches begin that hold images resized in the same way."""
    return f"{'images' if interpolation == 'bicubic' else interpolation}-{image_size[0]}x{image_size[1]}"


def _key(digests: Sequence[str], image_size: tuple[int, int]) -> str:
    content = json.dumps([FORMAT_VERSION, list(image_size), list(digests)])
    return blake2b(content.encode(), digest_size=10).hexdigest()


_UNSEALED = {"format_version", "bytes", "bad"}  # all that manifests of 0.1.0 hold


def _seal(content: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of itself."""
    write_bytes_atomically(path, json.dumps({**content, "seal": _seal(content)}).encode())


def _read_object(path: Path) -> dict[str, Any] | None:
    """Read a file of `_write_object`; `None` if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.keys() == _UNSEALED:
            return content if all(isinstance(reason, str) for reason in content["bad"].values()) else None
        return content if content.pop("seal") == _seal(content) else None
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return None


def _read_manifest(target: Path) -> dict[str, Any] | None:
    """The description of a complete and valid cache, else `None`.

    The pixels are compared with their digest unless the file is as old as when it was written.
    """
    manifest = _read_object(target.with_suffix(".json"))
    try:
        status = target.stat()
        if manifest is None or manifest["bytes"] != status.st_size:
            return None
        touched = manifest.get("modified_ns", status.st_mtime_ns) != status.st_mtime_ns
        if touched and manifest["digest"] != _digest(target):
            return None
    except OSError:
        return None
    return manifest


def _decoded_before(wanted: PixelRows) -> dict[str, tuple[PixelRows, int]]:
    """The row of each image, by its digest, in any complete cache of images resized in this way."""
    found: dict[str, tuple[PixelRows, int]] = {}
    for path in sorted(wanted.path.parent.glob(f"{_stem(wanted.image_size, wanted.interpolation)}-*.uint8")):
        manifest = _read_manifest(path)
        if manifest is None or manifest.get("format_version") != FORMAT_VERSION:
            continue
        pixels = PixelRows(path, wanted.image_size, wanted.interpolation)
        for row, digest in enumerate(manifest.get("digests", ())):
            if digest not in manifest["bad"]:
                found[digest] = pixels, row
    return found


def _build(wanted: PixelRows, contents: Mapping[str, Path], num_threads: int | None, progress: bool) -> dict[str, Any]:
    """Write the pixels, then the manifest that says they are complete; return it. The caller holds the lock."""
    target, image_size = wanted.path, wanted.image_size
    remove_scratch(target)
    need = _reserve(target.parent, len(contents), image_size)
    before = _decoded_before(wanted)
    fresh = [path for digest, path in contents.items() if digest not in before]
    if progress:
        tqdm.write(f"decoding {len(fresh):,} images once: {need / 1e9:,.2f} GB in {target}")
    decoded = map_in_threads(
        lambda path: _decode(path, wanted),
        fresh,
        num_threads=num_threads,
        progress=progress,
        label="decoding images",
        pending=256,
    )
    bad: dict[str, str] = {}
    state = blake2b(digest_size=16)
    with replaced(target) as scratch, scratch.open("wb") as stream:
        for digest in contents:
            if digest in before:
                pixels, row = before[digest]
                result: np.ndarray | str = pixels[row].numpy()
            else:
                result = next(decoded)
            if isinstance(result, str):
                bad[digest] = result
                result = np.zeros((3, *image_size), dtype=np.uint8)
            state.update(result.tobytes())
            stream.write(result.tobytes())
    return _write_manifest(target, contents, bad, state.hexdigest())


def _write_manifest(target: Path, contents: Iterable[str], bad: Mapping[str, str], digest: str) -> dict[str, Any]:
    """Write and return the manifest that says that the pixels are complete."""
    status = target.stat()
    manifest = {"format_version": FORMAT_VERSION, "bytes": status.st_size, "bad": bad, "digests": list(contents)}
    manifest |= {"digest": digest, "modified_ns": status.st_mtime_ns}
    _write_object(target.with_suffix(".json"), manifest)
    return manifest


def _decode_bad_again(
    wanted: PixelRows, contents: Mapping[str, Path], manifest: dict[str, Any], num_threads: int | None, progress: bool
) -> dict[str, Any]:
    """Put images into a complete cache that could not be decoded when it was built; return its manifest.

    The disk may have failed for a moment, or a decoder may have been installed since. Nobody reads the rows of bad
    images, so they are written in place. Whoever meets the new pixels with the old manifest finds that their digest
    differs, and waits for the lock.
    """

    def decode(manifest: dict[str, Any]) -> Iterator[tuple[str, np.ndarray | str]]:
        digests = [digest for digest in contents if digest in manifest["bad"]]
        results = map_in_threads(
            lambda path: _decode(path, wanted),
            [contents[digest] for digest in digests],
            num_threads=num_threads,
            progress=progress,
            label="decoding images",
            pending=256,
        )
        return zip(digests, results, strict=True)

    if all(isinstance(result, str) for _, result in decode(manifest)):
        return manifest
    target, row_of = wanted.path, {digest: row for row, digest in enumerate(contents)}
    with locked(target.with_suffix(".lock"), action=f"adding to the image cache {target}"):
        manifest = _read_manifest(target) or _build(wanted, contents, num_threads, progress)
        bad = dict(manifest["bad"])

        def put(rows: Iterable[tuple[str, np.ndarray]]) -> None:
            with target.open("r+b") as stream:
                for digest, row in rows:
                    stream.seek(row_of[digest] * row.nbytes)
                    stream.write(row.tobytes())
                    bad.pop(digest, None)
            flush(target)

        try:
            put((digest, result) for digest, result in decode(manifest) if not isinstance(result, str))
            return _write_manifest(target, contents, bad, _digest(target))
        except OSError:  # such as a full disk; with zeros the old manifest fits again
            black = np.zeros((3, *wanted.image_size), dtype=np.uint8)
            try:
                put((digest, black) for digest in manifest["bad"] if digest in row_of)
            finally:
                with suppress(OSError, KeyError):  # or it would be compared with its digest whenever it is opened
                    os.utime(target, ns=(manifest["modified_ns"],) * 2)
            raise


def _reserve(folder: Path, num_images: int, image_size: tuple[int, int]) -> int:
    """The bytes that a cache takes, for which there must be room."""
    need, free = cache_bytes(num_images, image_size), shutil.disk_usage(folder).free
    if need > free:
        raise DatasetError(
            f"a cache of {num_images:,} images at {image_size[0]}x{image_size[1]} takes {need / 1e9:,.2f} GB, but only "
            f"{free / 1e9:,.2f} GB are free in {folder}; free some, give another folder, or train without cache"
        )
    return need


def _decode(path: Path, wanted: PixelRows) -> "np.ndarray | str":
    """The pixels, or why there are none."""
    try:
        return np.ascontiguousarray(fit_image(open_image(path), wanted.image_size, wanted.interpolation).numpy())
    except DatasetError as error:
        return str(error.__cause__ or error)
