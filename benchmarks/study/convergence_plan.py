"""What is compared at convergence: arms, budgets, runs and their order, as docs/protocol_convergence.md says."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan import HERE, NO_PROMPTS, Stages, Tuned
from promptreid import PromptConfig
from promptreid.training import ablations

RATES = HERE / "convergence_rates.json"
RESULTS = HERE.parent / "results" / "convergence"  # committed
TUNING_RESULTS = HERE.parent / "results" / "convergence-tuning"
SEED, TUNED_AT = 100, 100  # the seed and the number of identities at which rates are tuned
CENTRES = (5e-3, 1e-3)


@dataclass(frozen=True)
class Course:
    """One thing that is trained to convergence.

    Attributes:
        stages: From model and recipe to stages; `None` for a model that is not trained.
        purpose: What it is for, for the tables.
        epochs: Most epochs of stage 1 and of the last stage.
        prompts: What the model carries.
        tuned: Which of the two learning rates (of prompts, of encoders) it has.
    """

    stages: Stages | None
    purpose: str
    epochs: tuple[int, int]
    prompts: PromptConfig
    tuned: Tuned

    def most_epochs(self, stage: str) -> int:
        """Those of a stage, by its name: stage 1 is `stage_one`, and everything else a last stage."""
        return self.epochs[0 if stage == "stage_one" else 1]


def _deep(length: int) -> PromptConfig:
    return PromptConfig(text_length=length, vision_length=length)


def _prompts(length: int) -> Course:
    purpose = f"prompts alone, {length} per block and tower"
    return Course(ablations.prompts_only, purpose, (120, 0), _deep(length), "first")


DIRECT = ablations.direct_fine_tuning
COURSES: dict[str, Course] = {
    "zero_shot": Course(None, "the starting point", (0, 0), NO_PROMPTS, "none"),
    "direct": Course(DIRECT, "the baseline, with the encoder epochs of `pd`", (0, 60), NO_PROMPTS, "last"),
    "direct_more": Course(DIRECT, "the baseline, given the epochs of stage 1 too", (0, 120), NO_PROMPTS, "last"),
    "pd": Course(ablations.two_stages, "the method", (60, 60), _deep(4), "both"),
    "pd_no_id": Course(
        ablations.stage_two_without_identity, "the method without the identity loss", (60, 60), _deep(4), "both"
    ),
    "joint": Course(ablations.joint_one_stage, "prompts and encoders at once", (0, 60), _deep(4), "both"),
    **{f"prompts_{length}": _prompts(length) for length in (4, 16, 64)},
}
PRIMARY = ("zero_shot", "direct", "direct_more", "pd")
PARTS = ("pd_no_id", "joint", "prompts_4")
# Arms that are tuned together; the longest runs first, so that no process waits long for the last one.
TUNED_TOGETHER = (PRIMARY[1:], ("pd_no_id", "joint"), ("prompts_64", "prompts_16", "prompts_4"))


@dataclass(frozen=True)
class Limits:
    """Data and stopping, equal for all arms.

    Attributes:
        persons: In the training, validation and test split as drawn.
        images_per_identity: Images of each.
        image_size: (height, width) in pixels.
        batch_size: Pairs a step.
        patience: Epochs without a better validation mAP after which a stage ends.
        most_epochs: Of any stage, to try a study out; None for those of its arm.
    """

    persons: tuple[int, int, int] = (600, 100, 400)
    images_per_identity: int = 4
    image_size: tuple[int, int] = (96, 48)
    batch_size: int = 64
    patience: int = 15
    most_epochs: int | None = None


@dataclass(frozen=True)
class LongRun:
    """Everything that a result depends on.

    Attributes:
        arm: A name of `COURSES`.
        seed: Of the data, the starting values, order and augmentation.
        rates: Peak learning rates of prompts and of encoders.
        identities: Persons to train on, the first of those that are drawn.
        base: `"shipped"`, or the first digits of the SHA-256 of other weights.
        limits: Data and stopping.
    """

    arm: str
    seed: int
    rates: tuple[float, float]
    identities: int = TUNED_AT
    base: str = "shipped"
    limits: Limits = field(default_factory=Limits)

    @property
    def condition(self) -> str:
        """What is the same for every run that is compared with this one; its folder's name."""
        return f"identities{self.identities}" + ("" if self.base == "shipped" else f"-base-{self.base}")

    @property
    def epochs(self) -> tuple[int, int]:
        """Most epochs of both stages."""
        one, two = COURSES[self.arm].epochs
        most = self.limits.most_epochs
        return (one, two) if most is None else (min(one, most), min(two, most))

    @property
    def most_steps(self) -> tuple[int, int]:
        """Steps of both stages if neither stops early, at two captions an image."""
        per_epoch = self.identities * self.limits.images_per_identity * 2 // self.limits.batch_size
        return self.epochs[0] * per_epoch, self.epochs[1] * per_epoch

    def path(self, results: Path, *, tuning: bool = False) -> Path:
        """The file of its result; while rates are tuned, they are part of the name."""
        rates = f"-rates{self.rates[0]:g}-{self.rates[1]:g}" if tuning else ""
        return results / self.condition / f"{self.arm}-seed{self.seed}{rates}.json"


def read_rates(path: Path = RATES) -> dict[str, Any]:
    """The tuned rates by arm; empty where nothing has been tuned yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rates": {}, "runs": {}}


def runs_of(arms: Iterable[str], seeds: Iterable[int], rates: Mapping[str, Any], **condition: Any) -> list[LongRun]:
    """Every arm on every seed, seed by seed; arms whose rates were not tuned are left out.

    Args:
        arms: Names of `COURSES`.
        seeds: The seeds.
        rates: What `read_rates` returned.
        condition: `identities`, `base` or `limits` of `LongRun`.
    """
    tuned = {name: (pair[0], pair[1]) for name, pair in rates["rates"].items()} | {"zero_shot": (0.0, 0.0)}
    names = [name for name in arms if name in tuned]
    return [LongRun(name, seed, tuned[name], **condition) for seed in seeds for name in names]


def parts(
    rates: Mapping[str, Any], *, base: str | None = None, limits: Limits | None = None
) -> dict[str, list[LongRun]]:
    """The runs of every part, in the protocol's order; `better_base` is empty without a base."""
    plan = {
        "primary_100": (PRIMARY, 5, 100),
        "primary_400": (PRIMARY, 5, 400),
        "few": (PRIMARY, 3, 50),
        "middle": (PRIMARY, 3, 200),
        "parts_100": ((*PARTS, "prompts_16", "prompts_64"), 5, 100),
        "parts_400": (PARTS, 5, 400),
        "parts_few": (PARTS, 3, 50),
        "parts_middle": (PARTS, 3, 200),
    }
    chosen = {"limits": limits} if limits is not None else {}
    found = {
        name: runs_of(arms, range(seeds), rates, identities=identities, **chosen)
        for name, (arms, seeds, identities) in plan.items()
    }
    arms = ("zero_shot", "direct", "pd")
    found["better_base"] = [
        run
        for identities in ((100, 400) if base else ())
        for run in runs_of(arms, range(5), rates, identities=identities, base=base, **chosen)
    ]
    return found


PART_NAMES = tuple(parts({"rates": {}}))
EVERY_ARM = {"rates": dict.fromkeys(COURSES, (0.0, 0.0))}  # to count what a part has once all of its arms are tuned
