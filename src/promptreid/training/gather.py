"""Features of all processes as one batch, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward gives each process the sum of what all processes ask of its share."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        return _all_gather(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        start = dist.get_rank() * ctx.rows
        return summed[start : start + ctx.rows]


def gather_batch(*shares: Tensor) -> tuple[Tensor, ...]:
    """Join every process's share of a batch in the order of ranks, so that each compares with all negatives.

    Each process then computes the same loss of the whole batch. The gradient of a share is summed over the processes
    and DistributedDataParallel averages those of the weights: together exactly the gradient of one process with the
    whole batch. With one process, or none started, the shares come back as they are.

    Args:
        *shares: Tensors of this process, of the same shapes in every process.

    Shape:
        - shares: (B / W, ...) each, over W processes
        - returns: (B, ...) each

    Example:
        >>> import torch
        >>> gather_batch(torch.eye(2))[0].shape
        torch.Size([2, 2])
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return shares
    return tuple(_GatherWithGradient.apply(share) if share.requires_grad else _all_gather(share) for share in shares)  # pyright: ignore[reportReturnType]


def _all_gather(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)
