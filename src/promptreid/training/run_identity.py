"""The identity of a run: data, base, losses and settings as JSON, and how two runs differ."""

import json
import math
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, suppress
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from hashlib import sha256
from inspect import getattr_static, isclass, isroutine
from io import IOBase
from logging import Handler, Logger
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.adapters import adapter_settings
from promptreid.towers.fingerprint import pack_fingerprint
from promptreid.training import held_settings
from promptreid.training.held_settings import HELD, as_set, unseen

_DEPTH = 8  # objects in objects; of what lies deeper, what its `repr` says
_SHOWN = 16  # numbers of a tensor, items of a list; of longer ones a digest is kept
_LONGEST = 4096  # letters of what an object holds
# Nobody knows whether what these hold was set or only happened.
_HAPPENED = (Logger, Handler, IOBase)
_NOT_SETTINGS = {*vars(nn.Module()), "training", HELD}


class Undescribed:
    """Base of what `describe` passes over wherever it is held, since a run describes its parts itself: the trainer."""


def run_identity(model: PromptedCLIP, train_data: Any, **settings: Any) -> dict[str, Any]:
    """The identity that a resumed run must share with the interrupted one.

    Args:
        model: The model; its base, its prompts' setup, its dropout and PEFT's layers count, not what was learnt.
        train_data: What its method `identity` returns, if it has one, tells its content from another's.
        **settings: Anything else that changes the result of a run.
    """
    dropout = {
        f"{name}.{key}": value
        for name, module in model.clip.named_modules()
        for key, value in vars(module).items()
        if "drop" in f"{type(module).__name__}.{key}".lower() and isinstance(value, float) and value
    }
    identity = {
        "data": _data_identity(train_data),
        "base_fingerprint": _digest(pack_fingerprint(model.base_fingerprint, exact=True).encode()),
        "prompts": model.config.as_dict(),
        "dropout": dropout,
        "adapters": adapter_settings(model.clip),
        **settings,
    }
    return cast(dict[str, Any], describe(identity))


def differences(before: Any, now: Any) -> list[str]:
    """One sentence for each entry in which two descriptions differ: `"batch_size was 4, is 5"`."""
    old, new = (_UNSTATED | _flatten(each) if _is_run(each) else _flatten(each) for each in (before, now))
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    # Another Python compiles the same function to other bytes, and earlier versions kept none.
    names = [name for name in names if (name in old and name in new) or not _CODE.search(name)]
    return [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names]


_PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"
_CODE = re.compile(r"(^|\.)code\.python \d+\.\d+$")


# What a run is that does not say it, as all did before there was a choice.
_UNSTATED = {"prompts.kind": "independent"}


def _is_run(description: Any) -> bool:
    return isinstance(description, dict) and "prompts" in description


_DESCRIBED, _REPR = "described", "repr"  # the views of a module that count


def settings_held(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let `describe` and `repr_as_set` take modules, inside the block and after it, without what it changed in them."""
    return held_settings.settings_held(modules, **{_DESCRIBED: describe, _REPR: repr_as_set})


def repr_as_set(module: nn.Module) -> str:
    """A module's `repr`, as it was before training."""
    with unseen(*module.modules()):
        now = repr(module)
    return str(as_set(module, _REPR, now))


_Seen = dict[tuple[int, int], tuple[Any, Any]]  # by address and depth: the object, which it keeps there, and what it is


def describe(value: Any, *, depth: int = _DEPTH, seen: _Seen | None = None) -> Any:
    """A JSON description of a value: different settings differ, and equal ones are the same in every process.

    Modules and other objects are their class and attributes, functions their code and what they were made with, tensors
    and arrays their numbers or a digest, and their mask, data what its method `identity` says; parameters, which train,
    do not count, nor do the model, loggers and files. An attribute `settings` that can be called, of a module, object
    or function, is preferred.

    Example:
        >>> import torch
        >>> describe({"loss": torch.nn.Dropout(0.5), "weights": torch.tensor([1.0, 2.0])})
        {'loss': {'class': 'Dropout', 'p': 0.5, 'inplace': False}, 'weights': [1.0, 2.0]}
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = _without_numpy(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(value)  # NaN would differ from itself
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, (Enum, PurePath, torch.dtype, torch.device)):
        return str(value)
    seen = {} if seen is None else seen
    key = id(value), depth
    if key not in seen:  # or objects that hold each other would be described again and again
        seen[key] = value, _described(value, partial(describe, depth=depth - 1, seen=seen), depth)
    return seen[key][1]


def _described(value: Any, within: Any, depth: int) -> Any:
    if isinstance(value, Undescribed):
        return None  # as while the first one was made
    if depth == 0:
        return _by_repr(value)
    if isinstance(value, Mapping):
        return {str(key): within(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, AbstractSet):
        return sorted(json.dumps(within(item)) for item in cast(AbstractSet[Any], value))
    if isinstance(value, Sequence):
        return _short([within(item) for item in cast(Sequence[Any], value)])
    if not isinstance(value, nn.Module):
        return _describe_object(value, within)
    with unseen(value):
        described = _describe_object(value, within)
    return as_set(value, _DESCRIBED, described)


def _describe_object(value: Any, within: Any) -> Any:
    named = {"class": _name(value)}
    for method in ("settings", "identity"):
        if not isclass(value) and isroutine(own := getattr(value, method, None)):
            return named | {method: within(own())}
    if isinstance(value, partial):
        return {"class": within(value.func), "arguments": within(value.args), **_each(value.keywords, within)}
    if isroutine(value) or isclass(value):
        return named | _describe_function(value, within)
    if isinstance(value, PromptedCLIP):
        return named | describe(value.config.as_dict())  # the rest is kept by the run that trains it
    if isinstance(value, nn.Module):
        kept = {name: item for name, item in vars(value).items() if name not in _NOT_SETTINGS}
        inside = {**kept, **dict(value.named_buffers(recurse=False)), **dict(value.named_children())}
        # Static, as compiled by TorchScript it is not there to be read.
        return named | _code(getattr_static(type(value), "forward", None)) | _each(inside, within)
    if isinstance(value, _HAPPENED):
        return named
    if (callable(value) or is_dataclass(value)) and hasattr(value, "__dict__"):
        return named | _code(getattr(type(value), _CALL, None)) | _each(vars(value), within)
    if hasattr(value, "__dict__"):
        return named | _at_most(_each(vars(value), within))
    shown = repr(value)  # such as Decimal('0.5'); of others it is an address, which says nothing
    return named if " at 0x" in shown else named | {"value": within(shown)}


def _each(attributes: Mapping[str, Any], within: Any) -> dict[str, Any]:
    return {name: within(item) for name, item in attributes.items()}


def _at_most(entries: dict[str, Any]) -> dict[str, Any]:
    """A digest in the place of what is long, such as a vocabulary."""
    text = json.dumps(entries, sort_keys=True)
    return entries if len(text) <= _LONGEST else {"value": f"{len(text)} letters {_digest(text.encode())}"}


def _describe_function(value: Any, within: Any) -> dict[str, Any]:
    """The state of a function: its closure, its defaults, and the object that it is a method of."""
    owner = getattr(value, "__self__", None)
    parts = {
        "closure": [_content(cell) for cell in getattr(value, "__closure__", None) or ()] or None,
        "defaults": getattr(value, "__defaults__", None),
        "keyword_defaults": getattr(value, "__kwdefaults__", None),
        "of": None if isinstance(owner, (nn.Module, ModuleType)) else owner,  # modules are described elsewhere
    }
    return _code(value) | {name: within(part) for name, part in parts.items() if part is not None}


def _content(cell: CellType) -> Any:
    """The value of a closed-over name; `None` for one without a value yet, as of the trainer that is being made."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


_CALL = "__call__"
# What is installed is known by its names: another version of it is not another run.
_INSTALLED = re.compile(rf"{re.escape(sysconfig.get_path('stdlib'))}|.*[/\\](site|dist)-packages[/\\]")


def _code(function: Any) -> dict[str, Any]:
    """A digest of a person's own function: what it does, and what it calls and reads in its module."""
    function = getattr(function, "__func__", function)  # of a method
    if not isinstance(function, FunctionType) or _INSTALLED.match(function.__code__.co_filename):
        return {}
    if function.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return {}
    return {"code": {_PYTHON: _digest(json.dumps(_compiled(function, set())).encode())}}


def _compiled(function: FunctionType, seen: set[CodeType]) -> Any:
    if function.__code__ in seen:
        return None
    seen.add(function.__code__)
    around: dict[str, Any] = {}
    codes = list(_codes(function.__code__))
    for name in sorted({name for code in codes for name in code.co_names} & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            around[name] = _compiled(value, seen)
        elif isinstance(value, (bool, int, float, str, tuple)) or isroutine(getattr(value, "identity", None)):
            around[name] = describe(value)
    constants = [describe([item for item in code.co_consts if not isinstance(item, CodeType)]) for code in codes]
    return [[(code.co_code.hex(), code.co_names) for code in codes], constants, around]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those inside it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def evaluate_identity(evaluate: Any) -> Any:
    """The identity of a function that scores a run: module, name, code, and its state."""
    inner = evaluate
    while isinstance(inner, partial):
        inner = inner.func
    module = str(getattr(inner, "__module__", None))
    own = module.partition(".")[0] == __name__.partition(".")[0]  # ours may move between versions
    return None if evaluate is None else {"module": "promptreid" if own else module, **describe(evaluate)}


def _name(value: Any) -> str:
    # Without its module, which may be another in the next version.
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _without_numpy(value: Any) -> Any:
    """An array as a tensor, or in Python's own objects where tensors hold none of its kind, as of text and dates."""
    if isinstance(value, np.ma.MaskedArray) and np.any(np.ma.flatten_mask(mask := np.ma.getmaskarray(value))):
        # What lies under the mask says nothing. A copy, as the constant `masked` cannot be filled itself.
        return {"filled": np.ma.array(value, subok=False).filled(), "mask": mask}
    # A copy, as tensors refuse what is read backwards or in another byte order, and warn of what is read-only.
    copy = np.array(value)
    if not copy.dtype.isnative:
        copy = copy.astype(copy.dtype.newbyteorder("="))
    try:
        return torch.as_tensor(copy)
    except Exception:  # numpy's kinds grow in number, and so do the ways in which torch refuses them
        items: Any = copy.tolist()
    if isinstance(items, np.generic):
        return str(items)
    return [str(copy.dtype), items] if copy.dtype.kind in "mM" else items  # their unit is not in the numbers


def _tensor(value: Tensor) -> Any:
    if value.is_meta:
        return f"{tuple(value.shape)} {value.dtype}"
    value = value.detach()
    try:
        return _numbers(value)
    except Exception:  # of a kind that does not give its numbers, such as a tensor with a mask
        return _by_repr(value)


def _numbers(value: Tensor) -> Any:
    """The numbers of a tensor of any layout, or a digest of them."""
    if value.is_nested:
        return _short([_tensor(part) for part in value.unbind()])
    if value.is_mkldnn:
        value = value.to_dense()
    if value.layout != torch.strided:
        value = value.to_sparse_coo().coalesce()
        return [list(value.shape), _tensor(value.indices()), _tensor(value.values())]
    value = value.resolve_conj().resolve_neg().cpu().contiguous()
    if value.numel() <= _SHOWN:
        with suppress(RuntimeError):  # of numbers of fewer than eight bits
            return describe(value.tolist())
    return f"{tuple(value.shape)} {value.dtype} {_digest(value.reshape(-1).view(torch.uint8).numpy().tobytes())}"


def _by_repr(value: Any) -> str:
    shown = repr(value)
    return _name(value) if " at 0x" in shown else f"{_name(value)} {_digest(shown.encode())}"


def _short(items: list[Any]) -> Any:
    return items if len(items) <= _SHOWN else f"{len(items)} items {_digest(json.dumps(items).encode())}"


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


def _data_identity(dataset: Any) -> Any:
    """The identity of a dataset, or of the one that it is a part of."""
    if callable(own := getattr(dataset, "identity", None)):
        return own()
    inner = getattr(dataset, "dataset", None)
    return None if inner is None else {**(_data_identity(inner) or {}), "indices": getattr(dataset, "indices", None)}


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in cast(dict[Any, Any], value).items()]
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(cast(list[Any], value))]
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flatten(item, f"{name}.{key}" if name else key)
    return flat
