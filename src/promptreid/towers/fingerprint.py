"""Samples and checksums of a model's weights: do prompts belong to it, and was it changed since?"""

import base64
import binascii
import math
import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.towers.families import VISION_FAMILIES

SAMPLES = 256
_MOST_TENSORS = 4096

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
    """
    resized = resized_keys()
    state = {
        name: value
        for name, value in sorted(module.state_dict().items())
        if value.is_floating_point() and value.numel() and not name.endswith(resized)
    }
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
    """The first part of a fingerprint, which is short enough to go with prompts alone."""
    return values[:SAMPLES]


def _spread(total: int) -> list[int]:
    """Up to 128 of the first `total` integers, evenly spread."""
    count = min(SAMPLES // 2, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def same_fingerprint(one: Sequence[float], other: Sequence[float], *, relative: float = 1e-2) -> bool:
    """Whether two fingerprints are of the same weights, whatever precision those were kept in.

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
    """What `pack_fingerprint` packed.

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


def weights_changed(before: WeightDigests | None, module: nn.Module, remake: Callable[[], nn.Module]) -> bool:
    """Whether a tensor of `module` is not what it was, other than by being kept in another precision.

    Args:
        before: What `weight_digests` said; `None` compares with the model made again in any case.
        module: The model now.
        remake: Makes the model again as it was; else called only where the precision is another.

    Raises:
        Exception: Whatever `remake` raises.
    """
    now = {} if before is None else weight_digests(module)
    if before is not None and before == now:
        return False
    if before is not None and (
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
