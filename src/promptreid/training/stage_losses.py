"""The losses of a stage: added up by weight, and told what they need beyond a batch's features."""

from collections.abc import Callable, Mapping
from itertools import takewhile
from types import BuiltinFunctionType
from typing import Any, Literal, get_args

from torch import Tensor, nn

from promptreid.losses.self_consistency import FrozenFeatures

LossFunction = Callable[..., Tensor]

Need = Literal["frozen", "batch"]  # what a loss may ask for in its attribute `needs`, and is then called with by name


class Losses(nn.ModuleDict):
    """A stage's losses by name; called with a batch, it gives each one and `"total"`, their weighted sum.

    Add your own loss as to a dictionary, before the `Trainer` or the optimiser is made: a module, or a
    function of image features, text features and person ids. Its weight is 1 unless `weights` says another.

    What a loss holds when a trainer is made is a setting of its run, but for what an earlier trainer changed in it,
    such as the steps that it counts: that is taken as if nothing had trained yet.

    Args:
        losses: Modules or functions by name.

    Attributes:
        weights: Weight of each loss in the total.

    Shape:
        - image_features, text_features: (B, E), not normalised; person_ids: (B,) int64 labels
        - returns: () each

    Example:
        >>> import torch
        >>> losses = Losses({"lengths": lambda images, texts, ids: (images.norm() - texts.norm()).square()})
        >>> losses["ones"] = lambda images, texts, ids: images.new_ones(())
        >>> losses.weights["ones"] = 0.5
        >>> losses(torch.eye(2), torch.eye(2), torch.arange(2))["total"]
        tensor(0.5000)
    """

    def __init__(self, losses: Mapping[str, nn.Module | LossFunction]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        for name, loss in losses.items():
            self[name] = loss

    def __setitem__(self, name: str, loss: nn.Module | LossFunction) -> None:
        """Add or replace a loss.

        Raises:
            ValueError: It is called `"total"`, or needs what there is not.
            TypeError: It is neither a module nor a function.
        """
        if name == "total":
            raise ValueError('a loss is called "total", which is the name of their sum; give it another name')
        if not callable(loss):
            raise TypeError(
                f"the loss {name!r} is {type(loss).__name__}, expected a module or a function of image features, text "
                "features and person ids"
            )
        needs = needs_of(loss)
        if isinstance(needs, str) or set(needs) - {*get_args(Need)}:
            raise ValueError(
                f"the loss {name!r} has needs={needs!r}, expected a tuple of some of {', '.join(get_args(Need))}"
            )
        super().__setitem__(name, loss if isinstance(loss, nn.Module) else _FunctionLoss(loss))
        self.weights.setdefault(name, 1.0)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self.weights[name]

    @property
    def needs(self) -> frozenset[Need]:
        """The further inputs that the losses need."""
        return frozenset(need for loss in self.values() for need in needs_of(loss))

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        person_ids: Tensor,
        *,
        frozen: FrozenFeatures | None = None,
        batch: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Every loss of a batch by name, unweighted, and `"total"`, to call `backward` on.

        Args:
            image_features: Of the whole batch.
            text_features: Of the whole batch.
            person_ids: Labels.
            frozen: What `Stage.frozen_features` returned, where `"frozen"` is in `needs`.
            batch: The batch as it was loaded, where `"batch"` is in `needs`.

        Raises:
            ValueError: A loss needs something that was not given.
            TypeError: A loss returned something else than a tensor ().
        """
        given: dict[str, Any] = {"frozen": frozen, "batch": batch}
        if missing := [need for need in sorted(self.needs) if given[need] is None]:
            source = {"frozen": "stage.frozen_features(images, tokens)", "batch": "batch"}[missing[0]]
            raise ValueError(f"a loss needs {missing[0]}; call stage.losses(…, {missing[0]}={source})")
        values: dict[str, Tensor] = {
            name: module(image_features, text_features, person_ids, **{need: given[need] for need in needs_of(module)})
            for name, module in self.items()
        }
        for name, value in values.items():
            _check_value(name, value)
        total = sum((self.weights[name] * value for name, value in values.items()), start=image_features.new_zeros(()))
        return {**values, "total": total}


def _check_value(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim:
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"the loss {name!r} returned {found}, expected a tensor (), such as a mean over the batch")


# Packages whose losses change nothing but buffers and temperatures when called; the last wraps a loss that is compiled.
_UNCHANGING = ("promptreid.", "torch.nn.", "torch._dynamo.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def may_change_themselves(losses: Losses) -> bool:
    """Whether a loss runs code of somebody else's, which could change anything: a class, function or hook."""
    return any(map(_is_foreign, losses.modules()))


def _is_foreign(part: nn.Module) -> bool:
    classes = takewhile(lambda base: base is not nn.Module, type(part).__mro__)  # one that is parametrised is derived
    held = (value for value in vars(part).values() if callable(value))
    functions = (value for value in held if not isinstance(value, BuiltinFunctionType))  # as many of torch's are
    known = all(str(getattr(code, "__module__", "")).startswith(_UNCHANGING) for code in (*classes, *functions))
    return not known or any(vars(part)[hooks] for hooks in _HOOKS)


def needs_of(loss: Any) -> tuple[Need, ...]:
    """The further inputs that a loss asks for by name."""
    return getattr(loss, "needs", ())


class _FunctionLoss(nn.Module):
    """A function as a module, so that all losses are kept and compared in one way."""

    def __init__(self, function: LossFunction) -> None:
        super().__init__()
        self.function = function

    @property
    def needs(self) -> tuple[Need, ...]:
        """The further inputs that the function needs."""
        return needs_of(self.function)

    def forward(self, *features: Tensor, **more: Any) -> Tensor:
        """The function's value."""
        return self.function(*features, **more)

    def extra_repr(self) -> str:
        """The function's name, as other settings of a stage are kept."""
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))
