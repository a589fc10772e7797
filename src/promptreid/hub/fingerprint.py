"""A short fingerprint that tells whether prompts belong to a model."""

import math
from collections.abc import Sequence

import torch
from torch import nn

SAMPLES = 256
# Resized with the image, so the same base at another size has others.
_POSITION_GRIDS = ("visual.positional_embedding", "visual.trunk.pos_embed", "visual.attnpool.positional_embedding")


def fingerprint(module: nn.Module) -> tuple[float, ...]:
    """Sample 256 weights at fixed places.

    Samples are spread evenly over the concatenation of all floating-point weights in the order of their names, so
    every large tensor is represented. Position grids of images are left out.

    Args:
        module: A model.

    Returns:
        256 values as float32; fewer if the model has fewer weights.
    """
    state = {
        name: value
        for name, value in sorted(module.state_dict().items())
        if value.is_floating_point() and not name.endswith(_POSITION_GRIDS)
    }
    total = sum(value.numel() for value in state.values())
    count = min(SAMPLES, total)
    places = [(2 * index + 1) * total // (2 * count) for index in range(count)]
    values: list[float] = []
    begin = 0
    for value in state.values():
        end = begin + value.numel()
        inside = [place - begin for place in places if begin <= place < end]
        if inside:
            chosen = value.detach().reshape(-1)[torch.tensor(inside, device=value.device)]
            values += [float(number) for number in chosen.float().cpu().tolist()]
        begin = end
    return tuple(values)


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
