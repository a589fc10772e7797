"""What accelerate does for the trainer: devices, precision and processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from promptreid.errors import MissingExtraError
from promptreid.training.run_log import check_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


def make_accelerator(
    device: str | torch.device | None, mixed_precision: str, *, trackers: Sequence[Any] = (), folder: Path | None = None
) -> "Accelerator":
    """An accelerator on a device, or on the best there is, with trackers that write into a folder.

    Raises:
        MissingExtraError: accelerate is not installed.
        ValueError: The device or the precision cannot be had.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtraError('Trainer needs accelerate: pip install "promptreid[train]"') from error
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f'mixed_precision is {mixed_precision!r}, expected "no", "bf16" or "fp16"')
    wanted = None if device is None else torch.device(device)
    if wanted is not None and wanted.type == "cuda":
        if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
            raise ValueError(f'device is "{wanted}", but torch sees {torch.cuda.device_count()} CUDA devices')
        torch.cuda.set_device(wanted)
    cpu = wanted is not None and wanted.type == "cpu"
    half_on_cpu = ValueError('mixed_precision="fp16" needs a GPU; use "bf16" or "no" on the CPU')
    if mixed_precision == "fp16" and cpu:
        raise half_on_cpu
    check_trackers(trackers)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_dir=None if folder is None else folder / "trackers",
    )
    if wanted is not None and accelerator.device.type != wanted.type:
        raise ValueError(
            f"device is {str(wanted)!r}, but accelerate is set to {accelerator.device.type} in this process already; "
            "start a new process for another device"
        )
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise half_on_cpu
    if mixed_precision == "bf16" and accelerator.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f'mixed_precision="bf16" is not supported by {torch.cuda.get_device_name(accelerator.device)}; use "fp16" '
            'or "no"'
        )
    return accelerator


def first_rank(value: Item) -> Item:
    """The first process's value, in every process."""
    return all_ranks(value)[0]


def all_ranks(value: Item) -> list[Item]:
    """Every process's value, in the order of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
