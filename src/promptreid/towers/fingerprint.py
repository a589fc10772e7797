"""Samples and checksums of a model's weights: do prompts belong to it, and was it changed since?"""

import base64
import binascii
import hashlib
import math
import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.towers.families import VISION_FAMILIES
from promptreid.towers.tower import is_without_features

SAMPLES = 256
_MOST_TENSORS = 4096
_PRECISIONS = {str(each).removeprefix("torch."): each for each in (torch.float32, torch.float16, torch.bfloat16)}
_WAVES = 4  # along which a table of positions is summed
_POSITIONS = "positions"
_POSITION_TOLERANCE = 5e-3  # six times what rounding to bfloat16 does to such a sum

# Precision and checksum of each tensor, by its name.
WeightDigests = Mapping[str, tuple[torch.dtype, int]]


def resized_keys() -> tuple[str, ...]:
    """How names of weights end that are resized with the image, so that the same base has others at another size."""
    return tuple(key for family in VISION_FAMILIES for key in family.resized_keys)


def fingerprint(module: nn.Module) -> tuple[float, ...]:
    """Sample weights at fixed positions.

    The first up to 256 say which model it is: half of them are spread evenly over the concatenation of all
    floating-point weights in the order of their names, so every large tensor is represented; the other half over the
    tensors, one each, so that the many small ones are. Of a model with more tensors than that, one of each tensor
    follows, so that fine-tuning is seen wherever it was. What is resized with the image is left out.

    Args:
        module: A model.

    Returns:
        The values as float32; fewer if the model has few weights or tensors.

    Raises:
        ValueError: The model is on the meta device, and has no weights.
    """
    resized = resized_keys()
    state = {
        name: value
        for name, value in sorted(module.state_dict().items())
        if value.is_floating_point() and value.numel() and not name.endswith(resized)
    }
    if any(value.is_meta for value in state.values()):
        raise ValueError(
            "the model is on the meta device, so its weights were not loaded; make it with promptreid.load_clip, or "
            "load them first: clip.to_empty(device='cpu'), then clip.load_state_dict(weights)"
        )
    sizes = [value.numel() for value in state.values()]
    starts = list(accumulate(sizes, initial=0))
    positions = _spread(sum(sizes)) + [starts[index] + sizes[index] // 2 for index in _spread(len(sizes))]
    positions.sort()
    values: list[float] = []
    middles: list[float] = []
    for begin, value in zip(starts, state.values(), strict=False):
        inside = positions[bisect_left(positions, begin) : bisect_left(positions, begin + value.numel())]
        chosen = [position - begin for position in inside] + [value.numel() // 2]
        *found, middle = value.detach().reshape(-1)[torch.tensor(chosen, device=value.device)].float().tolist()
        values += found
        middles.append(middle)
    return tuple(values + middles if SAMPLES // 2 < len(middles) <= _MOST_TENSORS else values)


def without_tensors(values: tuple[float, ...]) -> tuple[float, ...]:
    """The first part of a fingerprint, which is short enough to be saved with the prompts."""
    return values[:SAMPLES]


def _spread(total: int) -> list[int]:
    """Up to 128 of the first `total` integers, evenly spread."""
    count = min(SAMPLES // 2, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def same_fingerprint(one: Sequence[float], other: Sequence[float], *, relative: float = 1e-2) -> bool:
    """Whether two fingerprints are of the same weights, in any precision that those were stored in.

    Args:
        one: A fingerprint.
        other: Another.
        relative: Largest difference allowed, as a share of the samples' root mean square.

    Returns:
        `False` if their lengths differ, a value is not finite, or any pair differs by more.
    """
    if len(one) != len(other) or not all(math.isfinite(value) for value in (*one, *other)):
        return False
    if not one:
        return True
    scale = math.sqrt(sum(value * value for value in one) / len(one))
    return all(abs(a - b) <= relative * max(abs(a), abs(b), scale * relative) for a, b in zip(one, other, strict=True))


def nearer(values: Sequence[float], one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a fingerprint is nearer to `one` than to `other`, which fine-tuning may have moved little from it."""
    first, second = (sum((a - b) ** 2 for a, b in zip(values, each, strict=True)) for each in (one, other))
    return first < second


def pack_fingerprint(values: Sequence[float], *, exact: bool) -> str:
    """A fingerprint as text: float32 in base64, or half as long as bfloat16, which errs by 0.4 % at most."""
    floats = torch.tensor(values, dtype=torch.float32)
    # Through integers, because numpy, which turns tensors into bytes, has no bfloat16.
    numbers = (floats.view(torch.int32) if exact else floats.to(torch.bfloat16).view(torch.int16)).tolist()
    size = 4 if exact else 2
    content = b"".join(number.to_bytes(size, "little", signed=True) for number in numbers)
    return f"{'f32' if exact else 'bf16'}:{base64.b64encode(content).decode()}"


def unpack_fingerprint(text: str) -> tuple[float, ...]:
    """Unpack the result of `pack_fingerprint`.

    Raises:
        ValueError: The text is not that of finite numbers, or of more than a fingerprint has.
    """
    kind, _, encoded = text.partition(":")
    size, whole, real = {
        "f32": (4, torch.int32, torch.float32),
        "bf16": (2, torch.int16, torch.bfloat16),
    }.get(kind, (0, torch.int16, torch.bfloat16))
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a fingerprint is not base64 ({error})") from error
    most = SAMPLES + _MOST_TENSORS
    if not size or len(content) % size or not 0 < len(content) <= most * size:
        raise ValueError(
            f"a fingerprint starts {text[:8]!r} and has {len(content)} bytes, expected 1 to {most} numbers"
        )
    numbers = [int.from_bytes(content[at : at + size], "little", signed=True) for at in range(0, len(content), size)]
    values = torch.tensor(numbers, dtype=whole).view(real).float()
    if not bool(values.isfinite().all()):
        raise ValueError("a fingerprint holds a value that is not finite")
    return tuple(values.tolist())


def weight_digests(module: nn.Module) -> WeightDigests:
    """A checksum of every tensor and its precision, to tell later with `weights_changed` whether any was changed.

    A ViT-B/16 of 600 MB takes 0.4 s.
    """
    return {name: (value.dtype, _crc(value)) for name, value in module.state_dict().items()}


def weight_marks(module: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Where each tensor is, how often it was written to, and a checksum of one number of each of its rows.

    It is read in some milliseconds. Of what changes weights behind PyTorch's back, by `.data` or through NumPy, it sees
    what changes whole rows.
    """
    marks: dict[str, tuple[int, int, int]] = {}
    for name, value in module.state_dict().items():
        rows = value
        if value.ndim > 1 and value.numel():
            rows = value.flatten(1)[:, value[0].numel() // 2].clone(memory_format=torch.contiguous_format)
        marks[name] = (value.data_ptr(), -1 if value.is_inference() else value._version, _crc(rows))  # pyright: ignore[reportPrivateUsage]
    return marks


def weights_changed(
    before: WeightDigests,
    module: nn.Module,
    remake: Callable[[], nn.Module],
    *,
    now: WeightDigests | None = None,
) -> bool:
    """Whether a tensor of `module` is not what it was, other than by being kept in another precision.

    Args:
        before: What `weight_digests` said; empty compares with the model made again in any case.
        module: The model now.
        remake: Makes the model again as it was; else called only where the precision is another.
        now: What `weight_digests` says of `module`, where it is known.

    Raises:
        Exception: Any error of `remake`.
    """
    now = weight_digests(module) if now is None else now
    if before and before == now:
        return False
    if before and (
        before.keys() != now.keys() or any(before[key][0] == now[key][0] and before[key] != now[key] for key in now)
    ):
        return True
    base, state = remake().state_dict(), module.state_dict()
    return any(
        key not in base or not torch.equal(base[key].to(value.dtype), value.cpu()) for key, value in state.items()
    )


def _crc(value: Tensor) -> int:
    # CRC-32 finds accidents, which is what this is for, and is the fastest at hand.
    raw: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(raw)


def weight_checks(module: nn.Module, digests: WeightDigests) -> dict[str, str]:
    """The checks for `weights_match`: some 150 bytes that depend on every weight that features come from.

    Args:
        module: A model.
        digests: Its `weight_digests`, so that it is not read again.

    Returns:
        A checksum by precision, of the model's own and those that it may be rounded to later, and sums of the tables of
        positions, which are resized by arithmetic that machines round differently.
    """
    exact, tables = _checked(module)
    own = _lowest(exact)
    precisions = _PRECISIONS if own == torch.float32 else [str(own).removeprefix("torch.")]
    checks = {name: _joint(exact, _PRECISIONS[name], digests) for name in precisions if name in _PRECISIONS}
    sums = _sums(tables)
    return checks | ({_POSITIONS: pack_fingerprint(sums, exact=True)} if sums else {})


def weights_match(checks: Mapping[str, str], module: nn.Module, digests: WeightDigests) -> bool:
    """Whether a model has the weights that `weight_checks` were made of, in any precision that those were stored in.

    Models rounded to float16 and to bfloat16 cannot be compared with each other, and match.

    Args:
        checks: What was saved; of an older file nothing, which matches.
        module: The model.
        digests: Its `weight_digests` as far as they are known.
    """
    exact, tables = _checked(module)
    own = str(_lowest(exact)).removeprefix("torch.")
    kept = [name for name in checks if name in _PRECISIONS]
    # A float32 model is rounded as the one that was saved; of a rounded one only the same rounding is known.
    name = own if own in kept else kept[0] if own == "float32" and kept else None
    if name is not None and _joint(exact, _PRECISIONS[name], digests) != checks[name]:
        return False
    if _POSITIONS not in checks:
        return True
    saved, found = unpack_fingerprint(checks[_POSITIONS]), _sums(tables)
    norms = [found[index - index % (_WAVES + 1)] for index in range(len(found))]
    return len(saved) == len(found) and all(
        abs(one - other) <= _POSITION_TOLERANCE * norm for one, other, norm in zip(saved, found, norms, strict=True)
    )


def check_weight_checks(checks: Mapping[str, Any]) -> None:
    """Refuse what `weight_checks` does not return.

    Raises:
        ValueError: It holds something else.
    """
    for name, value in checks.items():
        if not isinstance(value, str) or not (
            name == _POSITIONS or (name in _PRECISIONS and re.fullmatch("[0-9a-f]{16}", value))
        ):
            raise ValueError(f"weights holds {str(name)[:60]!r}: {str(value)[:60]!r}, expected checksums by precision")
        if name == _POSITIONS:
            unpack_fingerprint(value)


def _checked(module: nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The weights that features come from in the order of their names, and the tables of positions among them."""
    state = {
        name: value
        for name, value in sorted(module.state_dict().items())
        if value.is_floating_point() and value.numel() and not is_without_features(name)
    }
    tables = {name: value for name, value in state.items() if name.endswith(resized_keys())}
    return {name: value for name, value in state.items() if name not in tables}, list(tables.values())


def _lowest(state: Mapping[str, Tensor]) -> torch.dtype:
    """The coarsest precision among weights; float32 for finer ones."""
    found = {torch.float32 if value.dtype == torch.float64 else value.dtype for value in state.values()}
    coarse = sorted(found - {torch.float32}, key=str)
    return coarse[0] if len(coarse) == 1 else torch.float32 if not coarse else torch.uint8  # the last for a mixture


def _joint(state: Mapping[str, Tensor], precision: torch.dtype, digests: WeightDigests) -> str:
    """One checksum of all weights, rounded to a precision."""
    each = (
        digests[name][1] if name in digests and digests[name][0] == precision else _crc(value.to(precision))
        for name, value in state.items()
    )
    return hashlib.sha256(" ".join(map(str, each)).encode()).hexdigest()[:16]


def _sums(tables: Sequence[Tensor]) -> tuple[float, ...]:
    """Norm of each table, and its sums along waves, which a row that changed changes too."""
    sums: list[float] = []
    for table in tables:
        values = table.detach().cpu().double().reshape(-1)
        steps = torch.arange(len(values), dtype=torch.float64)
        sums.append(float(values.norm()))
        sums += [float(values @ torch.cos(steps * wave)) for wave in range(1, _WAVES + 1)]
    return tuple(sums)
