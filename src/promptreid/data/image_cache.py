"""Images decoded once, in one file that all loader workers share."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from promptreid.data.images import OnBad, check_on_bad, open_image, report_bad
from promptreid.data.transforms import check_image_size, fit_image
from promptreid.errors import DatasetError
from promptreid.files import write_bytes_atomically

_INDEX = "digests.json"

_CHUNK_BYTES = 2**20


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
    known = _read_index(cache_dir / _INDEX)

    def digest(path: Path) -> tuple[str, list[Any]]:
        try:
            stat = path.stat()
            entry = known.get(str(path.absolute()))
            if isinstance(entry, list) and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
                return entry[2], entry
            computed = _digest(path)
        except OSError:
            return "", []
        return computed, [stat.st_size, stat.st_mtime_ns, computed]

    with ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        bar = tqdm(
            pool.map(digest, paths), total=len(paths), desc="reading images", disable=not progress, leave=False, delay=1
        )
        found = list(bar)
    fresh = {str(path.absolute()): entry for path, (_, entry) in zip(paths, found, strict=True) if entry}
    if any(known.get(path) != entry for path, entry in fresh.items()):
        write_bytes_atomically(cache_dir / _INDEX, json.dumps({**known, **fresh}).encode())
    return [digest for digest, _ in found]


def _digest(path: Path) -> str:
    state = blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    """What was remembered; a damaged index is forgotten, it only saves time."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(index, dict) or not all(isinstance(entry, list) and len(entry) == 3 for entry in index.values()):
        return {}
    return index


class PixelRows:
    """Rows of a file of pixels, read as they are needed; all processes share the memory.

    Args:
        path: The file.
        image_size: (height, width) of each picture.
    """

    def __init__(self, path: Path, image_size: tuple[int, int]) -> None:
        self.path = path
        self.image_size = image_size
        self._pixels: Any = None

    def __getitem__(self, row: int) -> Tensor:
        """The pixels of one picture, a copy, uint8 (3, H, W)."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, dtype=np.uint8, mode="r").reshape(-1, 3, *self.image_size)
        return torch.from_numpy(np.array(self._pixels[row]))

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a map would become its content: each worker opens the file itself.
        return {**self.__dict__, "_pixels": None}


class ImageCache:
    """Decoded pictures in a file. Made by `build_image_cache`.

    Args:
        pixels: The file's rows.
        rows: Where each picture is in the file.
        bad: Pictures that could not be decoded, and why.

    Attributes:
        pixels: The file's rows, which are all that loader workers need.
        bad: Pictures left out, with the reason.

    Shape:
        - an item: uint8 (3, H, W)
    """

    def __init__(self, pixels: PixelRows, *, rows: Mapping[Path, int], bad: Mapping[Path, str]) -> None:
        self.pixels = pixels
        self.bad: dict[Path, str] = dict(bad)
        self._rows = dict(rows)

    @property
    def path(self) -> Path:
        """The file."""
        return self.pixels.path

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.image_size

    def __len__(self) -> int:
        """Pictures that can be read from it."""
        return len(self._rows)

    def __contains__(self, path: Path) -> bool:
        return path in self._rows

    def __getitem__(self, path: Path) -> Tensor:
        """The pixels of a picture, a copy, uint8 (3, H, W)."""
        return self.pixels[int(self.rows([path])[0])]

    def rows(self, paths: Sequence[Path]) -> Tensor:
        """Where pictures are in `pixels`, (len(paths),) int64.

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


def read_manifest(path: Path) -> dict[str, str] | None:
    """Digests that could not be decoded, with reasons, of a complete cache; `None` if there is no complete one."""
    try:
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        size = path.stat().st_size
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or manifest.get("bytes") != size or not isinstance(manifest.get("bad"), dict):
        return None
    return manifest["bad"]


FORMAT_VERSION = 1

CHUNK = 256


def build_image_cache(
    paths: Sequence[Path],
    cache_dir: str | Path,
    *,
    image_size: tuple[int, int],
    on_bad: OnBad = "strict",
    num_threads: int | None = None,
    progress: bool = True,
) -> ImageCache:
    """Decode pictures once, at the size that training takes, or use what was decoded before.

    The file is named after the contents of the pictures and the size, so a changed picture is never served from an
    old cache. It is written under another name and renamed when complete, so a build that was killed leaves nothing
    in use; of several builders one builds, and the others wait and use what it built. Its need of disk space is said
    and made sure of first. Old caches are never deleted: delete the folder when you want the space back.

    Args:
        paths: The pictures; of those named twice, or of equal content, one is stored.
        cache_dir: Folder for it, made if need be.
        image_size: (height, width) in pixels.
        on_bad: `"strict"` refuses pictures that cannot be decoded, with the list; `"skip"` leaves them out.
        num_threads: Threads that decode; `None` for one a core.
        progress: Say what is built, and show progress bars.

    Returns:
        The cache.

    Raises:
        DatasetError: There are no pictures, or some cannot be decoded, or the disk is too full.
        ValueError: The size or `on_bad` is none.

    Example:
        >>> cache = build_image_cache(paths, "cache", image_size=(384, 128))  # doctest: +SKIP
    """
    check_image_size(image_size)
    check_on_bad(on_bad)
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise DatasetError("there are no images to build a cache of")
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    digests = digest_files(paths, folder, num_threads=num_threads, progress=progress)
    first = {digest: path for digest, path in reversed(list(zip(digests, paths, strict=True))) if digest}
    order = sorted(first)
    target = folder / f"images-{image_size[0]}x{image_size[1]}-{_key(order, image_size)}.uint8"
    if read_manifest(target) is None:
        with FileLock(target.with_suffix(".lock")):
            if read_manifest(target) is None:
                _build(target, [first[digest] for digest in order], order, image_size, num_threads, progress)
    reasons = read_manifest(target) or {}
    reasons = {**reasons, "": "cannot be read"}
    bad = {path: reasons[digest] for path, digest in zip(paths, digests, strict=True) if digest in reasons}
    report_bad(bad, len(paths), on_bad=on_bad, what="images")
    places = {digest: row for row, digest in enumerate(order)}
    rows = {path: places[digest] for path, digest in zip(paths, digests, strict=True) if path not in bad}
    return ImageCache(PixelRows(target, image_size), rows=rows, bad=bad)


def cache_bytes(num_images: int, image_size: tuple[int, int]) -> int:
    """Disk space that a cache takes.

    Example:
        >>> cache_bytes(34_054, (384, 128)) / 1e9  # CUHK-PEDES' training images, in GB
        5.021466624
    """
    return num_images * 3 * image_size[0] * image_size[1]


def _key(digests: Sequence[str], image_size: tuple[int, int]) -> str:
    content = json.dumps([FORMAT_VERSION, list(image_size), list(digests)])
    return blake2b(content.encode(), digest_size=10).hexdigest()


def _build(
    target: Path,
    paths: Sequence[Path],
    digests: Sequence[str],
    image_size: tuple[int, int],
    num_threads: int | None,
    progress: bool,
) -> None:
    """Write the pixels, then the manifest that says they are complete. The caller holds the lock."""
    for stale in target.parent.glob(f".{target.name}-*"):
        stale.unlink(missing_ok=True)  # of a builder that was killed; a living one would hold the lock
    need = cache_bytes(len(paths), image_size)
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise DatasetError(
            f"a cache of {len(paths):,} images at {image_size[0]}x{image_size[1]} takes {need / 1e9:,.2f} GB, but only "
            f"{free / 1e9:,.2f} GB are free in {target.parent}; free some, give another folder, or train without cache"
        )
    if progress:
        tqdm.write(f"decoding {len(paths):,} images once: {need / 1e9:,.2f} GB in {target}")
    handle, scratch = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    bad: dict[str, str] = {}
    try:
        with os.fdopen(handle, "wb") as stream, ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
            bar = tqdm(total=len(paths), desc="decoding images", unit="image", disable=not progress, leave=False)
            for start in range(0, len(paths), CHUNK):
                chunk = paths[start : start + CHUNK]
                results = pool.map(_decode, chunk, [image_size] * len(chunk))
                for digest, result in zip(digests[start : start + CHUNK], results, strict=True):
                    if isinstance(result, str):
                        bad[digest] = result
                        result = np.zeros((3, *image_size), dtype=np.uint8)
                    stream.write(result.tobytes())
                    bar.update()
            bar.close()
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
        manifest = {"format_version": FORMAT_VERSION, "bytes": need, "bad": bad}
        write_bytes_atomically(target.with_suffix(".json"), json.dumps(manifest).encode())
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _decode(path: Path, image_size: tuple[int, int]) -> "np.ndarray | str":
    """The pixels, or why there are none."""
    try:
        return np.ascontiguousarray(fit_image(open_image(path), image_size).numpy())
    except DatasetError as error:
        return str(error.__cause__ or error)
