"""The schedule of Prompt Decoupling."""

from collections.abc import Sequence
from typing import overload

from promptreid.encoders.clip import PromptedCLIP
from promptreid.losses.functional import SamePerson
from promptreid.training.recipe import Recipe
from promptreid.training.stages import Stage


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
