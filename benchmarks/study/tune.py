"""Tune each arm's learning rates on the validation split of a seed that no reported run uses.

    python benchmarks/study/tune.py

Three rates an arm, a factor of the square root of 10 apart; a grid whose best is at its edge is extended on that side
for every arm. The winners go to `rates.json`, the results of all runs to `benchmarks/results/study-tuning/`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import ARMS
from plan import SMALL
from runs import Run, perform

from promptreid import PromptedCLIP, load_clip
from promptreid.files import write_bytes_atomically

SEED = 100
STAGE_ONE = (1.6e-3, 5e-3, 1.6e-2)
STAGE_TWO = (1e-4, 3.2e-4, 1e-3)
TUNED = ("direct", "joint", "pd", "prompts_both", "pd_no_id", "direct_random_prompts", "norms_stage_one")
HERE = Path(__file__).parent


def best_of(rates: list[float], score: Callable[[float], float]) -> tuple[float, bool, bool]:
    """The best rate, and whether it lies at the lower and at the upper edge."""
    scores = [score(rate) for rate in rates]
    place = scores.index(max(scores))
    return rates[place], place == 0, place == len(rates) - 1


def tune(arms: tuple[str, ...], rates: list[float], score: Callable[[str, float], float]) -> dict[str, float]:
    """The best rate of each arm on one grid, which grows until no arm's best is at its edge (at most four times)."""
    rates = sorted(rates)
    for _ in range(5):
        found = {arm: best_of(rates, lambda rate, arm=arm: score(arm, rate)) for arm in arms}
        low, high = (any(entry[edge] for entry in found.values()) for edge in (1, 2))
        if not low and not high:
            return {arm: entry[0] for arm, entry in found.items()}
        factor = rates[1] / rates[0]
        rates = [*([rates[0] / factor] if low else []), *rates, *([rates[-1] * factor] if high else [])]
    raise RuntimeError(f"the best rate is still at the edge of {rates}; look at the results before going on")


def step_cost(*, steps: int = 10) -> float:
    """Time of a stage-1 step in steps of direct fine-tuning, alternating the two, best of `steps` each."""
    seconds: dict[str, list[float]] = {"stage_one": [], "direct": []}
    steppers = {arm: _stepper(arm) for arm in seconds}
    for _ in range(steps):
        for arm, step in steppers.items():
            started = time.perf_counter()
            step()
            seconds[arm].append(time.perf_counter() - started)
    return round(min(seconds["stage_one"]) / min(seconds["direct"]), 3)


def _stepper(arm: str) -> Callable[[], None]:
    from promptreid.training.recipe import Recipe

    stages = ARMS[arm].stages
    if stages is None:
        raise ValueError(f"{arm} trains nothing")
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=SMALL.image_size)
    model = PromptedCLIP(clip, ARMS[arm].prompts)
    stage = stages(model, Recipe(num_identities=SMALL.identities[0]))[0]
    stage.prepare()
    optimizer = stage.optimizer()
    images = torch.randn(SMALL.batch_size, 3, *SMALL.image_size)
    tokens = model.tokenizer(["a woman in a red coat with a black backpack, blue jeans and white shoes"] * len(images))
    ids = torch.arange(len(images))

    def step() -> None:
        losses = stage.losses(model.encode_image(images), model.encode_text(tokens), ids)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Tune stage 1, then every arm's last stage, and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "study-tuning")
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--arms", nargs="+", choices=TUNED, default=TUNED)
    arguments = parser.parse_args()
    cost = step_cost()

    def validation_mAP(run: Run) -> float:
        result: dict[str, Any] = perform(run, arguments.results, arguments.scratch, test=False)
        return result["validation"]["mAP"]

    start = Run("stage_one", SEED, SMALL, (STAGE_ONE[0], STAGE_TWO[0]), cost)
    first = tune(
        ("stage_one",), list(STAGE_ONE), lambda arm, rate: validation_mAP(replace(start, rates=(rate, STAGE_TWO[0])))
    )["stage_one"]
    last = tune(
        tuple(arguments.arms),
        list(STAGE_TWO),
        lambda arm, rate: validation_mAP(replace(start, arm=arm, rates=(first, rate))),
    )
    rates = {"seed": SEED, "step_cost": cost, "stage_one": first, "stage_two": last}
    write_bytes_atomically(HERE / "rates.json", (json.dumps(rates, indent=2) + "\n").encode())
    print(json.dumps(rates, indent=2))


if __name__ == "__main__":
    main()
