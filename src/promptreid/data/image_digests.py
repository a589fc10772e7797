"""Digests of files' contents, remembered as long as size and time of change stay the same."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
