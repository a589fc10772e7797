"""Several processes as one: devices, precision, and features gathered with their gradients."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from promptreid.errors import PromptReidError, missing_extra
from promptreid.training.trackers import check_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # ways of accelerate that take the precision into their own setup, once


def make_accelerator(
    device: str | torch.device | None, mixed_precision: str, *, trackers: Sequence[Any] = (), folder: Path | None = None
) -> "Accelerator":
    """An accelerator on a device, or on the best one available, with trackers that write into a folder.

    accelerate computes in its precision from then on, but for blocks `in_precision` of another.

    Raises:
        MissingExtraError: accelerate is not installed.
        ValueError: The device or the precision is not available.
    """
    accelerate = _accelerate()
    wanted = None if device is None else torch.device(device)
    if wanted is not None and wanted.type == "cuda":
        if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
            raise ValueError(f'device is "{wanted}", but torch sees {torch.cuda.device_count()} CUDA devices')
        if str(wanted) != "cuda":  # that is the current one or, under torchrun, the one that accelerate chooses
            torch.cuda.set_device(wanted)
    cpu = wanted is not None and wanted.type == "cpu"
    _check_precision(mixed_precision, wanted)
    check_trackers(trackers)
    if cpu and accelerate.state.is_initialized():
        _check_device(wanted, accelerate.state.AcceleratorState().device)
    _set_precision(mixed_precision)
    shared: Any = accelerate.state.GradientState()
    asked: dict[str, Any] = dict(shared.plugin_kwargs)
    accelerator = accelerate.Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        log_with=list(trackers) or None,
        project_dir=None if folder is None else folder / "trackers",
    )
    shared.plugin_kwargs = asked  # the batches to a step that another `Accelerator` of this process was asked for
    _check_device(wanted, accelerator.device)
    _check_precision(mixed_precision, accelerator.device)
    return accelerator


def forget_earlier(accelerator: "Accelerator") -> None:
    """Let accelerate hold nothing of an earlier training, for whose optimisers fp16 would unscale gradients as well."""
    accelerator.free_memory()
    scaler: Any = accelerator.scaler
    if scaler is not None:
        scaler.scale(torch.zeros((), device=accelerator.device))  # `update` needs a scaler that has been used
        scaler.update(scaler.get_scale())  # the same scale, without what a step that failed has left


@contextmanager
def every_batch_a_step(accelerator: "Accelerator") -> Generator[None, None, None]:
    """Let accelerate, which knows one number of batches to a step in a process, take one to each inside the block.

    A variable, a configuration or an `Accelerator` of the user's own may ask for more; that is put back.
    """
    shared: Any = accelerator.gradient_state
    asked, synchronised = dict(shared.plugin_kwargs), shared.sync_gradients
    accelerator.gradient_accumulation_steps = 1
    shared._set_sync_gradients(True)  # which may be left from the middle of an accumulation
    try:
        yield
    finally:
        shared.plugin_kwargs = asked
        shared._set_sync_gradients(synchronised)


def best_device() -> torch.device:
    """The device that accelerate takes where none is given; its precision is not settled by asking.

    Raises:
        MissingExtraError: accelerate is not installed.
    """
    accelerate = _accelerate()
    return accelerate.PartialState(accelerate.utils.parse_flag_from_env("ACCELERATE_USE_CPU")).device


@contextmanager
def in_precision(mixed_precision: str) -> Generator[None, None, None]:
    """Let accelerate, which knows one precision a process, compute in this one inside the block.

    So trainers of different precisions take turns in a process, also with an `Accelerator` of the user's own.

    Raises:
        MissingExtraError: accelerate is not installed.
        ValueError: accelerate shards the model, and was set up for that in another precision.
    """
    before = _set_precision(mixed_precision)
    try:
        yield
    finally:
        if before is not None:
            _set_precision(before)


def _set_precision(mixed_precision: str) -> str | None:
    """Set the precision of this process and return the one before; before the first `Accelerator` there is none."""
    state = _accelerate().state
    if not state.is_initialized():
        return None
    shared: Any = state.AcceleratorState()
    before: str = shared.mixed_precision
    if before == mixed_precision:
        return before
    kind = shared.distributed_type.value
    if kind not in _SHARDED:
        shared._mixed_precision = mixed_precision  # which has no public setter; the next line notices another name
    if shared.mixed_precision != mixed_precision:
        raise ValueError(
            f"mixed_precision is {mixed_precision!r}, but accelerate ({kind}) was set up for {before!r} in this "
            "process already; start a new process for another precision"
        )
    return before


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise missing_extra("Trainer", "accelerate", "train") from error
    return accelerate


def _check_device(wanted: torch.device | None, device: torch.device) -> None:
    if wanted is not None and device.type != wanted.type:
        raise ValueError(
            f"device is {str(wanted)!r}, but accelerate is set to {device.type} in this process already; start a new "
            "process for another device"
        )


def _check_precision(mixed_precision: str, device: torch.device | None) -> None:
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(f'mixed_precision is {mixed_precision!r}, expected "no", "bf16" or "fp16"')
    kind = None if device is None else device.type
    if mixed_precision == "fp16" and kind == "cpu":
        raise ValueError('mixed_precision="fp16" needs a GPU; use "bf16" or "no" on the CPU')
    if mixed_precision == "bf16" and kind == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f'mixed_precision="bf16" is not supported by {torch.cuda.get_device_name(device)}; use "fp16" or "no"'
        )


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


@contextmanager
def failing_together() -> Generator[None, None, None]:
    """Let no process wait for one that fails in the block; inside, nothing may be done by all together.

    Raises:
        PromptReidError: Another process failed. A process's own error is raised as it is, in the first process that
            has it.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    mine = None if own is None else f"{type(own).__name__}: {own}"
    told = all_ranks(mine)
    if own is not None and (len(told) == 1 or told.index(mine) == dist.get_rank()):
        raise own
    for rank, words in enumerate(told):
        if words is not None:
            raise PromptReidError(
                f"process {rank} failed, and the others stop with it: {words}; fix the cause and run the same command "
                "again"
            )


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward gives each process the sum of all processes' gradients of its share."""

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
