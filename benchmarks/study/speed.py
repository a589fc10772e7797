"""How long runs take on this machine, said before they start.

python benchmarks/study/speed.py --device cpu
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from measures import OWN_PAIRS
from plan import ARMS, BUDGET, NO_PROMPTS, Run
from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_cuhk_pedes
from promptreid.synthetic import write_generated
from promptreid.training.recipe import Recipe
from runs import make_model, perform, read_result
from shared import made_with, make_parser, report, seconds, spread, take_turns

KINDS = {"stage_one": "stage_one", "stage_two": "pd", "direct": "direct", "joint": "joint"}  # kind of step → arm
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Speed:
    """Seconds that things take.

    Attributes:
        step: A training step of each kind, loading included.
        image: Encoding an image and two captions.
        drawing: Drawing an image.
    """

    step: dict[str, float]
    image: float
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
        taken = self.image * (test + validation + OWN_PAIRS)
        if arm.stages is None:
            return taken
        first = arm.tuned in ("first", "both") and run.arm != "joint"
        steps = {"stage_one": budget.stage_one_steps if first else 0}
        steps[_last_kind(run.arm)] = 0 if run.arm == "stage_one" else run.last_steps
        taken += sum(self.step[kind] * count for kind, count in steps.items())
        return taken + self.image * validation * sum(steps.values()) / budget.round_steps

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
        root = Path(folder) / "data"
        drawing = seconds(lambda: write_generated(root, num_identities=(16, 1, 1), progress=False))
        drawing /= 18 * BUDGET.images_per_identity
        split = load_cuhk_pedes(root).train
        model = make_model(Run("zero_shot", 0, (0.0, 0.0)), device)
        pairs = CaptionedImages(split, transform=model.train_transform, tokenizer=model.tokenizer)

        def load() -> Batch:
            items = [pairs[index % len(pairs)] for index in range(BUDGET.batch_size)]
            return {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}

        steppers = {kind: _stepper(arm, load, device) for kind, arm in KINDS.items()}
        variants = {kind: lambda step=step: seconds(step, device=device) for kind, step in steppers.items()}
        times = take_turns(variants, rounds=steps, warm_up=1)
        batch = load()
        with torch.inference_mode():
            encoding = seconds(lambda: _encode(model, batch), device=device)
    return Speed({kind: spread(taken).lowest for kind, taken in times.items()}, encoding / BUDGET.batch_size, drawing)


def _encode(model: torch.nn.Module, batch: Batch) -> None:
    model(batch["images"], torch.cat([batch["tokens"]] * 2))


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
    steps = ", ".join(f"{kind} {taken:.2f}" for kind, taken in speed.step.items())
    print(f"{name}: {done} runs done, {len(left)} to do; about {speed.of_all(left) / 60:.0f} min here on {device}")
    print(f"(seconds a step: {steps}; measured just now, so it takes longer on a busy machine)", flush=True)


def perform_missing(name: str, runs: Iterable[Run], results: Path, scratch: Path, *, device: str) -> None:
    """Say how long the runs without a result will take, and perform them."""
    chosen = list(runs)
    left = [run for run in chosen if read_result(run, results) is None]
    announce(name, left, len(chosen) - len(left), device)
    for run in tqdm(left, desc=name, unit="run"):
        perform(run, results, scratch, device=device)


def main() -> None:
    """Measure and print; write where asked."""
    parser = make_parser(__doc__, output=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="of each kind, after one that is not counted")
    arguments = parser.parse_args()
    speed = measure_speed(arguments.device, steps=arguments.steps)
    report({"device": arguments.device, "seconds": asdict(speed), "costs": speed.costs} | made_with(), arguments.output)


if __name__ == "__main__":
    main()
