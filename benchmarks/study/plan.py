"""Which runs make a study, at which rates."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arms import ARMS
from runs import Budget, Run

SMALL = Budget((400, 100, 400), 4, (96, 48), 64, 3, 4)
FULL = Budget((800, 200, 400), 4, (96, 48), 64, 6, 12)


def read_rates(path: Path) -> dict[str, Any]:
    """The tuned learning rates, as `tune.py` writes them.

    Raises:
        FileNotFoundError: They were not tuned yet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: tune the rates first, with python {path.parent / 'tune.py'}")
    return json.loads(path.read_text(encoding="utf-8"))


def plan(
    arms: Iterable[str],
    seeds: Iterable[int],
    budget: Budget,
    rates: Mapping[str, Any],
    *,
    gap: float = 1.0,
    share: float = 1.0,
) -> list[Run]:
    """Every arm on every seed, seed by seed, so that a study cut short still compares whole seeds."""
    return [make_run(arm, seed, budget, rates, gap=gap, share=share) for seed in seeds for arm in arms]


def make_run(
    arm: str, seed: int, budget: Budget, rates: Mapping[str, Any], *, gap: float = 1.0, share: float = 1.0
) -> Run:
    """A run at the rates tuned for its arm; ablations of `pd` take the rates of `pd`.

    Raises:
        KeyError: There is no such arm.
    """
    if arm not in ARMS:
        raise KeyError(f"there is no arm {arm!r}; there are {', '.join(ARMS)}")
    tuned = rates["stage_two"]
    last = tuned.get(arm, tuned["pd" if arm.startswith("pd") else "direct"])
    return Run(arm, seed, budget, (rates["stage_one"], last), rates["step_cost"], gap, share)
