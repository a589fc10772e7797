"""One stage of training: what trains, on which losses, at which rates."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.functional import check_labels
from promptreid.losses.self_consistency import FrozenFeatures
from promptreid.model.encoding import check_prompted
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.averaging import GaussianAverage
from promptreid.training.parameters import (
    LayerDepths,
    Trains,
    parameter_groups,
    part_parameters,
    set_modes,
    trained_names,
    trained_parameters,
)
from promptreid.training.run_identity import describe, repr_as_set
from promptreid.training.stage_losses import Losses, LossFunction, needs_of
from promptreid.values import check_choice, real_number, whole_number

STAGE_ONE, STAGE_TWO = "stage_one", "stage_two"  # what domain and task adaptation are called in folders and results

Algorithm = Literal["adamw", "adam", "sgd"]

_ABOVE_ZERO = ("learning_rate", "prompt_learning_rate", "layer_decay", "epsilon")

_NUMBERS = (*_ABOVE_ZERO, "weight_decay", "new_module_factor", "warmup_epochs")


class Stage:
    """A part of training with its own trainable parameters, losses and schedule; works in any loop.

    Args:
        name: Shown in progress bars and logs.
        model: The model to train.
        trains: Parts of the model that train: `"prompts"` (or `"image_prompts"`, `"text_prompts"`), `"encoders"`
            (or of them `"norms"`, `"projections"`), and parameters by the names that `model.named_parameters()`
            gives them. Or a function of name and parameter that says whether it trains: for LoRA
            `lambda name, _: "lora_" in name`. May be empty if a loss has its own parameters.
        losses: Modules or functions by name, ours or your own, each called with image features, text features and
            person ids. A loss with the attribute `needs = ("frozen",)` is called with `frozen=FrozenFeatures` too, the
            features without prompts; one with `"batch"` with `batch=`, this process's share of the batch as it was
            loaded. Their parameters belong to the stage: they train with it, are kept in its checkpoints and are never
            published. `stage.losses["mine"] = loss` adds one later.
        weights: Weights of the losses by name; 1 where not given.
        epochs: Passes over the training data.
        learning_rate: Peak rate.
        prompt_learning_rate: Peak rate of prompts where it differs, as where they train beside encoders.
        weight_decay: Left out for biases, norms and everything else of one dimension.
        new_module_factor: Multiplies the rate for the losses' own parameters, which start from nothing.
        layer_decay: Multiplies the rate once for each block further from the encoders' end; 1 for no decay.
        algorithm: `"adamw"`; `"adam"`, whose weight decay is an L2 penalty; or `"sgd"`, whose is too.
        betas: The algorithm's two decay rates; the first is the momentum of SGD, which has no second.
        epsilon: Added to the algorithm's denominator; SGD has none.
        warmup_epochs: Epochs in which the rate rises linearly from a tenth; then it falls to 0 along a cosine.
        max_norm: Longest the gradient may be; None for no clipping.
        average: Averages what trains in the model over the epochs; the stage then ends with that average.

    Attributes:
        trains: Parts and names of the parameters that train; what a function chose, by name.
        losses: The losses by name, to be called with a batch.
        weights: Their weights.

    Raises:
        ValueError: A setting is out of range, a name is unknown, no feature is computed from a parameter that is to
            train, nothing would train, or a loss needs frozen features where the encoders train.
        TypeError: `model` is not a `PromptedCLIP`, or a number is something else.

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
        trains: Trains,
        losses: Mapping[str, nn.Module | LossFunction],
        weights: Mapping[str, float] | None = None,
        epochs: int = 1,
        learning_rate: float = 1e-4,
        prompt_learning_rate: float | None = None,
        weight_decay: float = 0.0,
        new_module_factor: float = 5.0,
        layer_decay: float = 1.0,
        algorithm: Algorithm = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        warmup_epochs: float = 0.0,
        max_norm: float | None = 1.0,
        average: GaussianAverage | None = None,
    ) -> None:
        check_prompted(model)
        self.name = name
        self.model = model
        self.losses: Losses = Losses(losses)
        self.weights: dict[str, float] = self.losses.weights
        self.weights.update(weights or {})
        self.epochs: int = epochs
        self.learning_rate = learning_rate
        self.prompt_learning_rate: float = learning_rate if prompt_learning_rate is None else prompt_learning_rate
        self.weight_decay = weight_decay
        self.new_module_factor = new_module_factor
        self.layer_decay = layer_decay
        self.algorithm: Algorithm = algorithm
        self.betas: tuple[float, float] = betas
        self.epsilon = epsilon
        self.warmup_epochs = warmup_epochs
        self.max_norm = max_norm
        self.average = average
        self._make_plain()
        self._check_names()
        self._check_numbers()
        try:
            self.trains: tuple[str, ...] = trained_names(model, trains)
            self._own = trained_parameters(model, self.trains)
        except ValueError as error:
            raise ValueError(f"stage {name!r}: {error}") from error
        if not self.parameters():
            raise ValueError(
                f"stage {name!r} has nothing to train: trains={list(self.trains)}, and these parts have no parameters; "
                "give prompts a length of at least 1, or name a part that has some"
            )
        self._check_needs()

    def prepare(self) -> None:
        """Let exactly this stage's parameters take gradients; what is frozen goes to eval mode, the rest to train.

        So frozen dropout drops nothing and frozen BatchNorm keeps its statistics.

        Raises:
            ValueError: A loss that was added needs frozen features, but the encoders train.
        """
        self._check_needs()
        self.model.requires_grad_(False).eval()
        set_modes(self.model, self.trains)
        self.losses.to(next(self.model.parameters()).device).train()
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train: the model's, then the losses' own."""
        return [*self._own, *self.losses.parameters()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The model's parameters that train, by the model's names."""
        own = set(self._own)
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter in own]

    def optimizer(self, *, fused: bool = False) -> Optimizer:
        """The optimiser, with one group for each rate with weight decay and one without.

        Call `prepare` first: it moves the losses to the model's device.

        Args:
            fused: Step in one pass over the memory, if PyTorch can on the parameters' device; not for float16, whose
                scaler could then not say that it skipped a step.
        """
        groups = parameter_groups(self._rates(), weight_decay=self.weight_decay)
        if self.algorithm == "sgd":
            return SGD(groups, lr=self.learning_rate, momentum=self.betas[0])
        algorithm = {"adamw": AdamW, "adam": Adam}[self.algorithm]
        able = fused and all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters())
        return algorithm(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=able or None)

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        """Warm-up and cosine over the stage; call its `step` after every step of the optimiser."""
        total, warmup = self.epochs * steps_per_epoch, round(self.warmup_epochs * steps_per_epoch)
        return LambdaLR(optimizer, lambda step: rate_factor(step, total=total, warmup=warmup))

    @torch.no_grad()
    def frozen_features(self, images: Tensor, tokens: Tensor) -> FrozenFeatures:
        """Features of a batch without prompts, for losses that need them.

        They are computed for each batch: its images are augmented again every time, and kept text features of other
        batches would differ in their last bits, so that a run that is resumed would no longer end as it would have.
        """
        with self.model.disabled():
            out = self.model(images, tokens)
        return FrozenFeatures(out["image_features"], out["text_features"])

    def check_labels(self, person_ids: Tensor) -> None:
        """Refuse labels for which an identity loss of this stage has no output.

        On a GPU a label out of range would end the process without a message, so check before labels are moved there.

        Raises:
            ValueError: A label is out of range.
        """
        for name, loss in self.losses.items():
            if isinstance(loss, CrossModalIDLoss):
                try:
                    check_labels(person_ids, loss.num_identities)
                except ValueError as error:
                    raise ValueError(
                        f"train_data does not fit the loss {name!r} of stage {self.name!r}, made for num_identities="
                        f"{loss.num_identities}: {error}"
                    ) from error

    @property
    def loss_modules(self) -> nn.ModuleDict:
        """The losses as modules by name; the same object as `losses`."""
        return self.losses

    @property
    def trains_encoders(self) -> bool:
        """Whether anything but prompts trains in the model."""
        prompts = set(part_parameters(self.model, "prompts"))
        return any(parameter not in prompts for parameter in self._own)

    @property
    def loss_settings(self) -> dict[str, Any]:
        """The losses' own settings by name, without what training changed in them."""
        return {name: describe(loss) for name, loss in self.losses.items()}

    def settings(self) -> dict[str, Any]:
        """The settings that must match a checkpoint's to resume from it, for JSON."""
        return {
            "name": self.name,
            "trains": list(self.trains),
            "losses": {name: repr_as_set(module) for name, module in self.losses.items()},
            "weights": {name: float(weight) for name, weight in self.weights.items()},
            "algorithm": self.algorithm,
            "betas": list(self.betas),
            "max_norm": self.max_norm,
            "average": None if self.average is None else self.average.settings(),
            **{name: getattr(self, name) for name in (*_NUMBERS, "epochs")},
        }

    def _rates(self) -> Iterator[tuple[nn.Parameter, float]]:
        prompts = set(part_parameters(self.model, "prompts"))
        depths = LayerDepths(self.model) if self.layer_decay != 1 else None
        for parameter in self._own:
            distance = None if depths is None else depths.distance_from_end(parameter)
            rate = self.prompt_learning_rate if parameter in prompts else self.learning_rate
            yield parameter, rate * self.layer_decay ** (distance or 0)
        for parameter in self.losses.parameters():
            yield parameter, self.learning_rate * self.new_module_factor

    def _check_names(self) -> None:
        if not self.losses:
            raise ValueError(f"stage {self.name!r} has no losses, expected at least one")
        if set(self.weights) != set(self.losses.keys()):
            raise ValueError(
                f"stage {self.name!r} has weights for {sorted(self.weights)} but the losses "
                f"{sorted(self.losses)}; give a weight only for a loss that is there"
            )
        if not any(self.weights.values()):
            raise ValueError(f"stage {self.name!r} has the weights {self.weights}, expected at least one above 0")
        check_choice(f"algorithm of stage {self.name!r}", self.algorithm, get_args(Algorithm))

    def _check_needs(self) -> None:
        names = [name for name, loss in self.losses.items() if "frozen" in needs_of(loss)]
        if names and self.trains_encoders:
            raise ValueError(
                f"the loss {names[0]!r} of stage {self.name!r} needs frozen features, but the encoders train in this "
                'stage; use it in one with trains=["prompts"], or keep a frozen copy of the model in the loss'
            )

    def _make_plain(self) -> None:
        stage = f"of stage {self.name!r}"
        self.epochs = whole_number(f"epochs {stage}", self.epochs, minimum=1)
        for name in _NUMBERS:
            setattr(self, name, real_number(f"{name} {stage}", getattr(self, name)))
        for name, weight in self.weights.items():
            self.weights[name] = real_number(f"weight of {name} {stage}", weight)
        if self.max_norm is not None:
            self.max_norm = real_number(f"max_norm {stage}", self.max_norm)
        try:
            first, second = self.betas
        except (TypeError, ValueError):
            raise TypeError(f"betas {stage} is {self.betas!r}, expected two numbers, such as (0.9, 0.999)") from None
        self.betas = real_number(f"betas {stage}", first), real_number(f"betas {stage}", second)

    def _check_numbers(self) -> None:
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        weights = {f"weight of {name}": weight for name, weight in self.weights.items()}
        for name, value in (numbers | weights).items():
            if not 0 <= value < math.inf or (value == 0 and name in _ABOVE_ZERO):
                wanted = "above 0" if name in _ABOVE_ZERO else "of at least 0"
                raise ValueError(f"{name} of stage {self.name!r} is {value}, expected a number {wanted}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm of stage {self.name!r} is {self.max_norm}, expected a number above 0, or None")
        if self.layer_decay > 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"layer_decay of stage {self.name!r} is {self.layer_decay} and betas {self.betas}; expected a "
                "layer_decay of at most 1 and betas below 1"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs of stage {self.name!r} is {self.warmup_epochs}, expected at least 0 and less than its "
                f"{self.epochs} epochs"
            )


def as_stages(stages: Any) -> list[Stage]:
    """One stage or several as a list.

    Raises:
        TypeError: It is something else.
    """
    found: list[Any] = [stages] if isinstance(stages, Stage) or not isinstance(stages, Iterable) else [*stages]
    if odd := [type(stage).__name__ for stage in found if not isinstance(stage, Stage)]:
        raise TypeError(f"stages is or holds {odd[0]}, expected a Stage or several, such as a TwoStageSchedule")
    return found


def rate_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at a step: linear from 0.1 to 1 over `warmup`, then half a cosine to 0 at `total`."""
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
