"""The paper's ablations, and one of ours, as lists of stages.

Each takes a model and a `Recipe` and returns stages for `adapt`, `Trainer` or your own loop. Which prompts the
model must carry is part of the ablation: in both towers, in one, or in none. Another model is refused with a ValueError
that says which `PromptConfig` to make it with.

Source: arXiv 2401.02173, the ablation of prompts and stages; the last of the list and the warm-up are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.recipe import Recipe
from promptreid.training.stage import Stage


def two_stages(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """The method itself: prompts first, then the encoders."""
    _check_prompts(model, "two_stages", "both")
    return [recipe.domain_adaptation(model), recipe.task_adaptation(model)]


def direct_fine_tuning(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """No prompts and one stage: domain and task adaptation at once."""
    _check_prompts(model, "direct_fine_tuning", "none")
    return [recipe.task_adaptation(model, name="direct_fine_tuning")]


def direct_after_head_warm_up(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Direct fine-tuning once the identity head has learnt on frozen encoders, for as long as stage 1 takes.

    It tells whether stage 1 helps only by letting stage 2 start later.

    Raises:
        ValueError: The model carries prompts, or the recipe has no identity loss.
    """
    _check_prompts(model, "direct_after_head_warm_up", "none")
    if not recipe.identity_weight:
        raise ValueError(
            "direct_after_head_warm_up warms up the identity head, but identity_weight is 0; set "
            "Recipe(identity_weight=1.0), or use direct_fine_tuning"
        )
    losses = {"identity": recipe.identity_loss(model)}
    head = recipe.stage(
        "head_warm_up",
        model,
        trains=[],
        losses=losses,
        epochs=recipe.stage_one_epochs,
        learning_rate=recipe.stage_one_learning_rate,
    )
    return [head, recipe.task_adaptation(model, losses=losses, name="direct_fine_tuning")]


def prompts_only(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Only stage 1."""
    _check_prompts(model, "prompts_only", "both")
    return [recipe.domain_adaptation(model)]


def joint_one_stage(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Prompts and encoders together in one stage, each at its own rate."""
    _check_prompts(model, "joint_one_stage", "both")
    return [recipe.task_adaptation(model, trains=["prompts", "encoders"], name="joint")]


def prompts_in_both_stages(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Prompts keep training in stage 2 instead of being frozen."""
    _check_prompts(model, "prompts_in_both_stages", "both")
    return [recipe.domain_adaptation(model), recipe.task_adaptation(model, trains=["prompts", "encoders"])]


def stage_two_without_identity(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Only the matching loss in both stages."""
    _check_prompts(model, "stage_two_without_identity", "both")
    return [recipe.domain_adaptation(model), replace(recipe, identity_weight=0.0).task_adaptation(model)]


def text_prompts_only(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Two stages with prompts only in the text encoder."""
    _check_prompts(model, "text_prompts_only", "text")
    return [recipe.domain_adaptation(model, trains=["text_prompts"]), recipe.task_adaptation(model)]


def image_prompts_only(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Two stages with prompts only in the image encoder."""
    _check_prompts(model, "image_prompts_only", "image")
    return [recipe.domain_adaptation(model, trains=["image_prompts"]), recipe.task_adaptation(model)]


def frozen_random_prompts(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Only stage 2, with prompts as they were drawn: more tokens, nothing learned in them.

    Make the model with `text_initialization="normal"` and `vision_initialization="normal"` for plainly random ones.
    """
    _check_prompts(model, "frozen_random_prompts", "both")
    return [recipe.task_adaptation(model)]


def norms_and_projections_first(model: PromptedCLIP, recipe: Recipe) -> list[Stage]:
    """Stage 1 tunes norms and projections instead of prompts: any few parameters, or prompts?"""
    _check_prompts(model, "norms_and_projections_first", "none")
    return [recipe.domain_adaptation(model, trains=["norms", "projections"]), recipe.task_adaptation(model)]


@dataclass(frozen=True)
class Ablation:
    """One way of training, by which others are compared.

    Attributes:
        label: What tables call it.
        stages: From model and recipe to the stages.
        prompts: Which towers of the model carry prompts.
        whole: Whether its one stage takes the epochs of both, so that all ways see the data as often.
        has_stage_one: Whether one of its stages is the recipe's `domain_adaptation`.
    """

    label: str
    stages: Callable[[PromptedCLIP, Recipe], Sequence[Stage]]
    prompts: Literal["both", "text", "image", "none"] = "both"
    whole: bool = False
    has_stage_one: bool = True

    def config(self, config: PromptConfig) -> PromptConfig:
        """A prompt setup with no prompts in the towers that carry none here."""
        if self.prompts == "none":
            return PromptConfig(text_length=0, vision_length=0)
        text = config.text_length if self.prompts in ("both", "text") else 0
        image = config.vision_length if self.prompts in ("both", "image") else 0
        return replace(config, text_length=text, vision_length=image)

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe with the epochs that this way of training takes."""
        both = recipe.stage_one_epochs + recipe.stage_two_epochs
        return replace(recipe, stage_two_epochs=both) if self.whole else recipe


ABLATIONS: dict[str, Ablation] = {
    "pd": Ablation("Prompt Decoupling", two_stages),
    "direct": Ablation(
        "direct fine-tuning, epochs of both stages", direct_fine_tuning, "none", whole=True, has_stage_one=False
    ),
    "direct_short": Ablation(
        "direct fine-tuning, epochs of stage two", direct_fine_tuning, "none", has_stage_one=False
    ),
    "direct_id_warmup": Ablation(
        "direct after a warm-up of the identity head", direct_after_head_warm_up, "none", has_stage_one=False
    ),
    "stage_one": Ablation("stage one alone", prompts_only),
    "joint": Ablation(
        "prompts and encoders together, epochs of both stages", joint_one_stage, whole=True, has_stage_one=False
    ),
    "prompts_both": Ablation("prompts train in both stages", prompts_in_both_stages),
    "pd_no_id": Ablation("two stages without the identity loss", stage_two_without_identity),
    "text_prompts": Ablation("two stages, text prompts alone", text_prompts_only, "text"),
    "image_prompts": Ablation("two stages, image prompts alone", image_prompts_only, "image"),
    "norms_stage_one": Ablation("stage one trains norms and projections", norms_and_projections_first, "none"),
}


def _check_prompts(model: PromptedCLIP, ablation: str, carried: Literal["both", "text", "image", "none"]) -> None:
    wanted = {"text": carried in ("both", "text"), "image": carried in ("both", "image")}
    lengths = {"text": model.config.text_length, "image": model.config.vision_length}
    if any((lengths[tower] > 0) != wanted[tower] for tower in wanted):
        text, image = (4 if wanted[tower] else 0 for tower in ("text", "image"))
        raise ValueError(
            f"{ablation} needs a model with prompts in {carried.replace('both', 'both towers')}, this one has "
            f"{lengths['text']} for text and {lengths['image']} for images per block; make it with "
            f"PromptedCLIP(clip, PromptConfig(text_length={text}, vision_length={image}))"
        )
