"""A gallery on disk: written whole or not at all, readable by its owner alone, one writer at a time."""

import json
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
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


class GalleryStore:
    """One gallery's state, written through to its folder once it has one.

    Args:
        table: The pictures.
        features: (G, E).
        header: What else is kept, as JSON holds it.

    Attributes:
        state: Table and features; replaced as one and never changed, so that a search in another thread sees all of
            one state.
        header: What else is kept.
        directory: The folder, or `None`.
    """

    def __init__(self, table: PictureTable, features: Tensor, *, header: dict[str, Any] | None = None) -> None:
        self.state: tuple[PictureTable, Tensor] = (table, features)
        self.header: dict[str, Any] = dict(header or {})
        self.directory: Path | None = None
        self._generation: str | None = None
        self._next_id = 1 + int(table.ids.max()) if len(table) else 0

    def take_ids(self, count: int) -> int:
        """The first of `count` numbers that no picture ever had."""
        first, self._next_id = self._next_id, self._next_id + count
        return first

    def replace(self, table: PictureTable, features: Tensor) -> None:
        """Put another state in place: first in the folder, if there is one, then here."""
        if self.directory is None:
            self.state = (table, features)
            return
        device = features.device
        self._write(self.directory, table, features, replaces=self._generation)
        # Mapped anew, because the old mapping would keep what was removed on the disk.
        self.state = (table, read_gallery(self.directory).features.to(device))

    def save(self, directory: Path) -> None:
        """Write to a folder and stay bound to it."""
        same = self.directory is not None and directory.resolve() == self.directory.resolve()
        self._write(directory, *self.state, replaces=self._generation if same else None)
        self.directory = directory

    def save_header(self) -> None:
        """Write what changed in the header, if there is a folder."""
        if self.directory is not None:
            self._write(self.directory, *self.state, replaces=self._generation)

    def bind(self, directory: Path) -> None:
        """Write every later state to a new folder.

        Raises:
            FileExistsError: It holds a gallery already.
        """
        if exists(directory):
            raise FileExistsError(
                f"{directory} holds a gallery already; go on with Gallery.load and update, or choose another folder"
            )
        self.save(directory)

    @classmethod
    def load(cls, directory: Path) -> "GalleryStore":
        """Read a folder; features stay on disk until they are looked at.

        Raises:
            CheckpointError: Files are missing, corrupt or of another format version.
        """
        saved = read_gallery(directory)
        header, next_id = saved.header.get("header"), saved.header.get("next_id")
        if not isinstance(header, dict):
            raise CheckpointError(f"{directory} is damaged (its header is {header!r}); build the gallery again")
        store = cls(saved.table, saved.features, header=cast("dict[str, Any]", header))
        if not isinstance(next_id, int) or (len(saved.table) and next_id <= int(torch.max(saved.table.ids))):
            raise CheckpointError(f"{directory} is damaged (next_id is {next_id!r}); build the gallery again")
        store.directory, store._generation, store._next_id = directory, saved.generation, next_id
        return store

    def _write(self, directory: Path, table: PictureTable, features: Tensor, *, replaces: str | None) -> None:
        header = {"header": self.header, "next_id": self._next_id}
        self._generation = write_gallery(directory, features, table, header, replaces=replaces)
