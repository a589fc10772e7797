"""A stage under way: the step of the loop, with everything that has state."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.features import check_labels
from promptreid.training.gradient_cache import GradientCache
from promptreid.training.stages import Stage
from promptreid.training.training_step import TrainingStep, check_finite, check_scale


class RunningStage:
    """A stage with its optimiser, scheduler and gradient scaler.

    Args:
        stage: The stage; it is prepared.
        accelerator: accelerate's `Accelerator`.
        steps_per_epoch: For the schedule.
        chunk_size: Pairs that a process encodes at a time; its whole share if None.
        compile: Let torch.compile make the encoders' code.
    """

    def __init__(
        self,
        stage: Stage,
        accelerator: Any,
        *,
        steps_per_epoch: int,
        chunk_size: int | None = None,
        compile: bool = False,
    ) -> None:
        stage.prepare()
        optimizer = stage.optimizer()
        step = TrainingStep(stage, compile=compile)
        self.stage = stage
        self.module: nn.Module = accelerator.prepare_model(step)
        # Before accelerate wraps the optimiser, which would take off with fp16 what the schedule put around its step.
        self.scheduler: LambdaLR = stage.scheduler(optimizer, steps_per_epoch)
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)
        self.scaler: Any = accelerator.scaler
        self._accelerator = accelerator
        self._chunk_size = chunk_size
        self._cache = GradientCache(step, self.module, accelerator, chunk_size=chunk_size or 1)

    @property
    def learning_rate(self) -> float:
        """Of the first group."""
        return float(self.scheduler.get_last_lr()[0])

    def step(
        self, batch: Mapping[str, Tensor], *, where: str, last_checkpoint: object | None
    ) -> tuple[dict[str, float], float]:
        """Train on one batch.

        Args:
            batch: This process's share.
            where: Names the step in errors.
            last_checkpoint: Named in errors.

        Returns:
            The losses of the whole batch by name, and the gradient's length before clipping.

        Raises:
            ValueError: A label is out of range.
            FloatingPointError: A loss or the gradient is no longer finite, or in fp16 overflows at every scale.
        """
        self._check_labels(batch["person_ids"])
        losses = self._backward(batch)
        longest = math.inf if self.stage.max_norm is None else self.stage.max_norm
        norm: Tensor = self._accelerator.clip_grad_norm_(self.stage.parameters(), longest)
        watched = torch.stack([value.detach().float() for value in (*losses.values(), norm)])
        *values, length = watched.tolist()  # the one time in a step that the CPU waits for the device
        named = dict(zip(losses, values, strict=True))
        # fp16 gradients overflow now and then: there the scaler skips the step by itself.
        judged = named if self.scaler is not None else named | {"gradient norm": length}
        check_finite(judged, where=where, last_checkpoint=last_checkpoint)
        self.optimizer.step()
        if self.scaler is not None and self._accelerator.optimizer_step_was_skipped:
            check_scale(self.scaler.get_scale(), where=where, last_checkpoint=last_checkpoint)
        else:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return named, length

    def _backward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._chunk_size is not None and self._chunk_size < len(batch["person_ids"]):
            return self._cache.backward(batch)
        device = self._accelerator.device
        share = {name: batch[name].to(device, non_blocking=True) for name in ("images", "tokens", "person_ids")}
        losses: dict[str, Tensor] = self.module(share["images"], share["tokens"], share["person_ids"])
        self._accelerator.backward(losses["total"])
        return losses

    def _check_labels(self, person_ids: Tensor) -> None:
        # Here, where they are still on the CPU: on a GPU a wrong one would end the process without a word.
        for loss in self.stage.loss_modules.values():
            if isinstance(loss, CrossModalIDLoss):
                check_labels(person_ids, loss.num_identities)
