"""The numbers of Prompt Decoupling, and the stages they make."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, overload

from torch import nn

from promptreid.losses.contrastive import ContrastiveLoss, NITCLoss, SDMLoss
from promptreid.losses.cross_modal_id import Classifier, CrossModalIDLoss
from promptreid.losses.functional import SamePerson, Similarity
from promptreid.losses.self_consistency import SelfConsistencyLoss
from promptreid.model.encoding import check_prompted
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.averaging import GaussianAverage
from promptreid.training.parameters import Trains
from promptreid.training.stage import STAGE_ONE, STAGE_TWO, Algorithm, Stage
from promptreid.values import check_choice, optional_whole_number, real_number, shown, whole_number

Matching = Literal["contrastive", "sdm", "nitc"]


_NUMBERS = (
    "stage_one_learning_rate", "stage_two_learning_rate", "temperature", "self_consistency", "identity_weight",
    "label_smoothing", "weight_decay", "layer_decay", "warmup_share", "epsilon",
)  # fmt: skip


def _number(name: str, value: Any) -> int | float:
    """A plain number; an integer stays one, since a run that is resumed is compared by how its losses are written."""
    number = real_number(name, value)
    with suppress(TypeError):
        return whole_number(name, value)
    return number


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of the two stages, so that schedules that are compared differ only in their stages.

    Rates, epochs and the rest are our own choice where the paper gives none.

    Args:
        num_identities: C, persons in the training split; `adapt` fills it in from the data.
        stage_one_epochs: Passes of domain adaptation; 0 leaves stage 1 out, which is plain fine-tuning.
        stage_two_epochs: Passes of task adaptation; 0 leaves stage 2 out: only prompt tuning.
        stage_one_learning_rate: Peak rate of the prompts.
        stage_two_learning_rate: Peak rate of the encoders.
        matching: What pulls pairs together: `"contrastive"`, or `"sdm"` or `"nitc"` as an alternative.
        temperature: Temperature of the matching loss.
        learnable_temperature: Let it train.
        same_person: How the contrastive loss treats other pairs of the same person in a batch.
        similarity: Similarity of the contrastive loss; the dot product is an ablation.
        self_consistency: Weight of PromptSRC's loss in stage 1, which holds prompted features near the frozen ones; 1
            for its published setting, 0 leaves it out.
        average_prompts: End stage 1 with the Gaussian-weighted average of its epochs, as PromptSRC does.
        identity_weight: Weight of the identity loss in stage 2; 0 leaves it out.
        label_smoothing: Label smoothing of the identity loss.
        classifier: Classifier of the identity loss.
        cross_modal_projection: Whether the identity loss classifies projections.
        weight_decay: The optimiser's, in stage 2.
        layer_decay: Layer decay of the rate in stage 2.
        warmup_share: Share of each stage's epochs in which the rate rises.
        max_norm: Longest the gradient may be; None for no clipping.
        algorithm: The optimiser of both stages: `"adamw"`, `"adam"` or `"sgd"`, as of `Stage`.
        betas: Its two decay rates.
        epsilon: Added to its denominator.

    Raises:
        ValueError: A setting is out of range; those of losses and optimisers are refused when a stage is made.
        TypeError: A count is not a whole number, or another setting no number.

    Example:
        >>> from promptreid import PromptedCLIP, load_clip
        >>> model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
        >>> Recipe(num_identities=100).domain_adaptation(model).trains
        ('prompts',)

    Source:
        Li et al. 2024, Prompt Decoupling, arXiv 2401.02173; temperature: IRRA, arXiv 2303.12501; self-consistency
        and averaged prompts: Khattak et al. 2023, PromptSRC, arXiv 2307.06948.
    """

    # The paper's rates and epochs are not known to us: these are our own choice, near those of CSKT and IRRA.
    num_identities: int | None = None
    stage_one_epochs: int = 30
    stage_two_epochs: int = 60
    stage_one_learning_rate: float = 3e-4
    stage_two_learning_rate: float = 1e-5
    matching: Matching = "contrastive"
    temperature: float = 0.02
    learnable_temperature: bool = False
    same_person: SamePerson = "ignored"
    similarity: Similarity = "cosine"
    self_consistency: float = 0.0
    average_prompts: bool = False
    identity_weight: float = 1.0
    label_smoothing: float = 0.0
    classifier: Classifier = "linear"
    cross_modal_projection: bool = False
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    warmup_share: float = 1 / 12
    max_norm: float | None = 1.0
    algorithm: Algorithm = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_identities", optional_whole_number("num_identities", self.num_identities))
        for name in ("stage_one_epochs", "stage_two_epochs"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), minimum=0))
        for name in _NUMBERS:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.max_norm is not None:
            object.__setattr__(self, "max_norm", _number("max_norm", self.max_norm))
        try:
            first, second = self.betas
        except (TypeError, ValueError):
            raise TypeError(f"betas is {shown(self.betas)}, expected two numbers, such as (0.9, 0.999)") from None
        object.__setattr__(self, "betas", (_number("betas", first), _number("betas", second)))
        if self.num_identities is not None and self.num_identities < 2:
            raise ValueError(f"num_identities is {self.num_identities}; telling persons apart needs at least 2")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share is {self.warmup_share}, expected 0 <= warmup_share < 1")
        for name in ("identity_weight", "self_consistency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number of at least 0")
        check_choice("matching", self.matching, get_args(Matching))

    def with_stages(
        self, *, epochs: Sequence[int] | None = None, learning_rates: Sequence[float] | None = None
    ) -> "Recipe":
        """A copy with other epochs and peak rates of stage 1 and stage 2; what is None stays as it is.

        Example:
            >>> Recipe().with_stages(epochs=(1, 2)).stage_two_epochs
            2
        """
        changes: dict[str, Any] = {}
        if epochs:
            changes["stage_one_epochs"], changes["stage_two_epochs"] = epochs
        if learning_rates:
            changes["stage_one_learning_rate"], changes["stage_two_learning_rate"] = learning_rates
        return replace(self, **changes)

    def matching_loss(self) -> nn.Module:
        """A new loss that pulls pairs together."""
        if self.matching != "contrastive":
            loss = {"sdm": SDMLoss, "nitc": NITCLoss}[self.matching]
            return loss(self.temperature, learnable_temperature=self.learnable_temperature)
        return ContrastiveLoss(
            self.temperature,
            same_person=self.same_person,
            learnable_temperature=self.learnable_temperature,
            similarity=self.similarity,
        )

    def identity_loss(self, model: PromptedCLIP) -> CrossModalIDLoss:
        """A new identity loss with its head.

        Raises:
            ValueError: `num_identities` is not known.
        """
        if self.num_identities is None:
            raise ValueError(
                "the identity loss needs num_identities, the number of persons in the training split; "
                "data.train.num_identities counts them"
            )
        return CrossModalIDLoss(
            self.num_identities,
            model.embed_dim,
            label_smoothing=self.label_smoothing,
            classifier=self.classifier,
            cross_modal_projection=self.cross_modal_projection,
        )

    def stage(self, name: str, model: PromptedCLIP, *, epochs: int, **settings: Any) -> Stage:
        """Your own stage with the recipe's warm-up, optimiser and clipping; `settings` are those of `Stage`."""
        own: dict[str, Any] = {name: getattr(self, name) for name in ("max_norm", "algorithm", "betas", "epsilon")}
        own["warmup_epochs"] = self.warmup_share * epochs
        return Stage(name, model, epochs=epochs, **{**own, **settings})

    def domain_adaptation(
        self,
        model: PromptedCLIP,
        *,
        trains: Trains = ("prompts",),
        losses: Mapping[str, nn.Module] | None = None,
    ) -> Stage:
        """Stage 1: the matching loss, and self-consistency if it has a weight, without weight decay.

        Args:
            model: The model to train.
            trains: What of it trains, as for `Stage`.
            losses: Losses beside the stage's own, by name; each has the weight 1.
        """
        named = {self.matching: self.matching_loss(), **(losses or {})}
        if self.self_consistency:
            named["self_consistency"] = SelfConsistencyLoss(temperature=self.temperature)
        return self.stage(
            STAGE_ONE,
            model,
            trains=trains,
            losses=named,
            weights={"self_consistency": self.self_consistency} if self.self_consistency else None,
            epochs=self.stage_one_epochs,
            learning_rate=self.stage_one_learning_rate,
            average=GaussianAverage() if self.average_prompts else None,
        )

    def task_adaptation(
        self,
        model: PromptedCLIP,
        *,
        trains: Trains = ("encoders",),
        losses: Mapping[str, nn.Module] | None = None,
        name: str = STAGE_TWO,
    ) -> Stage:
        """Stage 2: the matching loss and, unless its weight is 0, the identity loss.

        Args:
            model: The model to train.
            trains: What of it trains, as for `Stage`.
            losses: Losses beside the stage's own, by name, each of weight 1; `"identity"` takes the place of a new
                identity loss, as to continue with a head that exists already.
            name: Name of the stage.
        """
        named = {self.matching: self.matching_loss(), **(losses or {})}
        if self.identity_weight and "identity" not in named:
            named["identity"] = self.identity_loss(model)
        return self.stage(
            name,
            model,
            trains=trains,
            losses=named,
            weights={"identity": self.identity_weight} if self.identity_weight else None,
            epochs=self.stage_two_epochs,
            learning_rate=self.stage_two_learning_rate,
            prompt_learning_rate=self.stage_one_learning_rate,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
        )


class TwoStageSchedule(Sequence[Stage]):
    """First domain adaptation (prompts learn, encoders frozen), then task adaptation (the other way round).

    Stage 1 minimises the contrastive loss; stage 2 the contrastive loss and the cross-modal identity loss.

    Args:
        model: The model to train.
        recipe: The numbers of both stages; those of `Recipe()` if None.
        **options: Settings of `Recipe` by name, which replace those of `recipe`; `num_identities` is needed in one
            of the two unless there is no identity loss.

    Raises:
        ValueError: Both stages are left out, a stage has nothing to train, or a setting is out of range.
        TypeError: An option is unknown, or `model` or `recipe` is something else.

    Example:
        >>> from promptreid import PromptedCLIP, load_clip
        >>> model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
        >>> [stage.name for stage in TwoStageSchedule(model, num_identities=100, stage_one_epochs=5)]
        ['stage_one', 'stage_two']
        >>> schedule = TwoStageSchedule(model, Recipe(num_identities=100, matching="sdm"))
        >>> list(schedule.stage_two.losses)
        ['sdm', 'identity']

    Source:
        Li et al. 2024, Prompt Decoupling, arXiv 2401.02173.
    """

    def __init__(self, model: PromptedCLIP, recipe: Recipe | None = None, **options: Any) -> None:
        check_prompted(model)
        if recipe is not None and not isinstance(recipe, Recipe):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"recipe is {recipe!r}, expected a Recipe; or name the setting: num_identities=…")
        recipe = replace(recipe or Recipe(), **options)
        one, two = recipe.stage_one_epochs, recipe.stage_two_epochs
        if min(one, two) < 0 or one == two == 0:
            raise ValueError(
                f"stage_one_epochs is {one} and stage_two_epochs {two}: nothing to train; give at least one epoch to "
                "at least one stage"
            )
        self._stages: list[Stage] = [recipe.domain_adaptation(model)] if one else []
        if two:
            self._stages.append(recipe.task_adaptation(model))

    @property
    def stage_one(self) -> Stage:
        """Domain adaptation.

        Raises:
            LookupError: It is left out, as its epochs are 0.
        """
        return self._named(STAGE_ONE)

    @property
    def stage_two(self) -> Stage:
        """Task adaptation.

        Raises:
            LookupError: It is left out, as its epochs are 0.
        """
        return self._named(STAGE_TWO)

    def _named(self, name: str) -> Stage:
        for stage in self._stages:
            if stage.name == name:
                return stage
        raise LookupError(f"this schedule has no {name}: {name}_epochs is 0")

    @overload
    def __getitem__(self, index: int) -> Stage: ...

    @overload
    def __getitem__(self, index: slice) -> list[Stage]: ...

    def __getitem__(self, index: int | slice) -> Stage | list[Stage]:
        return self._stages[index]

    def __len__(self) -> int:
        return len(self._stages)
