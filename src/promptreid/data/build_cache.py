"""Builds the cache of decoded pictures: announced, in parallel, and never half a file in use."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from promptreid.data.image_cache import ImageCache, PixelRows, read_manifest
from promptreid.data.image_digests import digest_files
from promptreid.data.pictures import open_image
from promptreid.data.readable import OnBad, check_on_bad, report_bad
from promptreid.data.transforms import check_image_size, fit_image
from promptreid.errors import DatasetError
from promptreid.files import write_bytes_atomically

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
