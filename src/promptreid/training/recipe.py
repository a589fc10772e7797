"""The numbers of Prompt Decoupling, and the stages they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

from torch import nn

from promptreid.losses.contrastive import ContrastiveLoss, SDMLoss
from promptreid.losses.cross_modal_id import Classifier, CrossModalIDLoss
from promptreid.losses.functional import SamePerson, Similarity
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.parameters import Part
from promptreid.training.stage import Stage

Matching = Literal["contrastive", "sdm"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number of the two stages, so that schedules that are compared differ in their stages alone.

    Rates, epochs and the rest are our own choice where the paper gives none.

    Args:
        num_identities: C, persons in the training split.
        stage_one_epochs: Passes of domain adaptation.
        stage_two_epochs: Passes of task adaptation.
        stage_one_learning_rate: Peak rate of the prompts.
        stage_two_learning_rate: Peak rate of the encoders.
        matching: What pulls pairs together: `"contrastive"`, or `"sdm"` as an alternative.
        temperature: The matching loss's.
        learnable_temperature: Let it train.
        same_person: What the contrastive loss makes of other pairs of the same person.
        similarity: The contrastive loss's; the dot product is an ablation.
        identity_weight: Weight of the identity loss in stage 2; 0 leaves it out.
        label_smoothing: The identity loss's.
        classifier: The identity loss's.
        cross_modal_projection: The identity loss's.
        weight_decay: In stage 2.
        layer_decay: In stage 2.
        warmup_share: Share of each stage's epochs in which the rate rises.
        max_norm: Longest the gradient may be; None for no clipping.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> from promptreid import PromptedCLIP, load_clip
        >>> model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
        >>> Recipe(num_identities=100).domain_adaptation(model).trains
        ('prompts',)

    Source:
        Li et al. 2024, Prompt Decoupling, arXiv 2401.02173; temperature: IRRA, arXiv 2303.12501.
    """

    num_identities: int
    stage_one_epochs: int = 30
    stage_two_epochs: int = 60
    stage_one_learning_rate: float = 3e-4
    stage_two_learning_rate: float = 1e-5
    matching: Matching = "contrastive"
    temperature: float = 0.02
    learnable_temperature: bool = False
    same_person: SamePerson = "ignored"
    similarity: Similarity = "cosine"
    identity_weight: float = 1.0
    label_smoothing: float = 0.0
    classifier: Classifier = "linear"
    cross_modal_projection: bool = False
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    warmup_share: float = 1 / 12
    max_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.num_identities < 2:
            raise ValueError(f"num_identities is {self.num_identities}; telling persons apart needs at least 2")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share is {self.warmup_share}, expected 0 <= warmup_share < 1")
        if not 0 <= self.identity_weight < math.inf:
            raise ValueError(f"identity_weight is {self.identity_weight}, expected a number of at least 0")
        if self.matching not in get_args(Matching):
            raise ValueError(f'matching is {self.matching!r}, expected "contrastive" or "sdm"')

    def matching_loss(self) -> nn.Module:
        """A fresh loss that pulls pairs together."""
        if self.matching == "sdm":
            return SDMLoss(self.temperature, learnable_temperature=self.learnable_temperature)
        return ContrastiveLoss(
            self.temperature,
            same_person=self.same_person,
            learnable_temperature=self.learnable_temperature,
            similarity=self.similarity,
        )

    def identity_loss(self, model: PromptedCLIP) -> CrossModalIDLoss:
        """A fresh identity loss with its head."""
        return CrossModalIDLoss(
            self.num_identities,
            model.embed_dim,
            label_smoothing=self.label_smoothing,
            classifier=self.classifier,
            cross_modal_projection=self.cross_modal_projection,
        )

    def domain_adaptation(self, model: PromptedCLIP, *, trains: Sequence[Part] = ("prompts",)) -> Stage:
        """Stage 1: the matching loss alone, at the rate of prompts and without weight decay."""
        return Stage(
            "domain_adaptation",
            model,
            trains=trains,
            losses={self.matching: self.matching_loss()},
            epochs=self.stage_one_epochs,
            learning_rate=self.stage_one_learning_rate,
            warmup_epochs=self.warmup_share * self.stage_one_epochs,
            max_norm=self.max_norm,
        )

    def task_adaptation(
        self,
        model: PromptedCLIP,
        *,
        trains: Sequence[Part] = ("encoders",),
        identity: CrossModalIDLoss | None = None,
        name: str = "task_adaptation",
    ) -> Stage:
        """Stage 2: the matching and the identity loss; `identity` goes on with a head that exists already."""
        losses = {self.matching: self.matching_loss()}
        if self.identity_weight:
            losses["identity"] = identity or self.identity_loss(model)
        return Stage(
            name,
            model,
            trains=trains,
            losses=losses,
            weights={"identity": self.identity_weight} if self.identity_weight else None,
            epochs=self.stage_two_epochs,
            learning_rate=self.stage_two_learning_rate,
            prompt_learning_rate=self.stage_one_learning_rate,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            warmup_epochs=self.warmup_share * self.stage_two_epochs,
            max_norm=self.max_norm,
        )


class TwoStageSchedule(Sequence[Stage]):
    """First domain adaptation (prompts learn, encoders frozen), then task adaptation (the other way round).

    Stage 1 minimises the contrastive loss; stage 2 the contrastive loss and the cross-modal identity loss. Rates,
    epochs and the rest are our own choice where the paper gives none.

    Args:
        model: The model to train.
        num_identities: C, persons in the training split.
        stage_one_epochs: Passes of stage 1; 0 leaves it out, which is plain fine-tuning.
        stage_two_epochs: Passes of stage 2; 0 leaves it out, which is prompt tuning alone.
        stage_one_learning_rate: Peak rate of the prompts.
        stage_two_learning_rate: Peak rate of the encoders.
        temperature: The contrastive loss's, fixed.
        same_person: What the contrastive loss makes of other pairs of the same person in a batch.
        identity_weight: Weight of the identity loss in stage 2; 0 leaves it out.
        label_smoothing: The identity loss's.
        weight_decay: AdamW's, in stage 2.
        warmup_share: Share of each stage's epochs in which the rate rises.
        max_norm: Longest the gradient may be; None for no clipping.

    Raises:
        ValueError: Both stages are left out, a stage has nothing to train, or a setting is out of range.

    Example:
        >>> from promptreid import PromptedCLIP, load_clip
        >>> model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
        >>> [stage.name for stage in TwoStageSchedule(model, num_identities=100)]
        ['domain_adaptation', 'task_adaptation']

    Source:
        Li et al. 2024, Prompt Decoupling, arXiv 2401.02173.
    """

    def __init__(
        self,
        model: PromptedCLIP,
        *,
        num_identities: int,
        stage_one_epochs: int = 30,
        stage_two_epochs: int = 60,
        stage_one_learning_rate: float = 3e-4,
        stage_two_learning_rate: float = 1e-5,
        temperature: float = 0.02,
        same_person: SamePerson = "ignored",
        identity_weight: float = 1.0,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.01,
        warmup_share: float = 1 / 12,
        max_norm: float | None = 1.0,
    ) -> None:
        recipe = Recipe(
            num_identities=num_identities,
            stage_one_epochs=stage_one_epochs,
            stage_two_epochs=stage_two_epochs,
            stage_one_learning_rate=stage_one_learning_rate,
            stage_two_learning_rate=stage_two_learning_rate,
            temperature=temperature,
            same_person=same_person,
            identity_weight=identity_weight,
            label_smoothing=label_smoothing,
            weight_decay=weight_decay,
            warmup_share=warmup_share,
            max_norm=max_norm,
        )
        self._stages = _stages(model, recipe)

    @classmethod
    def from_recipe(cls, model: PromptedCLIP, recipe: Recipe) -> "TwoStageSchedule":
        """The schedule of a recipe, which has more settings than fit above.

        Example:
            >>> from promptreid import PromptedCLIP, load_clip
            >>> model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
            >>> schedule = TwoStageSchedule.from_recipe(model, Recipe(num_identities=100, matching="sdm"))
            >>> list(schedule[1].loss_modules)
            ['sdm', 'identity']
        """
        schedule = cls.__new__(cls)
        schedule._stages = _stages(model, recipe)
        return schedule

    @overload
    def __getitem__(self, index: int) -> Stage: ...

    @overload
    def __getitem__(self, index: slice) -> list[Stage]: ...

    def __getitem__(self, index: int | slice) -> Stage | list[Stage]:
        return self._stages[index]

    def __len__(self) -> int:
        return len(self._stages)


def _stages(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    one, two = recipe.stage_one_epochs, recipe.stage_two_epochs
    if min(one, two) < 0 or one == two == 0:
        raise ValueError(
            f"stage_one_epochs is {one} and stage_two_epochs {two}: nothing to train; give at least one epoch to at "
            "least one stage"
        )
    stages = [recipe.domain_adaptation(model)] if one else []
    return [*stages, recipe.task_adaptation(model)] if two else stages
