"""Files of a gallery's segments: the features, mapped from disk, and beside them what is known of the images."""

import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import file_digest, open_file, read_tensors, write_tensors_atomically
from promptreid.retrieval.index import Segment
from promptreid.retrieval.table import ImageTable

_KINDS = ("features", "images")
FILE_PATTERNS = ("features-*.safetensors", "images-*.safetensors", ".features-*", ".images-*")


def write_segment(folder: Path, segment: Segment) -> Segment:
    """Write a segment under new names; returns it with its files, the features mapped from there."""
    name = secrets.token_hex(8)
    files: dict[str, Any] = {kind: f"{kind}-{name}.safetensors" for kind in _KINDS}
    images = {
        key: torch.from_numpy(array if array.flags.writeable else array.copy())
        for key, array in segment.images.arrays().items()
    }
    try:
        for kind, tensors in zip(_KINDS, ({"features": segment.features}, images), strict=True):
            write_tensors_atomically(folder / files[kind], tensors, mode=0o600)
            files[f"{kind}_sha256"] = file_digest(folder / files[kind])
        files["rows"] = len(segment)
        # Mapped, because memory that holds what was removed would be written out again by the next change.
        features = _map_features(folder / files["features"]).to(segment.features.device)
        return Segment(segment.images, features, files)
    except BaseException:
        remove_files(folder, [files])
        raise


def read_segment(folder: Path, files: Any) -> Segment:
    """Read a segment that `write_segment` wrote.

    Raises:
        FileNotFoundError: One of its files is gone.
        CheckpointError: The description or a file is damaged.
    """
    _check_files(folder, files)
    content = _content(folder / files["images"])
    if sha256(content).hexdigest() != files["images_sha256"]:
        raise CheckpointError(
            f"{folder / files['images']} is damaged (its SHA-256 is not the one that the gallery holds); build the "
            "gallery again"
        )
    try:
        table = ImageTable.from_arrays({name: value.numpy() for name, value in load(content).items()})
        features = _map_features(folder / files["features"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        if not (folder / files["features"]).exists():  # torch's own error, where the file disappears while it is mapped
            raise FileNotFoundError(str(folder / files["features"])) from error
        raise CheckpointError(f"{folder} holds no readable gallery ({error}); build it again") from error
    if not len(table) == len(features) == files["rows"]:
        raise CheckpointError(f"{folder}: {files['features']} does not fit {files['images']}; build the gallery again")
    return Segment(table, features, files)


def _content(path: Path) -> bytes:
    try:
        with open_file(path) as stream:
            return stream.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); build the gallery again") from error


def _map_features(path: Path) -> Tensor:
    tensors = read_tensors(path)
    features = tensors.get("features")
    if len(tensors) != 1 or features is None or features.ndim != 2 or not features.is_floating_point():
        raise CheckpointError(f"{path} holds no features; build the gallery again")
    return features


def _check_files(folder: Path, files: Any) -> None:
    entry = cast("Mapping[str, Any]", files) if isinstance(files, Mapping) else {}
    names = [entry.get(kind) for kind in _KINDS]
    # File names and no paths: they must not lead out of the gallery's folder.
    fits = all(isinstance(name, str) and Path(name).name == name for name in names)
    fits = fits and all(isinstance(entry.get(f"{kind}_sha256"), str) for kind in _KINDS)
    if not fits or not isinstance(entry.get("rows"), int):
        raise CheckpointError(f"{folder} is damaged (a segment is {files!r}); build the gallery again")


def damaged_features(folder: Path, segment: Segment) -> str | None:
    """What is wrong with a segment's file of features, by its digest."""
    files = segment.files or {}
    if file_digest(folder / files["features"]) == files["features_sha256"]:
        return None
    return f"{files['features']} is damaged: its SHA-256 is not the one that gallery.json holds"


def file_names(segments: Iterable[Segment]) -> set[str]:
    """The files of segments."""
    return {segment.files[kind] for segment in segments if segment.files for kind in _KINDS if kind in segment.files}


def remove_files(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Delete the files of segments that the gallery does not name."""
    for entry in entries:
        for kind in _KINDS:
            (folder / entry[kind]).unlink(missing_ok=True)
