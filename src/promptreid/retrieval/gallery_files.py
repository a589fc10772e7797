"""A gallery on disk: written whole or not at all, readable by its owner alone, one writer at a time."""

import json
import secrets
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import (
    file_digest,
    locked,
    make_private_folder,
    portable,
    read_tensors,
    write_bytes_atomically,
    write_tensors_atomically,
)
from promptreid.retrieval.encode import rows_of_other_length
from promptreid.retrieval.index import ExactIndex, Index
from promptreid.retrieval.table import ImageTable

FORMAT_VERSION = 1

_DESCRIPTION, _LOCK = "gallery.json", "gallery.lock"

_TENSORS = {"features": 2, "ids": 1, "sizes": 1, "modified_ns": 1}

# The description begins with the digest of what follows; galleries of 0.1.0 have none.
_SEAL = b'{"sha256": "%s", '

# How often a reader looks again when a writer has just replaced the files under it.
_ATTEMPTS = 10


def exists(folder: Path) -> bool:
    """Whether the folder holds a gallery."""
    return (folder / _DESCRIPTION).is_file()


def write_gallery(folder: Path, exact: ExactIndex, header: dict[str, Any], *, replaces: str | None) -> str:
    """Write a gallery, for its owner alone; what the folder held is valid until the last step and gone after it.

    Args:
        folder: Made if it does not exist.
        exact: The images and their features.
        header: What else to keep.
        replaces: Generation that the folder must hold; `None` replaces anything.

    Returns:
        The new generation: the name of this state, which no other state has.
    """
    table = exact.images
    make_private_folder(folder)
    generation = secrets.token_hex(8)
    features_file = f"features-{generation}.safetensors"
    body = _as_json(
        {
            **header,
            "format_version": FORMAT_VERSION,
            "generation": generation,
            "features_file": features_file,
            "paths": [portable(path) for path in table.paths],
            "metadata": list(table.metadata),
        }
    )
    tensors = {"features": exact.features, "ids": table.ids, "sizes": table.sizes, "modified_ns": table.modified_ns}
    with locked(folder / _LOCK, action=f"writing the gallery {folder}"):
        if replaces is not None and (found := _entry(folder, "generation")) != replaces:
            raise CheckpointError(
                f"{folder} was {'deleted' if found is None else 'changed by another process'} since it was loaded; "
                "load it again and repeat the change"
            )
        _write_both(folder, features_file, tensors, body)
        if left := _remove(_leftovers(folder, features_file)):
            warnings.warn(
                f"the gallery in {folder} is written, but files of its earlier state cannot be removed: "
                f"{', '.join(map(str, left))}; what was removed from the gallery may be in them: delete them",
                stacklevel=4,
            )
    return generation


def _write_both(folder: Path, features_file: str, tensors: Mapping[str, Tensor], body: bytes) -> None:
    """Write the features, then the description that names them."""
    try:
        write_tensors_atomically(folder / features_file, tensors, mode=0o600)
        body = b'{"features_sha256": "%s", ' % file_digest(folder / features_file).encode() + body[1:]
        write_bytes_atomically(folder / _DESCRIPTION, _seal(body) + body[1:], mode=0o600)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            (folder / features_file).unlink(missing_ok=True)
        needed = sum(value.nbytes for value in tensors.values()) + len(body)
        raise OSError(
            f"cannot write the gallery to {folder} ({error}); it needs {needed / 1e6:,.1f} MB beside the old one. "
            "What was saved there before is untouched"
        ) from error


def _as_json(description: dict[str, Any]) -> bytes:
    try:
        return json.dumps(description).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the gallery's notes hold what JSON does not take ({error}); keep numbers and texts"
        ) from error


def _seal(body: bytes) -> bytes:
    return _SEAL % sha256(body).hexdigest().encode()


def read_gallery(folder: Path) -> tuple[ExactIndex, dict[str, Any]]:
    """Read a gallery, its features mapped from disk, and everything else that was written, with the `generation`."""
    for attempt in range(_ATTEMPTS):
        description = _read_description(folder)
        path = folder / description["features_file"]
        try:
            tensors = read_tensors(path)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            # RuntimeError is torch's, where the file disappears while it is mapped.
            if path.exists() or not isinstance(error, FileNotFoundError | RuntimeError):
                raise CheckpointError(f"{folder} holds no readable gallery ({error}); build it again") from error
            # A writer replaced both files since the description was read, or the features are truly gone.
            if attempt + 1 < _ATTEMPTS and _entry(folder, "generation") != description["generation"]:
                continue
            raise CheckpointError(f"{folder} has lost {path.name}; build it again") from error
        return _assemble(folder, description, tensors)
    raise CheckpointError(f"{folder} changes faster than it can be read; try again")


def _assemble(
    folder: Path, description: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[ExactIndex, dict[str, Any]]:
    paths, metadata = description.pop("paths"), description.pop("metadata")
    found = {name: value.ndim for name, value in tensors.items()}
    lengths = {len(paths), len(metadata), *(len(value) for value in tensors.values())}
    fits = found == _TENSORS and len(lengths) == 1 and tensors["features"].is_floating_point()
    if not fits or len(tensors["ids"].unique()) != len(paths) or tensors["ids"].dtype != torch.int64:
        raise CheckpointError(f"{folder}: {description['features_file']} does not fit {_DESCRIPTION}; build it again")
    table = ImageTable(paths, tensors["ids"], tensors["sizes"], tensors["modified_ns"], metadata)
    return ExactIndex(table, tensors["features"]), description


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise CheckpointError(f"there is no gallery in {folder} (no {_DESCRIPTION}); build one and save it there")
    try:
        content = path.read_bytes()
        description = json.loads(content)
        version = description["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no readable gallery ({path}: {error}); build it again") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {version!r}, this library reads {FORMAT_VERSION}; "
            "pip install --upgrade promptreid, or build it again"
        )
    body = b"{" + content[len(_SEAL % (b"0" * 64)) :]
    if "sha256" in description and not content.startswith(_seal(body)):
        raise CheckpointError(f"{path} is damaged (its SHA-256 is not the one that it holds); build the gallery again")
    _check_description(path, description)
    return description


def _check_description(path: Path, description: dict[str, Any]) -> None:
    paths, metadata = description.get("paths"), description.get("metadata")
    fits = (
        isinstance(description.get("features_file"), str)
        and isinstance(description.get("generation"), str)
        # A file name and no path: it must not lead out of the gallery's folder.
        and Path(description["features_file"]).name == description["features_file"]
        and isinstance(paths, list)
        and all(isinstance(name, str) for name in cast("list[Any]", paths))
        and isinstance(metadata, list)
        and all(isinstance(entry, dict) for entry in cast("list[Any]", metadata))
    )
    if not fits:
        raise CheckpointError(f"{path} is damaged (missing or malformed entries); build the gallery again")


def _entry(folder: Path, name: str) -> str | None:
    """One entry of the description as it is on the disk now; `None` if that cannot be read."""
    try:
        return str(json.loads((folder / _DESCRIPTION).read_bytes())[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _leftovers(folder: Path, kept: str) -> list[Path]:
    """Features that the description does not name any more, and what writers that were killed left behind."""
    patterns = ("features-*.safetensors", ".features-*", ".tmp*", f".{_DESCRIPTION}-*")
    return [path for pattern in patterns for path in folder.glob(pattern) if path.name != kept]


def _remove(paths: Sequence[Path]) -> list[Path]:
    """Delete files; returns those that cannot be deleted."""
    left: list[Path] = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            left.append(path)
    return left


def _clean(folder: Path, features_file: str) -> None:
    """Delete what killed writers left, which may hold features that were to be removed, unless somebody is writing."""
    if _leftovers(folder, features_file):
        with suppress(OSError), locked(folder / _LOCK, action=f"writing the gallery {folder}", timeout_seconds=0):
            if (kept := _entry(folder, "features_file")) is not None:
                _remove(_leftovers(folder, kept))


def check_gallery(folder: Path) -> tuple[list[str], list[str]]:
    """Read a whole gallery, compare its digests and look at every feature.

    Returns:
        What is wrong with it, and what could not be compared.

    Raises:
        CheckpointError: It cannot be read at all.
    """
    exact, description = read_gallery(folder)
    path, noted = folder / description["features_file"], description.get("features_sha256")
    problems: list[str] = []
    notes = (
        [f"{folder} was written by 0.1.0, without checksums; the next change to it adds them"] if noted is None else []
    )
    if noted is not None and noted != file_digest(path):
        problems.append(f"{path.name} is damaged: its SHA-256 is not the one that {_DESCRIPTION} holds")
    if wrong := rows_of_other_length(exact.features):
        problems.append(f"{len(wrong)} features are not of unit length, such as that of {exact.images.paths[wrong[0]]}")
    return problems, notes


class GalleryStore:
    """One gallery's images, written through to their folder once they have one.

    Attributes:
        exact: The images and their features; replaced by every change and never changed itself, so that a search in
            another thread sees all of one state.
        header: What else is kept.
        directory: The folder, or `None`.
    """

    def __init__(self, exact: ExactIndex, *, header: dict[str, Any] | None = None, index: Index | None = None) -> None:
        self.exact: ExactIndex = exact
        self.header: dict[str, Any] = dict(header or {})
        self.directory: Path | None = None
        self._other = index
        self._generation: str | None = None
        self.header.setdefault("notes", {})
        self._next_id = 1 + int(exact.images.ids.max()) if len(exact.images) else 0
        if index is not None and len(exact.images):
            if not bool(exact.features.isfinite().all()):
                raise CheckpointError("features of the gallery hold NaN or infinity; it is damaged: build it again")
            index.add(exact.images, exact.features)

    @property
    def images(self) -> ImageTable:
        """The images."""
        return self.exact.images

    def snapshot(self) -> tuple[ExactIndex, Index]:
        """The images as they are now, and what searches them."""
        exact = self.exact
        return exact, exact if self._other is None else self._other

    def take_ids(self, count: int) -> int:
        """The first of `count` numbers that no image ever had."""
        first, self._next_id = self._next_id, self._next_id + count
        return first

    def change(
        self,
        *,
        removed: Sequence[int] = (),
        added: tuple[ImageTable, Tensor] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove images by number, append others, keep more in the header: first in the folder, if any, then here."""
        exact = copy(self.exact)
        _apply(exact, removed, added)
        new_header = {**self.header, **(header or {})}
        if self.directory is not None:
            self._write(self.directory, exact, new_header, replaces=self._generation)
            # Mapped again, because the old mapping would keep what was removed on the disk.
            with suppress(CheckpointError):  # it is written, and the features are here as well
                exact.features = read_gallery(self.directory)[0].features.to(exact.features.device)
        self.exact, self.header = exact, new_header
        if self._other is not None:
            _apply(self._other, removed, added)

    def save(self, directory: Path) -> None:
        """Write to a folder and stay bound to it."""
        same = self.directory is not None and directory.resolve() == self.directory.resolve()
        self._write(directory, self.exact, self.header, replaces=self._generation if same else None)
        self.directory = directory

    def bind(self, directory: Path) -> None:
        """Write every later state to a new folder, which must not hold a gallery."""
        if exists(directory):
            raise FileExistsError(
                f"{directory} holds a gallery already; update it (Gallery.load, then update), or choose another folder"
            )
        self.save(directory)

    @classmethod
    def load(cls, directory: Path, *, index: Index | None = None) -> "GalleryStore":
        """Read a folder; features stay on disk until they are looked at."""
        exact, description = read_gallery(directory)
        header, next_id = description.get("header"), description.get("next_id")
        if not isinstance(header, dict) or not _is_header(cast("dict[str, Any]", header)):
            raise CheckpointError(f"{directory} is damaged (its header is {header!r}); build the gallery again")
        if not isinstance(next_id, int) or (len(exact.images) and next_id <= int(exact.images.ids.max())):
            raise CheckpointError(f"{directory} is damaged (next_id is {next_id!r}); build the gallery again")
        store = cls(exact, header=cast("dict[str, Any]", header), index=index)
        store.directory, store._generation, store._next_id = directory, description["generation"], next_id
        _clean(directory, description["features_file"])
        return store

    def _write(self, directory: Path, exact: ExactIndex, header: dict[str, Any], *, replaces: str | None) -> None:
        description = {"header": header, "next_id": self._next_id}
        self._generation = write_gallery(directory, exact, description, replaces=replaces)


def _is_header(header: dict[str, Any]) -> bool:
    removed = header.get("removed", [])
    return (
        isinstance(header.get("notes", {}), dict)
        and isinstance(removed, list)
        and all(
            isinstance(entry, dict)
            and {"path": str, "size": int, "digest": str} == {k: type(v) for k, v in entry.items()}
            for entry in cast("list[Any]", removed)
        )
    )


def _apply(index: Index, removed: Sequence[int], added: tuple[ImageTable, Tensor] | None) -> None:
    if removed:
        index.remove(removed)
    if added is not None:
        index.add(*added)
