"""What one step computes and what it must not give."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.encoders.clip import PromptedCLIP
from promptreid.losses.features import at_least_float32
from promptreid.training.gather import gather_batch
from promptreid.training.stages import Stage

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
