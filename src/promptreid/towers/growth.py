"""Inserting and removing tokens, masks and positions, as pure functions."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd import forward_ad

_ROOM = "promptreid_room"  # attribute of a view: the sequence that it is the rest of


def insert_tokens(sequence: Tensor, tokens: Tensor, *, slot: int, axis: int) -> Tensor:
    """Insert P tokens into every sequence of a batch, the same into all or into each its own.

    Args:
        sequence: The batch.
        tokens: What to insert; cast to the sequence's dtype.
        slot: Position of the first inserted token.
        axis: 1 if the batch comes first, 0 if the sequence does.

    Shape:
        - sequence: (B, L, D) for `axis=1`, (L, B, D) for `axis=0`
        - tokens: (P, D) or (B, P, D)
        - returns: the same with L + P
    """
    inserted = tokens.to(sequence.dtype).expand(sequence.shape[1 - axis], -1, -1)
    inserted = inserted if axis == 1 else inserted.transpose(0, 1)
    before = sequence.narrow(axis, 0, slot)
    after = sequence.narrow(axis, slot, sequence.shape[axis] - slot)
    return torch.cat([before, inserted, after], dim=axis)


def remove_tokens(sequence: Tensor, *, slot: int, count: int, axis: int) -> Tensor:
    """Take `count` tokens at `slot` out again; the inverse of `insert_tokens`.

    Shape:
        - sequence: (B, L + P, D) for `axis=1`, (L + P, B, D) for `axis=0`
        - returns: the same with L
    """
    before = sequence.narrow(axis, 0, slot)
    rest = slot + count
    return torch.cat([before, sequence.narrow(axis, rest, sequence.shape[axis] - rest)], dim=axis)


def put_in_front(sequence: Tensor, tokens: Tensor) -> Tensor:
    """Put P tokens in front of every sequence of a batch; where `take_from_front` left room for them, right there.

    Room is used again where no derivative is wanted: what `take_from_front` returned stays as it is, and nothing is
    copied but the tokens. Blocks would otherwise take and give back memory for a whole sequence each.

    Shape:
        - sequence: (L, B, D); tokens: (P, D) or (B, P, D)
        - returns: (P + L, B, D)
    """
    inserted = tokens.to(sequence.dtype).expand(sequence.shape[1], -1, -1).transpose(0, 1)
    room: Tensor | None = getattr(sequence, _ROOM, None)
    fits = room is not None and len(room) == len(inserted) + len(sequence)
    kept = sequence.requires_grad or _is_transformed(sequence, inserted)
    if room is None or not fits or kept or room.is_inference() != torch.is_inference_mode_enabled():
        return torch.cat([inserted, sequence])
    room.data[: len(inserted)] = inserted  # nothing that was kept for a gradient has changed, so none may complain
    return room


def _is_transformed(*tensors: Tensor) -> bool:
    """Whether derivatives are taken forwards, or `torch.func` runs this, whose tensors have more than their data."""
    transforms: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return transforms._are_functorch_transforms_active() or any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def take_from_front(sequence: Tensor, *, count: int) -> Tensor:
    """Take `count` tokens from the front again, without copying the rest; the inverse of `put_in_front`.

    Shape:
        - sequence: (P + L, B, D)
        - returns: (L, B, D), a view
    """
    rest = sequence[count:]
    setattr(rest, _ROOM, sequence)
    return rest


def grow_mask(mask: Tensor | None, *, length: int, slot: int, count: int, causal: bool) -> Tensor | None:
    """Grow an attention mask by `count` positions at `slot`.

    A new position sees, and is seen by, what the position before the slot does; in a causal tower the triangle
    is then drawn again, so later tokens see the prompts and earlier ones do not.

    Args:
        mask: Additive (`-inf` is hidden) or boolean, or `None`.
        length: L, the sequence's length without the new positions.
        slot: First new position.
        count: P, number of new positions.
        causal: Whether a token may only look back.

    Shape:
        - mask: (..., L) or (..., L, L); one already of another size is returned as it is
        - returns: (..., L + P) or (..., L + P, L + P)
    """
    if mask is None or count == 0 or mask.shape[-1] != length:
        return mask
    source = torch.arange(length, device=mask.device)
    neighbour = source.new_full((count,), max(slot - 1, 0))
    source = torch.cat([source[:slot], neighbour, source[slot:]])
    mask = mask.index_select(-1, source)
    if mask.ndim >= 2 and mask.shape[-2] == length:
        mask = mask.index_select(-2, source)
        if causal:
            hidden = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(1)
            mask = mask.masked_fill(hidden, False if mask.dtype == torch.bool else float("-inf"))
    return mask


def grow_bias(bias: Tensor | None, *, length: int, slot: int, count: int) -> Tensor | None:
    """Grow an additive bias by `count` positions at `slot`, which get none.

    Shape:
        - bias: (..., L) or (..., L, L); one already of another size is returned as it is
        - returns: (..., L + P) or (..., L + P, L + P)
    """
    if bias is None or count == 0 or bias.shape[-1] != length:
        return bias
    square = bias.ndim >= 2 and bias.shape[-2] == length
    bias = torch.cat([bias[..., :slot], bias.new_zeros(*bias.shape[:-1], count), bias[..., slot:]], dim=-1)
    if square:
        empty = bias.new_zeros(*bias.shape[:-2], count, bias.shape[-1])
        bias = torch.cat([bias[..., :slot, :], empty, bias[..., slot:, :]], dim=-2)
    return bias


def grow_rotary(table: Tensor | None, *, length: int, slot: int, count: int) -> Tensor | None:
    """Grow a rotary table, sines beside cosines, by `count` positions at `slot` that are not turned.

    Shape:
        - table: (..., L, 2 R); one already of another size is returned as it is
        - returns: (..., L + P, 2 R)
    """
    if table is None or count == 0 or table.shape[-2] != length:
        return table
    half = table.shape[-1] // 2
    still = torch.cat([table.new_zeros(half), table.new_ones(half)])
    still = still.expand(*table.shape[:-2], count, 2 * half)
    return torch.cat([table[..., :slot, :], still, table[..., slot:, :]], dim=-2)


def keep_positions(mask: Tensor | None, index: Tensor, *, length: int) -> Tensor | None:
    """Keep the positions `index` of an attention mask over `length` of them.

    Shape:
        - mask: (..., L) or (..., L, L); index: (K,) int64
        - returns: (..., K) or (..., K, K)
    """
    if mask is None or mask.shape[-1] != length:
        return mask
    if mask.ndim >= 2 and mask.shape[-2] == length:
        mask = mask.index_select(-2, index)
    return mask.index_select(-1, index)


def mask_before_end(ends: Tensor, *, length: int, slot: int, count: int) -> Tensor:
    """A causal mask in which `count` tokens at `slot` act as if they were right before each end.

    Args:
        ends: Position of the end token of each caption, without the new tokens.
        length: L, the sequence's length without the new tokens.
        slot: Position of the new tokens.
        count: P, how many there are.

    Shape:
        - ends: (B,) int64
        - returns: (B, L + P, L + P) float32, `-inf` is hidden
    """
    own = torch.arange(length, device=ends.device).expand(len(ends), -1)
    end = ends.unsqueeze(1)
    own = own + count * (own >= end)
    new = end + torch.arange(count, device=ends.device)
    rank = torch.cat([own[:, :slot], new, own[:, slot:]], dim=1)
    hidden = rank.unsqueeze(1) > rank.unsqueeze(2)
    return torch.zeros(hidden.shape, device=ends.device).masked_fill(hidden, float("-inf"))


def shift_positions(
    sequence: Tensor, positions: Tensor, *, slot: int, count: int, axis: int, behind: int = 0
) -> Tensor:
    """Shift the tokens from `slot` on by `count` positions in the tower's own position embedding.

    Positions past the end of the table keep its last row.

    Args:
        sequence: The batch, with the positions already added.
        positions: The position embedding.
        slot: First token that is shifted.
        count: By how many positions.
        axis: 1 if the batch comes first, 0 if the sequence does.
        behind: Tokens behind the captions, which have the last positions however long the captions are, and keep them.

    Shape:
        - sequence: (B, L, D) for `axis=1`, (L, B, D) for `axis=0`
        - positions: (L, D)
        - returns: as `sequence`
    """
    stop = sequence.shape[axis] - behind
    here = torch.arange(slot, stop, device=sequence.device)
    there = (here + count).clamp(max=positions.shape[0] - 1)
    change = (positions[there] - positions[here]).to(sequence.dtype).unsqueeze(1 - axis)
    before, moved, after = sequence.split([slot, stop - slot, behind], dim=axis)
    return torch.cat([before, moved + change, after], dim=axis)


def sample_grid_positions(positions: Tensor, *, grid: tuple[int, int], count: int) -> Tensor:
    """Take `count` position embeddings from a grid, evenly along its rows.

    Args:
        positions: Position embedding whose last `rows * columns` entries are the grid's.
        grid: (rows, columns).
        count: How many to take.

    Shape:
        - positions: (L, D)
        - returns: (count, D)
    """
    patches = rearrange(positions[-grid[0] * grid[1] :], "l d -> 1 d l")
    return rearrange(F.interpolate(patches, size=count, mode="linear", align_corners=False), "1 d p -> p d")
