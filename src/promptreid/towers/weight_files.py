"""Reads files of weights without running what is in them: safetensors, torch.save's archives, and TorchScript's."""

import collections
import json
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from promptreid.errors import WeightsError
from promptreid.files import open_file

INDEX_ENDING = ".index.json"
# How files begin that people take for weights, and what to do.
_MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS in place of the weights; run git lfs pull in its folder",
    b"<!doctype html": "a web page; download the file that it shows",
    b"<html": "a web page; download the file that it shows",
}
_LARGEST_PICKLE = 64 * 2**20  # names and shapes; the values are in separate files
# What readers of damaged files raise.
_DAMAGE = (
    *(SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, RuntimeError, RecursionError),
    *(AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, NotImplementedError),
)
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file by name, not read yet.

    Attributes:
        path: The file.
        shapes: Every tensor on the `meta` device, which takes no memory.
        read: Reads one by its name.
        scripted: Whether it is TorchScript.
        not_read: Classes and functions that the file names, which could run code and were not looked at.
    """

    path: Path
    shapes: Mapping[str, Tensor]
    read: Callable[[str], Tensor]
    scripted: bool = False
    not_read: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The path, with what is special about the file."""
        notes = ["TorchScript"] if self.scripted else []
        if self.not_read:
            notes.append(f"parts that could run code were not read: {', '.join(self.not_read[:3])}")
        return f"{self.path} ({'; '.join(notes)})" if notes else str(self.path)


def open_weights(path: Path) -> WeightFile:
    """Open a file of weights, in the format of its content, whatever its name.

    Raises:
        WeightsError: It is damaged, or is not a file of weights.
    """
    try:
        if path.name.endswith(INDEX_ENDING):
            return _open_shards(path)
        with open_file(path) as file:  # first, since a pipe would never end
            head = file.read(32)
        for start, meaning in _MISTAKEN.items():
            if head.lower().startswith(start):
                raise WeightsError(f"{path} is {meaning}")
        if zipfile.is_zipfile(path):
            return _open_archive(path)
        return _open_safetensors(path) if head[8:9] == b"{" else _open_legacy(path)
    except WeightsError:
        raise
    except OSError as error:
        if error.errno is not None:  # the operating system names the file
            raise
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    except _DAMAGE as error:
        raise damaged(path, error) from error


def shard_names(index: Path) -> tuple[str, ...]:
    """The files beside an index of transformers' that the weights it lists are in.

    Raises:
        WeightsError: The file is not an index.
    """
    try:
        if index.stat().st_size > _LARGEST_PICKLE:
            raise ValueError("it is too long")
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        strange = [
            name
            for name in names
            if not isinstance(name, str) or not name or Path(name).name != name or name.endswith(INDEX_ENDING)
        ]
        if strange or not names:
            raise ValueError(f"it names {strange or 'no files'}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{index} is not an index of weights in several files ({error}). Copy or download it again"
        ) from error
    return tuple(sorted(names))


def _open_shards(index: Path) -> WeightFile:
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index} lists {len(names)} files, and {', '.join(missing[:3])} {'are' if len(missing) > 1 else 'is'} not "
            "beside it. Copy or download the whole folder again"
        )
    files = [open_weights(index.parent / name) for name in names]
    owner = {name: file for file in files for name in file.shapes}
    shapes = {name: file.shapes[name] for name, file in owner.items()}
    return WeightFile(index, shapes, lambda name: owner[name].read(name))


def damaged(path: Path, error: Exception) -> WeightsError:
    """The error for a file that cannot be read, to be raised by the caller."""
    return WeightsError(
        f"{path} is not a weight file, or is damaged ({type(error).__name__}); expected weights of the named "
        "architecture as .safetensors or .pt. Copy or download it again"
    )


def _open_safetensors(path: Path) -> WeightFile:
    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    return WeightFile(path, shapes, read)


def _open_legacy(path: Path) -> WeightFile:
    """A file as torch.save wrote it before version 1.6."""
    try:
        tensors = _tensors_in(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        if "unsupported global" not in str(error).lower():
            raise
        # torch's own message recommends switching the protection off.
        raise WeightsError(
            f"{path} holds more than tensors, and reading it could run code; have its author publish it as safetensors"
        ) from error
    return WeightFile(path, {name: value.to("meta") for name, value in tensors.items()}, tensors.__getitem__)


class _Inert:
    """Stands in for every class that a pickle names: keeps what it is given and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


@dataclass(frozen=True)
class _Stored:
    """A tensor in an archive: which record, and which part of it."""

    record: tuple[str, torch.dtype, int]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild(record: tuple[str, torch.dtype, int], offset: int, size: Any, stride: Any, *_: Any) -> _Stored:
    return _Stored(record, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


class _Reader(pickle.Unpickler):
    """Builds dictionaries and descriptions of tensors, and nothing else: no class of the file's is ever imported."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.not_read: dict[str, None] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = global_name
        if module_name == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known: dict[str, Any] = {
            "torch._utils._rebuild_tensor_v2": _rebuild,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "collections.OrderedDict": collections.OrderedDict,
        }
        full = f"{module_name}.{name}"
        if full not in known and module_name.split(".")[0] != "__torch__":
            self.not_read[full] = None
        return known.get(full, _Inert)

    def persistent_load(self, pid: Any, /) -> tuple[str, torch.dtype, int]:
        _, dtype, key, _, count = pid
        return str(key), dtype, int(count)


def _open_archive(path: Path) -> WeightFile:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        found = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise WeightsError(
                f"{path} is a zip file, but not one of weights as torch.save writes them: {[*entries][:3]}; if it "
                "holds them, unpack it first"
            )
        if entries[found[0]].file_size > _LARGEST_PICKLE:
            raise WeightsError(
                f"{path} lists more than weights: its index (data.pkl) is {entries[found[0]].file_size:,} bytes, more "
                "than any set of weights needs; save only the weights: torch.save(model.state_dict(), ...)"
            )
        with archive.open(found[0]) as file:
            reader = _Reader(file)
            stored = _tensors_in(reader.load())
    root = found[0].removesuffix("data.pkl")

    uses = collections.Counter(value.record[0] for value in stored.values())
    read_record = partial(_read_record, path)
    kept_record = cache(read_record)

    def read(name: str) -> Tensor:
        value = stored[name]
        key = value.record[0]
        shared = uses[key] > 1
        return _tensor_of(value, partial(kept_record if shared else read_record, f"{root}data/{key}"), shared=shared)

    for name, value in stored.items():
        _check_stored(path, name, value, entries.get(f"{root}data/{value.record[0]}"))
    shapes = {name: torch.empty(value.size, device="meta") for name, value in stored.items()}
    return WeightFile(path, shapes, read, scripted=f"{root}constants.pkl" in entries, not_read=tuple(reader.not_read))


def _check_stored(path: Path, name: str, value: _Stored, entry: zipfile.ZipInfo | None) -> None:
    """Refuse a tensor that the archive does not hold whole, before any memory is taken for it."""
    _, dtype, count = value.record
    last = value.offset + sum((size - 1) * stride for size, stride in zip(value.size, value.stride, strict=True))
    inside = min((value.offset, *value.size, *value.stride)) >= 0 and (last < count or 0 in value.size)
    if entry is None or not inside or count * dtype.itemsize > entry.file_size or entry.compress_type:
        raise WeightsError(f"{path} is damaged: {name} is not whole in it. Copy or download it again")


def _read_record(path: Path, name: str) -> bytearray:
    try:
        with zipfile.ZipFile(path) as archive:
            return bytearray(archive.read(name))
    except zipfile.BadZipFile as error:
        raise damaged(path, error) from error


def _tensor_of(value: _Stored, content: Callable[[], bytearray], *, shared: bool) -> Tensor:
    """A tensor with memory of its own, and for no more than itself: a record may hold every tensor of the file."""
    _, dtype, count = value.record
    numbers = math.prod(value.size)
    if not numbers:
        return torch.empty(value.size, dtype=dtype)
    tensor = torch.frombuffer(content(), dtype=dtype, count=count).as_strided(value.size, value.stride, value.offset)
    # One that repeats its numbers would grow instead.
    return tensor.clone() if numbers < count or (shared and numbers == count) else tensor


def _tensors_in(content: Any, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Every tensor in nested dictionaries and modules, by its names joined with dots."""
    if isinstance(content, Tensor | _Stored):
        return {prefix: content}
    inside = getattr(content, "state", content) if isinstance(content, _Inert) else content
    if not isinstance(inside, Mapping) or depth > 16:
        return {}
    found: dict[str, Any] = {}
    for name, value in inside.items():
        if isinstance(name, str):
            found |= _tensors_in(value, f"{prefix}.{name}" if prefix else name, depth + 1)
    return found
