"""What one step computes and what it must not give."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from promptreid.training.gather import gather_batch
from promptreid.training.stages import Stage


class TrainingStep(nn.Module):
    """Encoders and losses as one module, so that one wrapper serves all parameters that train.

    Args:
        stage: Whose model and losses they are.

    Shape:
        - images: (B / W, 3, H, W); tokens: (B / W, L); person_ids: (B / W,): the share of one of W processes
        - returns: losses of the whole batch, () each
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.model = stage.model
        self.loss_modules = stage.loss_modules
        self._losses = stage.losses

    def forward(self, images: Tensor, tokens: Tensor, person_ids: Tensor) -> dict[str, Tensor]:
        """Losses by name, with `"total"`."""
        out = self.model(images, tokens)
        return self._losses(*gather_batch(out["image_features"], out["text_features"], person_ids))


def check_finite(numbers: Mapping[str, float], *, where: str, last_checkpoint: object | None) -> None:
    """Stop a run whose losses or gradient are no longer numbers, before they reach the weights.

    Raises:
        FloatingPointError: One is infinite or not a number.
    """
    if all(math.isfinite(number) for number in numbers.values()):
        return
    last = "there is no checkpoint yet" if last_checkpoint is None else f"the last good checkpoint is {last_checkpoint}"
    raise FloatingPointError(
        f"{where} gave {dict(numbers)}; the weights are still those before it, and {last}. Lower the learning rate, "
        "clip the gradient (max_norm), or use bf16 instead of fp16"
    )
