"""What training data must have in common with the stages that train on it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.features import check_labels
from promptreid.training.stages import Stage


def check_training_data(dataset: Any, stages: Sequence[Stage]) -> None:
    """Refuse persons that the stages' losses cannot tell apart, where the data set says whose its items are.

    Args:
        dataset: Its attribute `person_ids`, if there is one, holds the labels of its images or items.
        stages: The stages.

    Raises:
        ValueError: Fewer than two persons, or labels out of a loss's range.
    """
    person_ids = getattr(dataset, "person_ids", None)
    if not isinstance(person_ids, Tensor) or person_ids.numel() == 0:
        return
    if len(torch.unique(person_ids)) < 2:
        raise ValueError(
            f"train_data holds {len(torch.unique(person_ids))} identity; telling persons apart needs at least 2"
        )
    for stage in stages:
        for name, loss in stage.loss_modules.items():
            if isinstance(loss, CrossModalIDLoss):
                try:
                    check_labels(person_ids, loss.num_identities)
                except ValueError as error:
                    raise ValueError(
                        f"train_data does not fit the loss {name!r} of stage {stage.name!r}, made for num_identities="
                        f"{loss.num_identities}: {error}"
                    ) from error
