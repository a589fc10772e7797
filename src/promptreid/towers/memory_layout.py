"""The memory layout that keeps frozen attention fast.

`torch.nn.MultiheadAttention(batch_first=True)` hands its projection a transposed view. With a weight that needs
no gradient PyTorch then expands the weight once for every position instead of folding the view, so freezing a
tower slows it down many times over. Run sequence-first, the same weights give the same values without the copy.
"""

from typing import Any

from torch import nn

from promptreid.towers.tower import TokenTower


def runs_slow_when_frozen(tower: TokenTower) -> bool:
    """Whether every block attends through a batch-first `nn.MultiheadAttention`."""
    attentions = [getattr(block, "attn", None) for block in tower.blocks]
    return bool(getattr(tower.container, "batch_first", False)) and all(
        isinstance(attention, nn.MultiheadAttention) and attention.batch_first for attention in attentions
    )


def set_sequence_first(tower: TokenTower, *, enable: bool) -> None:
    """Switch the tower's blocks between (L, B, D), if `enable`, and (B, L, D)."""
    modules: list[Any] = [tower.container, *(block.attn for block in tower.blocks)]
    for module in modules:
        module.batch_first = not enable
