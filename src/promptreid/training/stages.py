"""One stage of training: what trains, on which losses, at which rates."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from promptreid.encoders.clip import PromptedCLIP

Part = Literal["prompts", "image_prompts", "text_prompts", "encoders"]


class Stage:
    """A part of training with its own trainable parameters, losses and schedule; works in any loop.

    Args:
        name: Shown in progress bars and logs.
        model: The model to train.
        trains: Parts of the model that train: `"prompts"` (or `"image_prompts"`, `"text_prompts"`) and
            `"encoders"`. May be empty where a loss has parameters of its own.
        losses: Modules by name, each called with image features, text features and person ids. Their parameters
            belong to the stage: they train with it, are kept in its checkpoints and are never published.
        weights: Weights of the losses by name; 1 where not given.
        epochs: Passes over the training data.
        learning_rate: Peak rate.
        weight_decay: AdamW's, left out for biases, norms and everything else of one dimension.
        new_module_factor: Times the rate for the losses' own parameters, which start from nothing.
        warmup_epochs: The rate rises linearly from a tenth over these, then falls to 0 along a cosine, by step.
        max_norm: Longest the gradient may be; None for no clipping.

    Raises:
        ValueError: A setting is out of range, a name is unknown, or nothing would train.

    Example:
        >>> import torch
        >>> from promptreid import PromptedCLIP, load_clip
        >>> from promptreid.losses.contrastive import ContrastiveLoss
        >>> model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
        >>> stage = Stage("prompts only", model, trains=["prompts"], losses={"contrastive": ContrastiveLoss()})
        >>> stage.prepare()
        >>> optimizer = stage.optimizer()
        >>> sorted(stage.losses(torch.randn(4, 128), torch.randn(4, 128), torch.arange(4)))
        ['contrastive', 'total']

    Source:
        Two-stage use: arXiv 2401.02173. The times-five rate of new modules and warm-up from a tenth: IRRA, arXiv
        2303.12501.
    """

    def __init__(
        self,
        name: str,
        model: PromptedCLIP,
        *,
        trains: Sequence[Part],
        losses: Mapping[str, nn.Module],
        weights: Mapping[str, float] | None = None,
        epochs: int = 1,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        new_module_factor: float = 5.0,
        warmup_epochs: float = 0.0,
        max_norm: float | None = 1.0,
    ) -> None:
        self.name = name
        self.model = model
        self.trains = tuple(trains)
        self.loss_modules = nn.ModuleDict(dict(losses))
        self.weights = dict.fromkeys(losses, 1.0) | dict(weights or {})
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.new_module_factor = new_module_factor
        self.warmup_epochs = warmup_epochs
        self.max_norm = max_norm
        self._check_names()
        self._check_numbers()
        if not self.parameters():
            raise ValueError(
                f"stage {name!r} has nothing to train: trains={list(self.trains)}, and these parts have no parameters; "
                "give prompts a length of at least 1, or name a part that has some"
            )

    def prepare(self) -> None:
        """Let exactly this stage's parameters take gradients; what is frozen goes to eval mode, the rest to train."""
        self.model.requires_grad_(False).eval()
        for module in self._modules():
            module.train()
        self.loss_modules.to(next(self.model.parameters()).device).train()
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """What trains: the model's share, then the losses' own."""
        return [parameter for _, parameter in self._named_model_parameters()] + list(self.loss_modules.parameters())

    def optimizer(self) -> Optimizer:
        """AdamW over at most four groups: the model's and the losses' parameters, with and without weight decay.

        Call `prepare` first: it moves the losses to the model's device.
        """
        model = [parameter for _, parameter in self._named_model_parameters()]
        new = list(self.loss_modules.parameters())
        groups: list[dict[str, Any]] = []
        for parameters, factor in ((model, 1.0), (new, self.new_module_factor)):
            for decays in (True, False):
                chosen = [parameter for parameter in parameters if (parameter.ndim > 1) == decays]
                decay = self.weight_decay if decays else 0.0
                if chosen:
                    groups.append({"params": chosen, "lr": self.learning_rate * factor, "weight_decay": decay})
        return AdamW(groups, lr=self.learning_rate)

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        """Warm-up and cosine over the stage; call its `step` after every step of the optimiser."""
        total, warmup = self.epochs * steps_per_epoch, round(self.warmup_epochs * steps_per_epoch)
        return LambdaLR(optimizer, lambda step: rate_factor(step, total=total, warmup=warmup))

    def losses(self, image_features: Tensor, text_features: Tensor, person_ids: Tensor) -> dict[str, Tensor]:
        """Every loss of a batch by name, unweighted, and `"total"`, their weighted sum, to call `backward` on.

        Shape:
            - image_features, text_features: (B, E), not normalised; person_ids: (B,) int64 labels
        """
        values: dict[str, Tensor] = {
            name: module(image_features, text_features, person_ids) for name, module in self.loss_modules.items()
        }
        total = sum((self.weights[name] * value for name, value in values.items()), start=image_features.new_zeros(()))
        return {**values, "total": total}

    def settings(self) -> dict[str, Any]:
        """What a run must have in common with a checkpoint to go on from it, as JSON holds it."""
        return {
            "name": self.name,
            "trains": list(self.trains),
            "losses": {name: repr(module) for name, module in self.loss_modules.items()},
            "weights": self.weights,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "new_module_factor": self.new_module_factor,
            "warmup_epochs": self.warmup_epochs,
            "max_norm": self.max_norm,
        }

    def _modules(self) -> Iterator[nn.Module]:
        if "encoders" in self.trains:
            yield self.model.clip
        if {"prompts", "image_prompts"} & set(self.trains):
            yield self.model.vision.prompts
        if {"prompts", "text_prompts"} & set(self.trains):
            yield self.model.text.prompts

    def _named_model_parameters(self) -> list[tuple[str, nn.Parameter]]:
        # The model's own logit scale and bias have no part in our losses; left trainable they would never get a
        # gradient, which DistributedDataParallel refuses.
        return [
            (name, parameter)
            for module in self._modules()
            for name, parameter in module.named_parameters()
            if name not in ("logit_scale", "logit_bias") and parameter.numel() > 0
        ]

    def _check_names(self) -> None:
        unknown = set(self.trains) - set(get_args(Part))
        if unknown:
            raise ValueError(f"stage {self.name!r} trains {sorted(unknown)}, expected some of {list(get_args(Part))}")
        if not self.loss_modules or "total" in self.loss_modules:
            raise ValueError(
                f"stage {self.name!r} has the losses {list(self.loss_modules)}, expected at least one, and none "
                "called total"
            )
        if set(self.weights) != set(self.loss_modules.keys()):
            raise ValueError(
                f"stage {self.name!r} has weights for {sorted(self.weights)} but the losses "
                f"{sorted(self.loss_modules)}; give a weight only for a loss that is there"
            )

    def _check_numbers(self) -> None:
        at_least_zero = {"weight_decay": self.weight_decay, "new_module_factor": self.new_module_factor}
        above_zero = {"learning_rate": self.learning_rate}
        if self.max_norm is not None:
            above_zero["max_norm"] = self.max_norm
        for name, value in (at_least_zero | above_zero | self.weights).items():
            if not (0 <= value < math.inf) or (value == 0 and name in above_zero):
                wanted = "above 0" if name in above_zero else "of at least 0"
                raise ValueError(f"{name} of stage {self.name!r} is {value}, expected a number {wanted}")
        if self.epochs < 1:
            raise ValueError(f"epochs of stage {self.name!r} is {self.epochs}, expected at least 1; or leave it out")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs of stage {self.name!r} is {self.warmup_epochs}, expected at least 0 and less than its "
                f"{self.epochs} epochs"
            )


def rate_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at a step: linear from 0.1 to 1 over `warmup`, then half a cosine to 0 at `total`."""
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
