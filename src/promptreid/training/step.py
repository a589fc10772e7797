"""One step of training: encoders and losses, chunk by chunk if memory is short, and what a step must not give."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.functional import at_least_float32, check_labels
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.processes import gather_batch
from promptreid.training.stage import Stage

_LOWEST_SCALE = 2.0**-14  # 30 steps without one taken, from where the scaler begins


class TrainingStep(nn.Module):
    """Encoders and losses as one module, so that one wrapper serves all parameters that train.

    Args:
        stage: Whose model and losses they are.
        compile: Let torch.compile make the encoders' code.

    Shape:
        - images: (B / W, 3, H, W); tokens: (B / W, L); person_ids: (B / W,): the share of one of W processes
        - returns: losses of the whole batch, () each
    """

    def __init__(self, stage: Stage, *, compile: bool = False) -> None:
        super().__init__()
        self.model: PromptedCLIP = stage.model
        self.loss_modules: nn.ModuleDict = stage.loss_modules
        self._losses = stage.losses
        # In a tuple, so that the compiled module is not registered beside the model itself.
        self._encoders: tuple[Callable[..., Any]] = (torch.compile(stage.model) if compile else stage.model,)

    def forward(
        self, images: Tensor, tokens: Tensor, person_ids: Tensor, *, gradients: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses by name, with `"total"`.

        With `gradients` of the image and the text features, `"total"` is a number whose gradient is what those
        features pass on, and there are no losses.
        """
        features = self.encode(images, tokens)
        if gradients is None:
            return self.whole_batch_losses(*features, person_ids)
        total = sum(
            (
                (values.to(gradient.dtype) * gradient).sum()
                for values, gradient in zip(features, gradients, strict=True)
            ),
            start=self._nothing(),
        )
        return {"total": total}

    def encode(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image and text features of this process's share."""
        out = self._encoders[0](images, tokens)
        return out["image_features"], out["text_features"]

    def whole_batch_losses(
        self, image_features: Tensor, text_features: Tensor, person_ids: Tensor
    ) -> dict[str, Tensor]:
        """Losses of features that are there already."""
        # float32 at least: in half precision the gradients that processes ask of a feature would be rounded one by one.
        features = at_least_float32(image_features), at_least_float32(text_features)
        return self._losses(*gather_batch(*features, person_ids))

    def _nothing(self) -> Tensor:
        # Zero, made of the losses' parameters: DistributedDataParallel waits until each has taken part.
        zero = torch.zeros((), device=next(self.model.parameters()).device)
        return sum((0.0 * parameter.sum() for parameter in self.loss_modules.parameters()), start=zero)


def check_finite(numbers: Mapping[str, float], *, where: str, last_checkpoint: object | None) -> None:
    """Stop a run whose losses or gradient are no longer numbers, before they reach the weights.

    Raises:
        FloatingPointError: One is infinite or not a number.
    """
    if all(math.isfinite(number) for number in numbers.values()):
        return
    raise FloatingPointError(
        f"{where} gave {dict(numbers)}; the weights are still those before it, and {_last(last_checkpoint)}. Lower the "
        "learning rate, clip the gradient (max_norm), or use bf16 instead of fp16"
    )


def check_scale(scale: float, *, where: str, last_checkpoint: object | None) -> None:
    """Stop a run in fp16 whose gradients overflow step after step, whatever they are scaled by.

    Raises:
        FloatingPointError: The scaler has gone down so far that no gradient of use is left to scale.
    """
    if scale < _LOWEST_SCALE:
        raise FloatingPointError(
            f"{where}: the gradient overflows in fp16 although it is scaled by {scale:.1e} only, so no step is taken; "
            f"{_last(last_checkpoint)}. Use bf16 instead"
        )


def _last(checkpoint: object | None) -> str:
    return "there is no checkpoint yet" if checkpoint is None else f"the last good checkpoint is {checkpoint}"


_NEEDED = ("images", "tokens", "person_ids")


class GradientCache:
    """Runs a step in chunks that fit into memory, with the gradients of the whole batch.

    First every chunk is encoded without keeping anything but features; then the loss of the whole batch gives the
    gradient of each feature; last every chunk is encoded again and passes its features' gradients on. Each chunk
    draws the same dropout both times.

    Args:
        step: Encoders and losses.
        module: The step as accelerate wrapped it.
        accelerator: accelerate's `Accelerator`.
        chunk_size: Pairs encoded at a time.

    Source:
        Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983.
    """

    def __init__(self, step: TrainingStep, module: nn.Module, accelerator: Any, *, chunk_size: int) -> None:
        self.step = step
        self.module = module
        self.accelerator = accelerator
        self.chunk_size = chunk_size

    def backward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the gradients of a batch and return its losses.

        Shape:
            - batch: `"images"` (B / W, 3, H, W), `"tokens"` (B / W, L), `"person_ids"` (B / W,), on any device
            - returns: losses of the whole batch, () each
        """
        states: list[list[Tensor]] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        for chunk in self._chunks(batch):
            states.append(_dropout_state(self.accelerator.device))
            with torch.no_grad(), self.accelerator.autocast():
                pairs.append(self.step.encode(chunk["images"], chunk["tokens"]))
        images, texts = (_leaf(torch.cat(features)) for features in zip(*pairs, strict=True))
        person_ids = batch["person_ids"].to(self.accelerator.device)
        with self.accelerator.no_sync(self.module):
            losses = self.step.whole_batch_losses(images, texts, person_ids)
            self.accelerator.backward(losses["total"])
        self._pass_on(batch, states, _gradient(images), _gradient(texts))
        return {name: value.detach() for name, value in losses.items()}

    def _pass_on(self, batch: Mapping[str, Tensor], states: list[list[Tensor]], images: Tensor, texts: Tensor) -> None:
        last = len(states) - 1
        parts = zip(self._chunks(batch), images.split(self.chunk_size), texts.split(self.chunk_size), strict=True)
        for index, (chunk, image_part, text_part) in enumerate(parts):
            _set_dropout_state(self.accelerator.device, states[index])
            # Processes exchange gradients once, after the last chunk.
            wait: AbstractContextManager[Any] = (
                nullcontext() if index == last else self.accelerator.no_sync(self.module)
            )
            with wait:
                out = self.module(*chunk.values(), gradients=(image_part, text_part))
                if out["total"].requires_grad:
                    out["total"].backward()

    def _chunks(self, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        # Moved to the device piece by piece, so that it holds one piece at a time.
        for start in range(0, len(batch["person_ids"]), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            yield {name: batch[name][part].to(self.accelerator.device, non_blocking=True) for name in _NEEDED}


def _leaf(features: Tensor) -> Tensor:
    # float32 at least: half precision would round the gradients of the whole batch before they are passed on.
    return (features.float() if features.dtype in (torch.float16, torch.bfloat16) else features).requires_grad_()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _dropout_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _set_dropout_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


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
