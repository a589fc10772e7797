"""What is compared: each arm is a model with or without prompts, and a list of stages (docs/protocol.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from promptreid import PromptConfig, PromptedCLIP, Stage
from promptreid.training import ablations
from promptreid.training.recipe import Recipe

Stages = Callable[[PromptedCLIP, Recipe], list[Stage]]
NO_PROMPTS = PromptConfig(text_length=0, vision_length=0)
DEEP = PromptConfig(text_length=4, vision_length=4)


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        stages: From model and recipe to stages; `None` for a model that is not trained.
        purpose: What it is for, for the tables.
        prompts: What the model carries.
        recipe: What it changes in the recipe.
        more: Which budget its last stage gets on top of N₂: nothing, N₁ more steps, or the wall time of N₁ steps.
    """

    stages: Stages | None
    purpose: str
    prompts: PromptConfig = DEEP
    recipe: Mapping[str, Any] = field(default_factory=dict)
    more: Literal["nothing", "steps", "time"] = "nothing"

    def make_recipe(self, recipe: Recipe, *, step_cost: float) -> Recipe:
        """The recipe as this arm runs it; `step_cost` is the time of a stage-1 step in steps of direct fine-tuning."""
        shares = {"nothing": 0.0, "steps": 1.0, "time": step_cost}
        epochs = recipe.stage_two_epochs + round(shares[self.more] * recipe.stage_one_epochs)
        return replace(recipe, stage_two_epochs=epochs, **self.recipe)


MAIN: dict[str, Arm] = {
    "zero_shot": Arm(None, "where everything starts", NO_PROMPTS),
    "direct": Arm(ablations.direct_fine_tuning, "the paper's baseline", NO_PROMPTS),
    "pd": Arm(ablations.two_stages, "the method"),
    "joint": Arm(ablations.joint_one_stage, "decoupling taken away"),
    "stage_one": Arm(ablations.prompts_only, "domain adaptation alone"),
    "prompts_both": Arm(ablations.prompts_in_both_stages, "freezing taken away"),
    "pd_no_id": Arm(ablations.stage_two_without_identity, "the identity loss taken away"),
}

CONTROLS: dict[str, Arm] = {
    "direct_equal_steps": Arm(ablations.direct_fine_tuning, "is it only longer training?", NO_PROMPTS, more="steps"),
    "direct_equal_time": Arm(ablations.direct_fine_tuning, "is it only more compute?", NO_PROMPTS, more="time"),
    "direct_random_prompts": Arm(ablations.frozen_random_prompts, "is it only more tokens?"),
    "norms_stage_one": Arm(ablations.norms_and_projections_first, "need it be prompts?", NO_PROMPTS),
    "direct_id_warmup": Arm(ablations.direct_after_head_warm_up, "is it only a warmer head?", NO_PROMPTS),
}


def _pd(purpose: str, prompts: PromptConfig = DEEP, **recipe: Any) -> Arm:
    return Arm(ablations.two_stages, purpose, prompts, recipe)


ABLATIONS: dict[str, Arm] = {
    **{
        f"pd_length_{length}": _pd(f"{length} prompts a block", PromptConfig(text_length=length, vision_length=length))
        for length in (1, 2, 8, 16)
    },
    "pd_text_8_image_2": _pd("unequal lengths", PromptConfig(text_length=8, vision_length=2)),
    "pd_text_2_image_8": _pd("unequal lengths", PromptConfig(text_length=2, vision_length=8)),
    "pd_shallow": _pd("prompts in the first block alone", replace(DEEP, text_depth=1, vision_depth=1)),
    "pd_positions": _pd("position embedding on prompts", replace(DEEP, position_embedding=True)),
    "pd_text_prompts": Arm(ablations.text_prompts_only, "no image prompts", replace(DEEP, vision_length=0)),
    "pd_image_prompts": Arm(ablations.image_prompts_only, "no text prompts", replace(DEEP, text_length=0)),
    "pd_dot_product": _pd("dot product, not cosine", similarity="dot"),
    "pd_temperature_01": _pd("temperature 0.01", temperature=0.01),
    "pd_temperature_05": _pd("temperature 0.05", temperature=0.05),
}

ARMS: dict[str, Arm] = MAIN | CONTROLS | ABLATIONS
