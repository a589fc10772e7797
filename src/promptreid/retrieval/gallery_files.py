"""A gallery on disk: written completely or not at all, readable only by its owner, one writer at a time.

Its folder holds segments (`promptreid.retrieval.segment_files`), which are never changed, and `gallery.json`, which
names those that are valid. To add is to write one more segment and a new description, to remove is to write the
segment again without the image; what the description does not name any more is deleted at once.
"""

import json
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError

from promptreid.defaults import GALLERY_FILE, is_gallery, is_store
from promptreid.errors import CheckpointError
from promptreid.files import (
    file_digest,
    is_locked,
    make_private_folder,
    open_file,
    read_tensors,
    write_bytes_atomically,
)
from promptreid.retrieval.encode import in_kept_precision, rows_of_other_length
from promptreid.retrieval.gallery_folder import (
    MARK_NAME,
    building,
    entry_on_disk,
    is_being_built,
    is_free,
    writing,
)
from promptreid.retrieval.index import ExactIndex
from promptreid.retrieval.segment_files import (
    FILE_NAME,
    Segment,
    damaged_features,
    file_names,
    is_file_name,
    read_segment,
    remove_files,
    write_segment,
)
from promptreid.retrieval.table import ImageTable
from promptreid.values import as_json

FORMAT_VERSION = 2

# The one form before segments: all features in one file, paths and metadata in the description.
_FIRST_VERSION = 1
_FIRST_TENSORS = {"features": 2, "ids": 1, "sizes": 1, "modified_ns": 1}

# The description begins with the digest of what follows; galleries of 0.1.0 have none.
_SEAL = b'{"sha256": "%s", '

# The files of a gallery, what killed writers of ours leave of them, and what safetensors leaves when it is killed.
_WRITTEN = rf"{FILE_NAME}|removed-[0-9a-f]{{16}}\.json"
_OURS = re.compile(
    rf"{_WRITTEN}|{MARK_NAME}|\.({_WRITTEN}|{re.escape(GALLERY_FILE)})-[0-9a-f]{{16}}|\.tmp[0-9A-Za-z]{{6}}"
)

# How often a reader looks again when a writer has just replaced the files under it.
_ATTEMPTS = 10

Storage = Literal["float32", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


def write_gallery(
    folder: Path,
    exact: ExactIndex,
    description: dict[str, Any],
    *,
    replaces: str | None,
    is_new: bool = False,
    build: ExitStack | None = None,
) -> tuple[ExactIndex, dict[str, Any]]:
    """Write a gallery, only for its owner; what the folder held is valid until the last step and gone after it.

    Args:
        folder: Made if it does not exist.
        exact: The images and their features; segments that have files already, of this folder, are not written again.
        description: `header`, what else to keep; `next_id`; and the `removed_file` of an earlier description, if the
            removed images in the header are the same.
        replaces: Generation that the folder must hold; `None` replaces anything.
        is_new: Replace nothing but an empty gallery that nobody is building.
        build: Gets the mark that this one is being built, until it is closed.

    Returns:
        The same with its files, and the new description; its `generation` names this state, as no other is named.

    Raises:
        FileExistsError: There is a gallery, and this one `is_new`; or there is a store.
    """
    json_bytes(description["header"].get("notes"))
    # Where earlier versions let both be, the gallery can still be written.
    if is_store(folder) and not is_gallery(folder):
        raise FileExistsError(
            f"{folder} holds a store, whose images a search would find in place of the gallery's; choose another "
            "folder, or open the store: StoredGallery.load"
        )
    make_private_folder(folder)
    with writing(folder):
        if is_new and not is_free(folder):
            being_built = ", which is being built" if is_being_built(folder) else ""
            raise FileExistsError(
                f"{folder} holds a gallery already{being_built}; update it (Gallery.load, then update), or choose "
                "another folder"
            )
        written = write_while_locked(folder, exact, description, replaces=replaces)
        if build is not None:
            build.enter_context(building(folder))
        return written


def write_while_locked(
    folder: Path, exact: ExactIndex, description: dict[str, Any], *, replaces: str | None
) -> tuple[ExactIndex, dict[str, Any]]:
    """Write while the folder's lock is held."""
    if replaces is not None and (found := entry_on_disk(folder, "generation")) != replaces:
        raise CheckpointError(
            f"{folder} was {'deleted' if found is None else 'changed by another process'} since it was loaded; "
            "load it again and repeat the change"
        )
    written: list[Segment] = []
    removed = description.get("removed_file")
    try:
        segments = [
            segment if segment.files is not None else _kept(written, write_segment(folder, segment))
            for segment in exact.pieces()
        ]
        if removed is None and description["header"].get("removed"):
            removed = _write_removed(folder, description["header"]["removed"])
        new = {
            "header": {name: value for name, value in description["header"].items() if name != "removed"},
            "next_id": description["next_id"],
            "format_version": FORMAT_VERSION,
            "generation": secrets.token_hex(8),
            "dimensions": exact.dimensions,
            "storage": str(exact.dtype).removeprefix("torch."),
            "removed_file": removed,
            "segments": [segment.files for segment in segments],
        }
        body = json_bytes(new)
        write_bytes_atomically(folder / GALLERY_FILE, _seal(body) + body[1:], mode=0o600)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            remove_files(folder, [segment.files for segment in written if segment.files])
        needed = sum(segment.features.nbytes for segment in exact.segments if segment.files is None)
        raise OSError(
            f"cannot write the gallery to {folder} ({error}); it needs {needed / 1e6:,.1f} MB beside the old one. "
            "What was saved there before is untouched"
        ) from error
    whole = exact.with_segments(segments)
    _warn_of_leftovers(folder, _remove(_leftovers(folder, names_of(whole, new))))
    return whole, {**new, "header": description["header"]}


def _kept(written: list[Segment], segment: Segment) -> Segment:
    written.append(segment)
    return segment


def _write_removed(folder: Path, marks: Any) -> dict[str, str]:
    """Write the marks of removed images to a separate file, which most changes do not touch."""
    content = json_bytes(marks)
    name = f"removed-{secrets.token_hex(8)}.json"
    write_bytes_atomically(folder / name, content, mode=0o600)
    return {"file": name, "sha256": sha256(content).hexdigest()}


def _warn_of_leftovers(folder: Path, left: Sequence[Path]) -> None:
    if left:
        warnings.warn(
            f"the gallery in {folder} is written, but files of its earlier state cannot be removed: "
            f"{', '.join(map(str, left))}; what was removed from the gallery may be in them: delete them",
            stacklevel=5,
        )


def json_bytes(content: Any) -> bytes:
    """A description, or a part of it, as it is written: with null for NaN and infinity.

    Raises:
        TypeError: Notes in it are of a kind that JSON does not take, or hold themselves.
    """
    try:
        return json.dumps(as_json(content), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"the gallery's notes hold what JSON does not take ({error}); keep numbers and texts"
        ) from error


def _seal(body: bytes) -> bytes:
    return _SEAL % sha256(body).hexdigest().encode()


def read_gallery(folder: Path, *, known: Sequence[Segment] = ()) -> tuple[ExactIndex, dict[str, Any]]:
    """Read a gallery, its features mapped from disk, and its description.

    Args:
        folder: The folder.
        known: Segments that were read before, which need not be read again.
    """
    for attempt in range(_ATTEMPTS):
        description = _read_description(folder)
        try:
            if description["format_version"] == _FIRST_VERSION:
                return _read_first_version(folder, description), description
            exact = _read_segments(folder, description, known)
            if description.get("removed_file") is not None:
                description["header"]["removed"] = _read_removed(folder, description["removed_file"])
            return exact, description
        except FileNotFoundError as error:
            # A writer replaced the files since the description was read, or they are truly gone.
            if attempt + 1 < _ATTEMPTS and entry_on_disk(folder, "generation") != description["generation"]:
                continue
            raise CheckpointError(f"{folder} has lost {error.filename or error}; build it again") from error
    raise CheckpointError(f"{folder} changes faster than it can be read; try again")


def _read_segments(folder: Path, description: dict[str, Any], known: Sequence[Segment]) -> ExactIndex:
    by_name = {segment.files["features"]: segment for segment in known if segment.files}
    segments: list[Segment] = []
    for files in description["segments"]:
        name = files.get("features") if isinstance(files, dict) else None
        same = by_name.get(name)
        segments.append(same if same is not None and same.files == files else read_segment(folder, files))
    dimensions, dtype = description["dimensions"], DTYPES[description["storage"]]
    if any(one.features.shape[1] != dimensions or one.features.dtype != dtype for one in segments):
        raise CheckpointError(f"{folder}: its segments are of several kinds; build the gallery again")
    _check_ids(folder, segments)
    return ExactIndex(ImageTable.of([], first_id=0), torch.empty(0, dimensions, dtype=dtype)).with_segments(segments)


def _check_ids(folder: Path, segments: Sequence[Segment]) -> None:
    """Refuse numbers that two images have."""
    ids = torch.cat([segment.images.ids for segment in segments]) if segments else torch.empty(0, dtype=torch.int64)
    ascending = bool((ids[1:] > ids[:-1]).all())
    if not ascending and len(ids.unique()) != len(ids):
        raise CheckpointError(f"{folder} is damaged (two images have one number); build the gallery again")


def _read_removed(folder: Path, files: Mapping[str, Any]) -> list[Any]:
    path = folder / files["file"]
    with open_file(path) as stream:
        content = stream.read()
    if sha256(content).hexdigest() != files["sha256"]:
        raise CheckpointError(
            f"{path} is damaged (its SHA-256 is not the one that {GALLERY_FILE} holds); build the gallery again"
        )
    return json.loads(content)


def _read_first_version(folder: Path, description: dict[str, Any]) -> ExactIndex:
    """Read a gallery of 0.1.0; the next change writes it as segments."""
    path = folder / description["features_file"]
    try:
        tensors = read_tensors(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if not path.exists():  # RuntimeError is torch's, where the file disappears while it is mapped
            raise FileNotFoundError(str(path)) from error
        raise CheckpointError(f"{folder} holds no readable gallery ({error}); build it again") from error
    paths, metadata = description.pop("paths"), description.pop("metadata")
    found = {name: value.ndim for name, value in tensors.items()}
    lengths = {len(paths), len(metadata), *(len(value) for value in tensors.values())}
    fits = found == _FIRST_TENSORS and len(lengths) == 1 and tensors["features"].is_floating_point()
    if not fits or len(tensors["ids"].unique()) != len(paths) or tensors["ids"].dtype != torch.int64:
        raise CheckpointError(f"{folder}: {path.name} does not fit {GALLERY_FILE}; build it again")
    table = ImageTable(paths, tensors["ids"], tensors["sizes"], tensors["modified_ns"], metadata)
    return ExactIndex(table, in_kept_precision(tensors["features"]))


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / GALLERY_FILE
    try:
        if not path.is_file():  # which raises in a folder that is closed
            raise FileNotFoundError(str(path))
        content = path.read_bytes()
        description = json.loads(content)
        version = description["format_version"]
    except FileNotFoundError as error:
        advice = "it holds a store: StoredGallery.load opens it" if is_store(folder) else "build one and save it there"
        raise CheckpointError(f"there is no gallery in {folder} (no {GALLERY_FILE}); {advice}") from error
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); ask its owner to let you read it") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no readable gallery ({path}: {error}); build it again") from error
    if version not in (_FIRST_VERSION, FORMAT_VERSION):
        raise CheckpointError(
            f"{folder} has format version {version!r}, this library reads up to {FORMAT_VERSION}; "
            "pip install --upgrade promptreid, or build it again"
        )
    body = b"{" + content[len(_SEAL % (b"0" * 64)) :]
    if "sha256" in description and not content.startswith(_seal(body)):
        raise CheckpointError(f"{path} is damaged (its SHA-256 is not the one that it holds); build the gallery again")
    _check_description(path, description)
    return description


def _check_description(path: Path, description: dict[str, Any]) -> None:
    check = _fits_first_version if description["format_version"] == _FIRST_VERSION else _fits
    if not (isinstance(description.get("generation"), str) and check(description)):
        raise CheckpointError(f"{path} is damaged (missing or malformed entries); build the gallery again")


def _fits(description: dict[str, Any]) -> bool:
    removed = description.get("removed_file")
    return (
        (removed is None or isinstance(removed, dict))
        and isinstance(description.get("segments"), list)
        and isinstance(description.get("header"), dict)
        and isinstance(description.get("dimensions"), int)
        and description.get("storage") in DTYPES
        and (removed is None or is_file_name(cast("dict[str, Any]", removed).get("file")))
    )


def _fits_first_version(description: dict[str, Any]) -> bool:
    paths, metadata = description.get("paths"), description.get("metadata")
    return (
        is_file_name(description.get("features_file"))
        and isinstance(paths, list)
        and all(isinstance(name, str) for name in cast("list[Any]", paths))
        and isinstance(metadata, list)
        and all(isinstance(entry, dict) for entry in cast("list[Any]", metadata))
    )


def names_of(exact: ExactIndex, description: Mapping[str, Any]) -> set[str]:
    """The files of a state besides the description."""
    names = file_names(exact.segments)
    removed = description.get("removed_file")
    return names | {entry for entry in (description.get("features_file"), removed and removed["file"]) if entry}


def _leftovers(folder: Path, kept: set[str]) -> list[Path]:
    """Files that the description does not name any more, and what writers that were killed left behind."""
    found = [path for path in folder.glob("*") if _OURS.fullmatch(path.name) and path.name not in kept]
    return sorted(path for path in found if path.suffix != ".lock" or not is_locked(path))


def _remove(paths: Sequence[Path]) -> list[Path]:
    """Delete files; returns those that cannot be deleted."""
    left: list[Path] = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            left.append(path)
    return left


def clean(folder: Path, kept: set[str], generation: str) -> None:
    """Delete files of killed writers, which may hold features to be removed, unless another process is writing."""
    if _leftovers(folder, kept):
        with suppress(OSError), writing(folder, timeout_seconds=0):
            if entry_on_disk(folder, "generation") == generation:
                _remove(_leftovers(folder, kept))


def check_gallery(folder: Path) -> tuple[list[str], list[str]]:
    """Read a whole gallery, compare its digests and look at every feature.

    Returns:
        What is wrong with it, and what could not be compared.

    Raises:
        CheckpointError: It cannot be read at all.
    """
    exact, description = read_gallery(folder)
    problems: list[str] = []
    notes: list[str] = []
    if description["format_version"] != _FIRST_VERSION:
        problems += [found for segment in exact.segments if (found := damaged_features(folder, segment))]
    elif (noted := description.get("features_sha256")) is None:
        notes.append(f"{folder} was written by 0.1.0, without checksums; the next change to it adds them")
    elif noted != file_digest(folder / description["features_file"]):
        problems.append(
            f"{description['features_file']} is damaged: its SHA-256 is not the one that {GALLERY_FILE} holds"
        )
    wrong = [segment.images.paths[row] for segment in exact.segments for row in rows_of_other_length(segment.features)]
    if wrong:
        problems.append(f"{len(wrong)} features are not of unit length, such as that of {wrong[0]}")
    return problems, notes


def checked_header(folder: Path, exact: ExactIndex, description: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a description besides the images.

    Raises:
        CheckpointError: The description is damaged.
    """
    header, next_id = description.get("header"), description.get("next_id")
    if not isinstance(header, dict) or not _is_header(cast("dict[str, Any]", header)):
        raise CheckpointError(f"{folder} is damaged (its header is {header!r}); build the gallery again")
    last = max((int(segment.images.ids.max()) for segment in exact.segments), default=-1)
    if not isinstance(next_id, int) or next_id <= last:
        raise CheckpointError(f"{folder} is damaged (next_id is {next_id!r}); build the gallery again")
    return cast("dict[str, Any]", header)


def _is_header(header: dict[str, Any]) -> bool:
    removed = header.get("removed", [])
    return (
        isinstance(header.get("notes", {}), dict)
        and isinstance(removed, list)
        and all(
            isinstance(entry, dict)
            and {"path": str, "size": int, "digest": str} == {k: type(v) for k, v in entry.items() if k != "id"}
            and isinstance(entry.get("id", ""), str)  # which earlier versions did not write
            for entry in cast("list[Any]", removed)
        )
    )
