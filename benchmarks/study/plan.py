"""Which runs make a study, with what budget and at which rates."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from arms import ABLATIONS, ARMS, CONTROLS, MAIN

from promptreid.synthetic.camera import CAMERAS

HERE = Path(__file__).parent
RATES = HERE / "rates.json"
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
        images_per_identity: Pictures of each.
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
        train_cameras: Those whose pictures are trained and validated on, the others being tested on; all, for
            everything, if empty.
        base: Which weights it starts from (bases.py).
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
        FileNotFoundError: They were not tuned yet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: tune the rates first, with python benchmarks/study/tune.py")
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
        KeyError: There is no such arm.
    """
    names = tuple(arms)
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise KeyError(f"there is no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
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
