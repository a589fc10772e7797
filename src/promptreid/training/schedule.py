"""The schedule of Prompt Decoupling."""

from collections.abc import Sequence
from typing import overload

from promptreid.encoders.clip import PromptedCLIP
from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
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
        identity_weight: float = 1.0,
        label_smoothing: float = 0.0,
        weight_decay: float = 0.01,
        warmup_share: float = 1 / 12,
        max_norm: float | None = 1.0,
    ) -> None:
        if min(stage_one_epochs, stage_two_epochs) < 0 or stage_one_epochs == stage_two_epochs == 0:
            raise ValueError(
                f"stage_one_epochs is {stage_one_epochs} and stage_two_epochs {stage_two_epochs}: nothing to train; "
                "give at least one epoch to at least one stage"
            )
        if not 0 <= warmup_share < 1:
            raise ValueError(f"warmup_share is {warmup_share}, expected 0 <= warmup_share < 1")
        identity = CrossModalIDLoss(num_identities, model.embed_dim, label_smoothing=label_smoothing)
        self._stages: list[Stage] = []
        if stage_one_epochs:
            self._stages.append(
                Stage(
                    "domain_adaptation",
                    model,
                    trains=["prompts"],
                    losses={"contrastive": ContrastiveLoss(temperature)},
                    epochs=stage_one_epochs,
                    learning_rate=stage_one_learning_rate,
                    warmup_epochs=warmup_share * stage_one_epochs,
                    max_norm=max_norm,
                )
            )
        if stage_two_epochs:
            losses = {"contrastive": ContrastiveLoss(temperature), "identity": identity}
            if identity_weight == 0:
                del losses["identity"]
            self._stages.append(
                Stage(
                    "task_adaptation",
                    model,
                    trains=["encoders"],
                    losses=losses,
                    weights={"identity": identity_weight} if identity_weight else None,
                    epochs=stage_two_epochs,
                    learning_rate=stage_two_learning_rate,
                    weight_decay=weight_decay,
                    warmup_epochs=warmup_share * stage_two_epochs,
                    max_norm=max_norm,
                )
            )

    @overload
    def __getitem__(self, index: int) -> Stage: ...

    @overload
    def __getitem__(self, index: slice) -> list[Stage]: ...

    def __getitem__(self, index: int | slice) -> Stage | list[Stage]:
        return self._stages[index]

    def __len__(self) -> int:
        return len(self._stages)
