"""Shares of a list of items over the processes of a run, and back."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_main_process() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return _place()[0] == 0


def own_shard(total: int) -> range:
    """This process's share of `total` items: neighbours, as even as can be."""
    rank, processes = _place()
    return range(total * rank // processes, total * (rank + 1) // processes)


def join_shards(share: Tensor, total: int) -> Tensor:
    """Every process's share in order, in every process.

    Args:
        share: This process's rows, those of `own_shard(total)`.
        total: Rows of all.

    Shape:
        - share: (len(own_shard(total)), E), on the CPU
        - returns: (total, E), on the CPU
    """
    processes = _place()[1]
    if processes == 1:
        return share
    # NCCL moves nothing but GPU memory, and all_gather wants shares of one size.
    device = torch.device("cuda") if dist.get_backend() == "nccl" else share.device
    longest = -(-total // processes)
    padded = share.new_zeros(longest, *share.shape[1:])
    padded[: len(share)] = share
    parts = [torch.empty_like(padded, device=device) for _ in range(processes)]
    dist.all_gather(parts, padded.to(device))
    sizes = [total * (rank + 1) // processes - total * rank // processes for rank in range(processes)]
    return torch.cat([part[:size].cpu() for part, size in zip(parts, sizes, strict=True)])


def _place() -> tuple[int, int]:
    """Number of this process and of all."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
