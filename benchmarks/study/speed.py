"""How long runs take on this machine, said before they start."""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from arms import ARMS, NO_PROMPTS
from measures import OWN_PAIRS
from plan import BUDGET, Run
from runs import make_model
from torch import Tensor

from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_cuhk_pedes
from promptreid.synthetic import write_generated
from promptreid.training.recipe import Recipe

KINDS = {"stage_one": "stage_one", "stage_two": "pd", "direct": "direct", "joint": "joint"}  # kind of step → arm
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Speed:
    """Seconds that things take.

    Attributes:
        step: A training step of each kind, loading included.
        picture: Encoding a picture and two captions.
        drawing: Drawing a picture.
    """

    step: dict[str, float]
    picture: float
    drawing: float

    @property
    def costs(self) -> tuple[float, float]:
        """A step of stage 1 and of stage 2 in steps of direct fine-tuning."""
        one, two = (round(self.step[kind] / self.step["direct"], 3) for kind in ("stage_one", "stage_two"))
        return one, two

    def of(self, run: Run) -> float:
        """Seconds of a run without its data."""
        arm, budget = ARMS[run.arm], run.budget
        validation, test = (count * budget.images_per_identity for count in budget.identities[1:])
        seconds = self.picture * (test + validation + OWN_PAIRS)
        if arm.stages is None:
            return seconds
        first = arm.tuned in ("first", "both") and run.arm != "joint"
        steps = {"stage_one": budget.stage_one_steps if first else 0}
        steps[_last_kind(run.arm)] = 0 if run.arm == "stage_one" else run.last_steps
        seconds += sum(self.step[kind] * count for kind, count in steps.items())
        return seconds + self.picture * validation * sum(steps.values()) / budget.round_steps

    def of_all(self, runs: Iterable[Run]) -> float:
        """Seconds of several runs, their data drawn once a seed."""
        chosen = list(runs)
        drawn = {(run.seed, run.gap): sum(run.budget.identities) * run.budget.images_per_identity for run in chosen}
        return sum(map(self.of, chosen)) + self.drawing * sum(drawn.values())


def _last_kind(arm: str) -> str:
    if ARMS[arm].prompts == NO_PROMPTS:
        return "direct"
    return "joint" if arm in ("joint", "prompts_both") else "stage_two"


def measure_speed(device: str = "cpu", *, steps: int = 2) -> Speed:
    """Time steps of every kind in turn, and drawing and encoding; takes some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        root = write_generated(Path(folder) / "data", num_identities=(16, 1, 1), progress=False)
        drawing = (time.perf_counter() - started) / (18 * BUDGET.images_per_identity)
        split = load_cuhk_pedes(root).train
        model = make_model(Run("zero_shot", 0, (0.0, 0.0)), device)
        pairs = CaptionedImages(split, transform=model.train_transform, tokenizer=model.tokenizer)

        def load() -> Batch:
            items = [pairs[index % len(pairs)] for index in range(BUDGET.batch_size)]
            return {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}

        steppers = {kind: _stepper(arm, load, device) for kind, arm in KINDS.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in steppers}
        for number in range(steps + 1):
            for kind, step in steppers.items():
                taken = _seconds(step, device)
                if number:  # the first is slower
                    seconds[kind].append(taken)
        batch = load()
        with torch.inference_mode():
            encoding = _seconds(lambda: _encode(model, batch), device)
    return Speed({kind: min(taken) for kind, taken in seconds.items()}, encoding / BUDGET.batch_size, drawing)


def _encode(model: torch.nn.Module, batch: Batch) -> None:
    model(batch["images"], torch.cat([batch["tokens"]] * 2))


def _seconds(do: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    do()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _stepper(arm: str, load: Callable[[], Batch], device: str) -> Callable[[], None]:
    stages = ARMS[arm].stages
    if stages is None:
        raise ValueError(f"{arm} trains nothing")
    stage = stages(make_model(Run(arm, 0, (0.0, 0.0)), device), Recipe(num_identities=BUDGET.identities[0]))[-1]
    model, optimizer = stage.model, None

    def step() -> None:
        nonlocal optimizer
        stage.prepare()
        optimizer = optimizer or stage.optimizer()
        batch = load()
        losses = stage.losses(
            model.encode_image(batch["images"]), model.encode_text(batch["tokens"]), batch["person_ids"]
        )
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def announce(name: str, runs: Iterable[Run], done: int, device: str) -> None:
    """Say how long the runs that are left will take."""
    left = list(runs)
    if not left:
        print(f"{name}: all {done} runs are done")
        return
    speed = measure_speed(device)
    steps = ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in speed.step.items())
    print(f"{name}: {done} runs done, {len(left)} to do; about {speed.of_all(left) / 60:.0f} min here on {device}")
    print(f"(seconds a step: {steps}; measured just now, so a busy machine makes it more)", flush=True)
