"""Segments, images that were added together, and their files: the features, mapped from disk, and what is known."""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from promptreid.errors import CheckpointError
from promptreid.files import file_digest, open_file, read_tensors, write_tensors_atomically
from promptreid.retrieval.table import ImageTable

_KINDS = ("features", "images")
# A safetensors file begins with the length of its header, a JSON object, which the tensors follow.
_LENGTH_BYTES = 8
_CACHE_LINE_BYTES = 64
# As `write_segment` names them, and galleries of 0.1.0 were; a user's own file may begin with the same word.
FILE_NAME = r"(features|images)-[0-9a-f]{16}\.safetensors"

# Segments are no larger, so that a removal rewrites no more; and as many of about one size are joined.
_SEGMENT_BYTES = 2**28
_JOINED = 8


@dataclass(frozen=True, eq=False)
class Segment:
    """Images that were added together, and their features; never changed.

    Attributes:
        images: The images.
        features: (G, E) float32 or float16, on any device.
        files: How the gallery's folder names its files; `None` if it has none yet.
    """

    images: ImageTable
    features: Tensor
    files: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor) -> "Segment":
        """A segment of some rows."""
        return Segment(self.images.select(rows.tolist()), self.features[rows.to(self.features.device)])

    @staticmethod
    def joined(segments: Sequence["Segment"]) -> "Segment":
        """One segment of several."""
        if len(segments) == 1:
            return segments[0]
        features = torch.cat([segment.features for segment in segments])
        return Segment(ImageTable.joined([segment.images for segment in segments]), features)


def most_rows(features: Tensor) -> int:
    """Rows of the largest segment that there may be of such features."""
    return max(1, _SEGMENT_BYTES // max(1, features.shape[1] * features.element_size()))


def fewer(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Join the last segments of one order of magnitude once they are many; so a row is copied a few times only."""
    kept, most = list(segments), most_rows(segments[-1].features)
    while True:
        begin, rows = len(kept), 0
        while begin and _level(kept[begin - 1]) <= _level(kept[-1]) and rows + len(kept[begin - 1]) <= most:
            begin -= 1
            rows += len(kept[begin])
        if len(kept) - begin < _JOINED:
            return tuple(kept)
        kept[begin:] = [Segment.joined(kept[begin:])]


def _level(segment: Segment) -> int:
    return (len(segment).bit_length() - 1) // (_JOINED.bit_length() - 1)


def write_segment(folder: Path, segment: Segment) -> Segment:
    """Write a segment under new names; returns it with its files, the features mapped from there."""
    name = secrets.token_hex(8)
    files: dict[str, Any] = {kind: f"{kind}-{name}.safetensors" for kind in _KINDS}
    images = {
        key: torch.from_numpy(array if array.flags.writeable else array.copy())
        for key, array in segment.images.arrays().items()
    }
    try:
        padded = {"padding": " " * _padding(segment.features)}
        for kind, tensors in zip(_KINDS, ({"features": segment.features}, images), strict=True):
            metadata = padded if kind == "features" else None
            write_tensors_atomically(folder / files[kind], tensors, mode=0o600, metadata=metadata)
            files[f"{kind}_sha256"] = file_digest(folder / files[kind])
        files["rows"] = len(segment)
        # Mapped, because memory that holds what was removed would be written out again by the next change.
        features = _map_features(folder / files["features"]).to(segment.features.device)
        return Segment(segment.images, features, files)
    except BaseException:
        remove_files(folder, [files])
        raise


def _padding(features: Tensor) -> int:
    """Blanks in a file's header that let features begin at a whole cache line, where they are read fastest."""
    entry = {
        "dtype": {torch.float32: "F32", torch.float16: "F16"}[features.dtype],
        "shape": list(features.shape),
        "data_offsets": [0, features.nbytes],
    }
    header = json.dumps({"__metadata__": {"padding": ""}, "features": entry}, separators=(",", ":"))
    return -(_LENGTH_BYTES + len(header)) % _CACHE_LINE_BYTES


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


def is_file_name(name: Any) -> bool:
    """Whether it is a file name and no path: it must not lead out of the gallery's folder."""
    return isinstance(name, str) and Path(name).name == name


def _check_files(folder: Path, files: Any) -> None:
    entry = cast("Mapping[str, Any]", files) if isinstance(files, Mapping) else {}
    fits = all(is_file_name(entry.get(kind)) and isinstance(entry.get(f"{kind}_sha256"), str) for kind in _KINDS)
    if not fits or not isinstance(entry.get("rows"), int):
        raise CheckpointError(f"{folder} is damaged (a segment is {files!r}); build the gallery again")


def damaged_features(folder: Path, segment: Segment) -> str | None:
    """The error in a segment's file of features, found by its digest."""
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
