"""What is compared, with what budget and at which rates: the arms, the runs, and the parts of the study."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from promptreid import PromptConfig, PromptedCLIP, Stage
from promptreid.synthetic.camera import CAMERAS
from promptreid.training import ablations
from promptreid.training.recipe import Recipe

HERE = Path(__file__).parent
RATES = HERE / "rates.json"
RESULTS = HERE.parent / "results" / "study"  # committed

Stages = Callable[[PromptedCLIP, Recipe], list[Stage]]
Length = Literal["stage_two", "all", "time"]
Tuned = Literal["none", "first", "last", "both"]
NO_PROMPTS = PromptConfig(text_length=0, vision_length=0)
DEEP = PromptConfig(text_length=4, vision_length=4)
RANDOM = replace(DEEP, text_initialization="normal", vision_initialization="normal")
FIRST_STAGES = ("stage_one", "head_warm_up")


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        stages: From model and recipe to stages; `None` for a model that is not trained.
        purpose: What it is for, for the tables.
        prompts: What the model carries.
        recipe: What it changes in the recipe.
        last: How long its last stage is: N₂ steps, all N₁ + N₂ of them, or as long as `pd` takes in wall-clock time.
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
    "zero_shot": Arm(None, "the starting point", NO_PROMPTS, tuned="none"),
    "direct": _direct("the baseline, with as many steps as both stages of `pd`"),
    "pd": Arm(ablations.two_stages, "the method"),
    "joint": Arm(ablations.joint_one_stage, "without decoupling, at the same number of steps", last="all"),
    "stage_one": Arm(ablations.prompts_only, "domain adaptation alone", tuned="first"),
    "prompts_both": Arm(ablations.prompts_in_both_stages, "without freezing"),
    "pd_no_id": Arm(ablations.stage_two_without_identity, "without the identity loss"),
}

CONTROLS: dict[str, Arm] = {
    "direct_short": _direct("direct fine-tuning with as many steps as stage 2 alone", "stage_two"),
    "direct_equal_time": _direct("direct fine-tuning for as long as `pd` takes in wall-clock time", "time"),
    "direct_random_prompts": _direct("is it only more tokens? Random prompts, frozen", "all", RANDOM),
    "direct_start_prompts": _direct("is it only where prompts start? Prompts as `pd` starts them, frozen", "all", DEEP),
    "norms_stage_one": Arm(ablations.norms_and_projections_first, "does it have to be prompts?", NO_PROMPTS),
    "direct_id_warmup": Arm(ablations.direct_after_head_warm_up, "is it only a trained head?", NO_PROMPTS),
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

SMALL_ARMS = ("zero_shot", "direct", "joint", "pd")
COMPARED = ("direct", "pd")
GAPS = (0.0, 2.0, 0.5, 1.5)  # the ends first: a series cut short still shows whether there is a slope
SHARES = (0.05, 0.25, 0.01)  # the middle one first
TRANSFER = tuple(camera.name for camera in CAMERAS)[: len(CAMERAS) // 2]


@dataclass(frozen=True)
class Budget:
    """How much data and training a run gets; equal for all arms.

    Attributes:
        identities: Persons in the training, validation and test split.
        images_per_identity: Images of each.
        image_size: (height, width) in pixels.
        batch_size: Pairs a step.
        stage_one_steps: N₁.
        stage_two_steps: N₂.
        round_steps: About how many steps lie between two looks at the validation split.
    """

    identities: tuple[int, int, int] = (600, 100, 400)
    images_per_identity: int = 4
    image_size: tuple[int, int] = (96, 48)
    batch_size: int = 64
    stage_one_steps: int = 120
    stage_two_steps: int = 240
    round_steps: int = 60


BUDGET = Budget()
LONG = replace(BUDGET, stage_two_steps=600)  # twice the steps in all


@dataclass(frozen=True)
class Run:
    """Everything that a result depends on.

    Attributes:
        arm: A name of `ARMS`.
        seed: Of the data, the starting values, order and augmentation.
        rates: Peak learning rates of stage 1 (or of prompts) and of the last stage.
        costs: What a step of stage 1 and of stage 2 costs in steps of direct fine-tuning, for equal wall time.
        budget: Data and steps.
        gap: The generator's.
        share: Of the training identities that are kept.
        train_cameras: Those whose images are trained and validated on; the others' are tested on. If empty, all
            cameras for everything.
        base: Which weights it starts from (`base_weights` in runs.py).
    """

    arm: str
    seed: int
    rates: tuple[float, float]
    costs: tuple[float, float] = (1.0, 1.0)
    budget: Budget = BUDGET
    gap: float = 1.0
    share: float = 1.0
    train_cameras: tuple[str, ...] = ()
    base: Literal["shipped", "further"] = "shipped"

    @property
    def condition(self) -> str:
        """What is the same for every run that is compared with this one; its folder's name."""
        marks = {"transfer": bool(self.train_cameras), "long": self.budget == LONG, "base": self.base != "shipped"}
        suffix = "".join(f"-{mark}" for mark, holds in marks.items() if holds)
        return f"gap{self.gap:g}-share{self.share:g}{suffix}"

    @property
    def last_steps(self) -> int:
        """Steps of the last stage."""
        budget = self.budget
        return ARMS[self.arm].last_steps(budget.stage_one_steps, budget.stage_two_steps, costs=self.costs)

    def path(self, results: Path, *, tuning: bool = False) -> Path:
        """The file of its result; while rates are tuned, they are part of the name."""
        rates = f"-rates{self.rates[0]:g}-{self.rates[1]:g}" if tuning else ""
        return results / self.condition / f"{self.arm}-seed{self.seed}{rates}.json"


def read_rates(path: Path = RATES) -> dict[str, Any]:
    """The tuned learning rates, as `tune.py` writes them.

    Raises:
        FileNotFoundError: They have not been tuned yet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: tune the rates first, with python benchmarks/study/tune.py")
    return json.loads(path.read_text(encoding="utf-8"))


def plan(arms: Iterable[str], seeds: Iterable[int], rates: Mapping[str, Any], **condition: Any) -> list[Run]:
    """Every arm on every seed, seed by seed, so that a study cut short still compares whole seeds.

    Arms whose rates were not tuned are left out: there is no table with arms of unequal tuning.

    Args:
        arms: Names of `ARMS`.
        seeds: The seeds.
        rates: What `read_rates` returned.
        condition: `gap`, `share`, `train_cameras`, `base` or `budget` of `Run`, where they differ from its own.

    Raises:
        KeyError: An arm is unknown.
    """
    names = tuple(arms)
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise KeyError(f"unknown arm {unknown[0]!r}, expected one of {', '.join(ARMS)}")
    costs: tuple[float, float] = (rates["costs"][0], rates["costs"][1])
    tuned = {name: (pair[0], pair[1]) for name, pair in rates["rates"].items()} | {"zero_shot": (0.0, 0.0)}
    return [
        replace(Run(name, seed, tuned[name], costs), **condition) for seed in seeds for name in names if name in tuned
    ]


def parts(rates: Mapping[str, Any]) -> dict[str, list[Run]]:
    """Every part of the protocol by name, in the order in which they matter."""
    five = range(5)
    return {
        "main": plan(MAIN, range(10), rates),
        "controls": plan(CONTROLS, five, rates),
        "gap": [run for gap in GAPS for run in plan(COMPARED, five, rates, gap=gap)],
        "long": plan(COMPARED, five, rates, budget=LONG),
        "base": plan(("zero_shot", *COMPARED), five, rates, base="further"),
        "low_data": [run for share in SHARES for run in plan(COMPARED, five, rates, share=share)],
        "transfer": plan(("zero_shot", *COMPARED), five, rates, train_cameras=TRANSFER),
        "ablations": plan(ABLATIONS, five, rates),
    }


def expected(part: str) -> int:
    """How many runs a part has once every arm is tuned."""
    everything = {"costs": (1.0, 1.0), "rates": dict.fromkeys(ARMS, (0.0, 0.0))}
    return len(parts(everything)[part])
