"""One step of training: losses, gradients (chunk by chunk if memory is short), checks, and the optimiser's step."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from promptreid.losses.functional import at_least_float32
from promptreid.losses.self_consistency import FrozenFeatures
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.batches import batch_keys
from promptreid.training.parameters import trained_batch_norms
from promptreid.training.processes import gather_batch
from promptreid.training.stage import Stage
from promptreid.training.stage_losses import Losses, may_change_themselves

_LOWEST_SCALE = 2.0**-14  # 30 overflows in a row, from where the scaler begins


class TrainingStep(nn.Module):
    """Encoders and losses as one module, so that one wrapper serves all parameters that train.

    Args:
        stage: The stage; its model and losses are used.
        compile: Compile the encoders with torch.compile.

    Shape:
        - images: (B / W, 3, H, W); tokens: (B / W, L); person_ids: (B / W,): the share of one of W processes; with
          grouped prompts groups: (B / W,)
        - returns: losses of the whole batch, () each
    """

    def __init__(self, stage: Stage, *, compile: bool = False) -> None:
        super().__init__()
        self.model: PromptedCLIP = stage.model
        self.losses: Losses = stage.losses
        self.one_person: Tensor = torch.tensor(False)  # whether the last batch held only one person, over all processes
        self._stage = stage
        # In a tuple, so that the compiled module is not registered beside the model itself.
        self._encoders: tuple[Callable[..., Any]] = (torch.compile(stage.model) if compile else stage.model,)

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        person_ids: Tensor,
        groups: Tensor | None = None,
        *,
        gradients: tuple[Tensor, Tensor] | None = None,
        batch: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses by name, with `"total"`; `batch` is for losses that need it.

        With `gradients` of the image and the text features, `"total"` is a number whose gradient is what those
        features pass on, and there are no losses.
        """
        features = self.encode(images, tokens, groups)
        if gradients is None:
            return self.whole_batch_losses(*features, person_ids, frozen=self.frozen(images, tokens), batch=batch)
        # Each of the losses' parameters takes part with nothing, as DistributedDataParallel waits for it.
        parts = [0.0 * parameter.sum() for parameter in self.losses.parameters()]
        parts += [(values.to(wanted.dtype) * wanted).sum() for values, wanted in zip(features, gradients, strict=True)]
        return {"total": sum(parts, start=features[0].new_zeros((), dtype=gradients[0].dtype))}

    def encode(self, images: Tensor, tokens: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image and text features of this process's share."""
        out = self._encoders[0](images, tokens, *(() if groups is None else (groups,)))
        return out["image_features"], out["text_features"]

    def frozen(self, images: Tensor, tokens: Tensor) -> FrozenFeatures | None:
        """The same without prompts, if a loss needs them."""
        return self._stage.frozen_features(images, tokens) if "frozen" in self.losses.needs else None

    def whole_batch_losses(
        self,
        image_features: Tensor,
        text_features: Tensor,
        person_ids: Tensor,
        *,
        frozen: FrozenFeatures | None = None,
        batch: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of features that have been computed already, gathered from all processes."""
        # float32 at least: in half precision the gradients that processes ask of a feature would be rounded one by one.
        features = at_least_float32(image_features), at_least_float32(text_features)
        if frozen is not None:
            frozen = FrozenFeatures(*gather_batch(*map(at_least_float32, frozen)))
        *features, person_ids = gather_batch(*features, person_ids)
        self.one_person = (person_ids == person_ids[0]).all()
        return self.losses(*features, person_ids, frozen=frozen, batch=batch)


def check_chunk_size(stages: Sequence[Stage], chunk_size: int | None, *, share: int) -> None:
    """Refuse chunks with which a stage would not give the gradients of the whole batch, or could not be trained.

    Args:
        stages: The stages.
        chunk_size: Pairs that a process encodes at a time.
        share: Pairs of a batch in each process.

    Raises:
        ValueError: A loss needs the batch, or BatchNorm layers take the statistics of each chunk.
    """
    if chunk_size is None:
        return
    for stage in stages:
        if "batch" in stage.losses.needs:
            raise ValueError(
                f"a loss of stage {stage.name!r} needs the batch, which it would hold in memory as a whole; leave out "
                "chunk_size, or that loss"
            )
        if chunk_size < share and (norms := trained_batch_norms(stage.model, stage.trains)):
            more = f" and {len(norms) - 1} more" if len(norms) > 1 else ""
            raise ValueError(
                f"chunk_size is {chunk_size}, and stage {stage.name!r} has BatchNorm in train mode ({norms[0]}{more}), "
                "which would take the statistics of each chunk, not of the whole batch. Leave out chunk_size and give "
                "a smaller batch_size; or keep BatchNorm frozen by training other parts or parameters (trains); or "
                "use a backbone without it, such as ViT-B-16"
            )


def check_finite(numbers: Mapping[str, float], *, where: str, last_checkpoint: Path | None) -> None:
    """Stop a run whose losses or gradient are no longer finite, before they reach the weights.

    Raises:
        FloatingPointError: One is infinite or not a number.
    """
    if all(math.isfinite(number) for number in numbers.values()):
        return
    raise FloatingPointError(
        f"{where} gave {dict(numbers)}; the weights are still those before it, and "
        f"{_named(last_checkpoint, 'last good')}. {_REMEDY}"
    )


def diverged(found: object, *, where: str, last_checkpoint: Path | None) -> FloatingPointError:
    """The error for a model whose features are not finite once its steps were taken, to be raised by the caller.

    Args:
        found: What was found.
        where: Names the last step.
        last_checkpoint: The newest one.
    """
    return FloatingPointError(
        f"{where} left a model that cannot be scored ({found}); its epoch is not kept, and "
        # Which may be of this very epoch, so that nobody knows how good it is.
        f"{_named(last_checkpoint, 'last')}. {_REMEDY}"
    )


def check_scale(scale: float, *, where: str, last_checkpoint: Path | None) -> None:
    """Stop a run in fp16 whose gradients overflow step after step, at every scale.

    Raises:
        FloatingPointError: The scale is so small that no useful gradient is left.
    """
    if scale < _LOWEST_SCALE:
        raise FloatingPointError(
            f"{where}: the gradient overflows in fp16 although it is scaled by {scale:.1e} only, so no step is taken; "
            f"{_named(last_checkpoint, 'last good')}. Use bf16 instead, in another output_dir"
        )


_REMEDY = "Lower the learning rate, clip the gradient (max_norm), or use bf16 instead of fp16, in another output_dir"


def _named(checkpoint: Path | None, which: str) -> str:
    return "there is no checkpoint yet" if checkpoint is None else f"the {which} checkpoint is {checkpoint}"


class RunningStage:
    """A stage in training, with its optimiser, scheduler and gradient scaler.

    It begins without gradients, and a step leaves none, whether it succeeds or fails. In a loop of your own in fp16,
    call `forget_earlier` before another stage, else accelerate unscales its gradients once for each optimiser so far.

    With a `chunk_size` smaller than the batch, gradients are cached (GradCache). First every chunk is encoded and
    nothing but its features is kept; then the loss of the whole batch gives the gradient of each feature; last every
    chunk is encoded again and passes its features' gradients on. Each chunk draws the same dropout both times.
    BatchNorm in train mode would take the statistics of each chunk: `check_chunk_size` refuses it.

    Args:
        stage: The stage; it is prepared.
        accelerator: accelerate's `Accelerator`.
        steps_per_epoch: Steps per epoch, for the schedule.
        chunk_size: Pairs that a process encodes at a time; its whole share if None.
        compile: Compile the encoders with torch.compile.

    Attributes:
        moved: Whether a step may have changed weights or buffers, as far as it got, or what a loss of your own holds.

    Source:
        Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983.
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
        for parameter in (*stage.model.parameters(), *stage.losses.parameters()):
            parameter.grad = None  # else the first step would add what another run or loop left there
        optimizer = stage.optimizer(fused=accelerator.scaler is None)
        self.stage = stage
        self.moved: bool = False
        self.scaler: Any = accelerator.scaler
        self._step = TrainingStep(stage, compile=compile)
        self.module: nn.Module = accelerator.prepare_model(self._step)
        # Before accelerate wraps the optimiser, which with fp16 would remove what the schedule puts around its step.
        self.scheduler: LambdaLR = stage.scheduler(optimizer, steps_per_epoch)
        self.optimizer: Any = accelerator.prepare_optimizer(optimizer)
        self._accelerator = accelerator
        self._chunk_size = chunk_size
        self._batch_keys: tuple[str, ...] = batch_keys(stage.model)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first group."""
        return float(self.scheduler.get_last_lr()[0])

    def step(
        self, batch: Mapping[str, Tensor], *, where: str, last_checkpoint: Path | None
    ) -> tuple[dict[str, float], float, bool]:
        """Train on one batch.

        Args:
            batch: This process's share.
            where: Names the step in errors.
            last_checkpoint: Named in errors.

        Returns:
            The losses of the whole batch by name, the gradient's length before clipping, and whether the batch held
            one person only.

        Raises:
            ValueError: A label is out of range.
            FloatingPointError: A loss or the gradient is no longer finite, or in fp16 overflows at every scale.
        """
        self.stage.check_labels(batch["person_ids"])
        before = [] if self.moved else [buffer.clone() for buffer in self._buffers()]
        try:
            return self._step_on(batch, where=where, last_checkpoint=last_checkpoint)
        finally:
            self.optimizer.zero_grad()  # after an error too
            if not self.moved:
                self.moved = may_change_themselves(self.stage.losses) or not _are_equal(before, self._buffers())

    def _buffers(self) -> list[Tensor]:
        """What can change before the optimiser's step, as BatchNorm's statistics do."""
        return [*self.stage.model.buffers(), *self.stage.losses.buffers()]

    def _step_on(
        self, batch: Mapping[str, Tensor], *, where: str, last_checkpoint: Path | None
    ) -> tuple[dict[str, float], float, bool]:
        losses = self.backward(batch)
        longest = math.inf if self.stage.max_norm is None else self.stage.max_norm
        norm: Tensor = self._accelerator.clip_grad_norm_(self.stage.parameters(), longest)
        watched = torch.stack([value.detach().float() for value in (*losses.values(), norm, self._step.one_person)])
        *values, length, one_person = watched.tolist()  # the only time in a step that the CPU waits for the device
        named = dict(zip(losses, values, strict=True))
        # fp16 gradients overflow occasionally; the scaler then skips the step by itself.
        judged = named if self.scaler is not None else named | {"gradient norm": length}
        check_finite(judged, where=where, last_checkpoint=last_checkpoint)
        self.moved = True
        self.optimizer.step()
        if self.scaler is not None and self._accelerator.optimizer_step_was_skipped:
            check_scale(self.scaler.get_scale(), where=where, last_checkpoint=last_checkpoint)
        else:
            self.scheduler.step()
        return named, length, bool(one_person)

    def backward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the gradients of a batch to the parameters and return its losses.

        Shape:
            - batch: `"images"` (B / W, 3, H, W), `"tokens"` (B / W, L), `"person_ids"` (B / W,), on any device; with
              grouped prompts `"groups"` (B / W,)
            - returns: losses of the whole batch, () each
        """
        size = len(batch["person_ids"])
        if self._chunk_size is not None and self._chunk_size < size:
            return self._backward_in_chunks(batch, self._chunk_size)
        (whole,) = self._chunks(batch, size)
        loaded = self._loaded(batch) if "batch" in self.stage.losses.needs else None
        losses: dict[str, Tensor] = self.module(*whole, batch=loaded)
        self._accelerator.backward(losses["total"])
        return losses

    def _backward_in_chunks(self, batch: Mapping[str, Tensor], chunk_size: int) -> dict[str, Tensor]:
        device = self._accelerator.device
        states: list[list[Tensor]] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        fixed: list[FrozenFeatures | None] = []
        for images, tokens, _, *groups in self._chunks(batch, chunk_size):
            states.append(_dropout_state(device))
            with torch.no_grad(), self._accelerator.autocast():
                pairs.append(self._step.encode(images, tokens, *groups))
                fixed.append(self._step.frozen(images, tokens))
        # float32 at least: half precision would round the gradients of the whole batch before they are passed on.
        leaves = [at_least_float32(torch.cat(features)).requires_grad_() for features in zip(*pairs, strict=True)]
        with self._accelerator.no_sync(self.module):
            person_ids = batch["person_ids"].to(device)
            losses = self._step.whole_batch_losses(leaves[0], leaves[1], person_ids, frozen=_joined(fixed))
            self._accelerator.backward(losses["total"])
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        parts = zip(states, self._chunks(batch, chunk_size), *(g.split(chunk_size) for g in gradients), strict=True)
        for index, (state, chunk, image_part, text_part) in enumerate(parts, start=1):
            _set_dropout_state(device, state)
            # Processes exchange gradients once, after the last chunk.
            with nullcontext() if index == len(states) else self._accelerator.no_sync(self.module):
                total = self.module(*chunk, gradients=(image_part, text_part))["total"]
                if total.requires_grad:
                    total.backward()
        return {name: value.detach() for name, value in losses.items()}

    def _loaded(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values.to(self._accelerator.device, non_blocking=True) for name, values in batch.items()}

    def _chunks(self, batch: Mapping[str, Tensor], size: int) -> Iterator[list[Tensor]]:
        # Moved to the device chunk by chunk, so that it holds one at a time.
        for start in range(0, len(batch["person_ids"]), size):
            chunk = (batch[name][start : start + size] for name in self._batch_keys)
            yield [values.to(self._accelerator.device, non_blocking=True) for values in chunk]


def _are_equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    pairs = zip(before, now, strict=False)
    return len(before) == len(now) and all(
        old.shape == new.shape and old.dtype == new.dtype and torch.equal(old, new) for old, new in pairs
    )


def _joined(parts: Sequence[FrozenFeatures | None]) -> FrozenFeatures | None:
    found = [part for part in parts if part is not None]
    return FrozenFeatures(*map(torch.cat, zip(*found, strict=True))) if found else None


def _dropout_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _set_dropout_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
