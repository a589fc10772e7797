"""What is compared: each arm is a model with or without prompts, and a list of stages (docs/protocol.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from promptreid import PromptConfig, PromptedCLIP, Stage
from promptreid.training import ablations
from promptreid.training.recipe import Recipe

Stages = Callable[[PromptedCLIP, Recipe], list[Stage]]
Length = Literal["stage_two", "all", "time"]
Tuned = Literal["none", "first", "last", "both"]
NO_PROMPTS = PromptConfig(text_length=0, vision_length=0)
DEEP = PromptConfig(text_length=4, vision_length=4)
RANDOM = replace(DEEP, text_initialization="normal", vision_initialization="normal")
FIRST_STAGES = ("domain_adaptation", "head_warm_up")


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        stages: From model and recipe to stages; `None` for a model that is not trained.
        purpose: What it is for, for the tables.
        prompts: What the model carries.
        recipe: What it changes in the recipe.
        last: How long its last stage is: N₂ steps, all N₁ + N₂ of them, or as long as `pd` takes by the clock.
        tuned: Which of the two learning rates (of stage 1 or the prompts, of the last stage) it has.
    """

    stages: Stages | None
    purpose: str
    prompts: PromptConfig = DEEP
    recipe: Mapping[str, Any] = field(default_factory=dict)
    last: Length = "stage_two"
    tuned: Tuned = "both"

    def last_steps(self, one: int, two: int, *, costs: tuple[float, float]) -> int:
        """Steps of the last stage, from N₁, N₂ and what a step of each stage costs in steps of direct fine-tuning."""
        return {"stage_two": two, "all": one + two, "time": round(costs[0] * one + costs[1] * two)}[self.last]


def _direct(purpose: str, last: Length = "all", prompts: PromptConfig = NO_PROMPTS) -> Arm:
    stages = ablations.direct_fine_tuning if prompts == NO_PROMPTS else ablations.frozen_random_prompts
    return Arm(stages, purpose, prompts, last=last, tuned="last")


MAIN: dict[str, Arm] = {
    "zero_shot": Arm(None, "where everything starts", NO_PROMPTS, tuned="none"),
    "direct": _direct("the baseline, with as many steps as both stages of `pd`"),
    "pd": Arm(ablations.two_stages, "the method"),
    "joint": Arm(ablations.joint_one_stage, "decoupling taken away, the same number of steps", last="all"),
    "stage_one": Arm(ablations.prompts_only, "domain adaptation alone", tuned="first"),
    "prompts_both": Arm(ablations.prompts_in_both_stages, "freezing taken away"),
    "pd_no_id": Arm(ablations.stage_two_without_identity, "the identity loss taken away"),
}

CONTROLS: dict[str, Arm] = {
    "direct_short": _direct("direct fine-tuning with as many steps as stage 2 alone", "stage_two"),
    "direct_equal_time": _direct("direct fine-tuning for as long as `pd` takes by the clock", "time"),
    "direct_random_prompts": _direct("is it only more tokens? Random prompts, frozen", "all", RANDOM),
    "direct_start_prompts": _direct("is it only where prompts start? Prompts as `pd` starts them, frozen", "all", DEEP),
    "norms_stage_one": Arm(ablations.norms_and_projections_first, "need it be prompts?", NO_PROMPTS),
    "direct_id_warmup": Arm(ablations.direct_after_head_warm_up, "is it only a warmer head?", NO_PROMPTS),
}


def _pd(purpose: str, prompts: PromptConfig = DEEP, **recipe: Any) -> Arm:
    return Arm(ablations.two_stages, purpose, prompts, recipe)


ABLATIONS: dict[str, Arm] = {
    **{
        f"pd_length_{length}": _pd(f"prompt length {length}", PromptConfig(text_length=length, vision_length=length))
        for length in (1, 2, 8, 16)
    },
    "pd_text_8_image_2": _pd("unequal lengths", PromptConfig(text_length=8, vision_length=2)),
    "pd_text_2_image_8": _pd("unequal lengths", PromptConfig(text_length=2, vision_length=8)),
    "pd_shallow": _pd("prompts in the first block alone", replace(DEEP, text_depth=1, vision_depth=1)),
    "pd_random_start": _pd("text prompts start at random too, N(0, 0.02), as image prompts do", RANDOM),
    "pd_positions": _pd("position embedding on prompts", replace(DEEP, position_embedding=True)),
    "pd_before_end": _pd("text prompts before the end token", replace(DEEP, text_slot="before_end")),
    "pd_text_prompts": Arm(ablations.text_prompts_only, "no image prompts", replace(DEEP, vision_length=0)),
    "pd_image_prompts": Arm(ablations.image_prompts_only, "no text prompts", replace(DEEP, text_length=0)),
    "pd_dot_product": _pd("dot product, not cosine, at the temperature that starts it at the same scale",
                          similarity="dot"),
    "pd_temperature_01": _pd("temperature 0.01", temperature=0.01),
    "pd_temperature_05": _pd("temperature 0.05", temperature=0.05),
}  # fmt: skip

ARMS: dict[str, Arm] = MAIN | CONTROLS | ABLATIONS
