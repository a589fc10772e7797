"""Contrastive batches larger than memory: the gradient of the whole batch from pieces of it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.training.training_step import TrainingStep

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
