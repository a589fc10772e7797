"""A gallery on disk: written whole or not at all, readable by its owner alone, one writer at a time.

`gallery.json` names the file of features that belongs to it, and replacing `gallery.json` is the one step that makes
a new state valid. Whoever is killed before it leaves the old state, whoever reads meanwhile sees the old or the new.
"""

import json
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import write_bytes_atomically
from promptreid.retrieval.table import PictureTable

FORMAT_VERSION = 1
_INDEX, _LOCK = "gallery.json", "gallery.lock"
_TENSORS = {"features": 2, "ids": 1, "sizes": 1, "modified_ns": 1}
# How often a reader looks again when a writer has just replaced the files under it.
_ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class SavedGallery:
    """What the files of a gallery hold.

    Attributes:
        features: (G, E) float32 or float16; as read, they stay on disk until they are looked at.
        table: The pictures.
        header: Everything else, as JSON holds it.
        generation: Name of this state; another one has another name.
    """

    features: Tensor
    table: PictureTable
    header: dict[str, Any]
    generation: str


def exists(folder: Path) -> bool:
    """Whether the folder holds a gallery."""
    return (folder / _INDEX).is_file()


def write_gallery(
    folder: Path, features: Tensor, table: PictureTable, header: dict[str, Any], *, replaces: str | None
) -> str:
    """Write a gallery; what the folder held before is valid until the last step and gone after it.

    Args:
        folder: Made if it is not there, for its owner alone.
        features: (G, E).
        table: The pictures.
        header: What else to keep.
        replaces: Generation that the folder must hold; `None` replaces anything.

    Returns:
        The new generation.

    Raises:
        CheckpointError: Another process has changed the gallery meanwhile.
        OSError: The files cannot be written, for example because the disk is full; the old ones are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder):
        if replaces is not None and (found := _generation(folder)) != replaces:
            raise CheckpointError(
                f"{folder} was {'deleted' if found is None else 'changed by another process'} since it was loaded; "
                "load it again and repeat the change"
            )
        generation = secrets.token_hex(8)
        name = f"features-{generation}.safetensors"
        index = {
            **header,
            "format_version": FORMAT_VERSION,
            "generation": generation,
            "features_file": name,
            "paths": list(table.paths),
            "metadata": list(table.metadata),
        }
        content = json.dumps(index).encode()
        tensors = {
            "features": features.detach().cpu().contiguous(),
            "ids": table.ids,
            "sizes": table.sizes,
            "modified_ns": table.modified_ns,
        }
        needed = sum(value.nbytes for value in tensors.values()) + len(content)
        try:
            _write_tensors(folder, name, tensors)
            write_bytes_atomically(folder / _INDEX, content, mode=0o600)
        except (OSError, SafetensorError) as error:
            _remove_all_but(folder, _features_file(folder))
            raise OSError(
                f"cannot write the gallery to {folder} ({error}); it needs {needed / 1e6:,.1f} MB beside the old one. "
                "What was saved there before is untouched"
            ) from error
        _remove_all_but(folder, name)
    return generation


def read_gallery(folder: Path) -> SavedGallery:
    """Read a gallery; its features are mapped from disk, not copied into memory.

    Raises:
        CheckpointError: Files are missing, corrupt or of another format version.
    """
    for attempt in range(_ATTEMPTS):
        index = _read_index(folder)
        try:
            tensors = load_file(folder / index["features_file"])
        except (
            FileNotFoundError,
            RuntimeError,
        ) as error:  # the latter is torch's, where the file goes while it is mapped
            if (folder / index["features_file"]).exists():
                raise CheckpointError(f"{folder} holds no readable gallery ({error}); build it again") from error
            # A writer replaced both files since the index was read, or the features are truly gone.
            if attempt + 1 < _ATTEMPTS and _generation(folder) != index["generation"]:
                continue
            raise CheckpointError(f"{folder} has lost {index['features_file']}; build it again") from error
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} holds no readable gallery ({error}); build it again") from error
        return _assemble(folder, index, tensors)
    raise CheckpointError(f"{folder} changes faster than it can be read; try again")


def _assemble(folder: Path, index: dict[str, Any], tensors: dict[str, Tensor]) -> SavedGallery:
    found = {name: value.ndim for name, value in tensors.items()}
    lengths = {len(index["paths"]), len(index["metadata"]), *(len(value) for value in tensors.values())}
    if found != _TENSORS or len(lengths) != 1 or not tensors["features"].is_floating_point():
        raise CheckpointError(f"{folder}: {index['features_file']} does not fit {_INDEX}; build it again")
    table = PictureTable(
        index.pop("paths"), tensors["ids"], tensors["sizes"], tensors["modified_ns"], index.pop("metadata")
    )
    return SavedGallery(tensors["features"], table, index, index["generation"])


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.is_file():
        raise CheckpointError(f"there is no gallery in {folder} (no {_INDEX}); build one and save it there")
    try:
        index = json.loads(path.read_bytes())
        version = index["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no readable gallery ({path}: {error}); build it again") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {version!r}, this library reads {FORMAT_VERSION}; "
            "pip install --upgrade promptreid, or build it again"
        )
    _check_index(path, index)
    return index


def _check_index(path: Path, index: dict[str, Any]) -> None:
    paths, metadata = index.get("paths"), index.get("metadata")
    fits = (
        isinstance(index.get("features_file"), str)
        and isinstance(index.get("generation"), str)
        # A file name and no path: the index must not lead out of its folder.
        and Path(index["features_file"]).name == index["features_file"]
        and isinstance(paths, list)
        and all(isinstance(name, str) for name in cast("list[Any]", paths))
        and isinstance(metadata, list)
        and all(isinstance(entry, dict) for entry in cast("list[Any]", metadata))
    )
    if not fits:
        raise CheckpointError(f"{path} is damaged (missing or malformed entries); build the gallery again")


def _generation(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _INDEX).read_bytes())["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _features_file(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _INDEX).read_bytes())["features_file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_tensors(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Write to a scratch file that nobody else may open, flush it to disk, rename it."""
    scratch = folder / f".{name}"
    os.close(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    save_file(tensors, scratch)
    handle = os.open(scratch, os.O_RDWR)
    try:
        os.chmod(scratch, 0o600)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(scratch, folder / name)


def _remove_all_but(folder: Path, kept: str | None) -> None:
    """Delete features that no index names any more, and what writers that were killed left behind."""
    for pattern in ("features-*.safetensors", ".features-*", ".tmp*", f".{_INDEX}-*"):
        for path in folder.glob(pattern):
            if path.name != kept:
                path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Let one process write at a time; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; there, let one process write.
        yield
        return
    handle = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
