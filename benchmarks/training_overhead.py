"""What a step of the trainer costs over the same step in a bare loop, on the shipped base.

    python benchmarks/training_overhead.py

Both loops read the same pictures, take the same steps of stage 2 and run by turns in one process; the ratio is the
median over the rounds. Time is that of the process on the CPU, which other programs on the machine change little; wall
time is given beside it. Writes
benchmarks/results/training_overhead.json.
"""

import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from promptreid import PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule, load_clip
from promptreid.training.step import RunningStage

ROUNDS = 12
STEPS = 6  # a round and loop; the first of them is not counted
BATCH_SIZE = 64
IMAGE_SIZE = (96, 48)
RESULT = Path(__file__).parent / "results" / "training_overhead.json"


class Pictures(Dataset[dict[str, Tensor]]):
    """Random pictures and captions, in memory: nothing of the loader's own work hides the trainer's."""

    def __init__(self) -> None:
        self.images = torch.randn(STEPS * BATCH_SIZE, 3, *IMAGE_SIZE)
        self.tokens = torch.zeros(len(self.images), 77, dtype=torch.int64)
        self.tokens[:, 0], self.tokens[:, 30] = 49406, 49407
        self.tokens[:, 1:30] = torch.randint(1, 49000, (len(self.images), 29))
        self.person_ids = torch.arange(len(self.images)) % 100

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": self.images[index], "tokens": self.tokens[index], "person_ids": self.person_ids[index]}


def clock() -> tuple[float, float]:
    """Seconds of this process on the CPU, and of the wall."""
    return time.process_time(), time.perf_counter()


def bare_loop(model: PromptedCLIP, data: Pictures) -> list[tuple[float, float]]:
    """The loop one would write by hand: batch, losses, clipping, step, and the loss printed."""
    stage = TwoStageSchedule(model, num_identities=100, stage_one_epochs=0, stage_two_epochs=1)[0]
    stage.prepare()
    optimizer = stage.optimizer()
    scheduler = stage.scheduler(optimizer, STEPS)
    ticks = []
    for batch in DataLoader(data, batch_size=BATCH_SIZE, shuffle=True):
        out = model(batch["images"], batch["tokens"])
        losses = stage.losses(out["image_features"], out["text_features"], batch["person_ids"])
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        f"{losses['total'].item():.4f}"
        ticks.append(clock())
    return ticks


def trainer_loop(model: PromptedCLIP, data: Pictures) -> list[tuple[float, float]]:
    """The trainer as it is by default: checks, log, TensorBoard, progress bar."""
    ticks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder, timed_steps(ticks):
        stages = TwoStageSchedule(model, num_identities=100, stage_one_epochs=0, stage_two_epochs=1)
        Trainer(model, stages, train_data=data, batch_size=BATCH_SIZE, output_dir=folder, device="cpu").fit()
    return ticks


@contextmanager
def timed_steps(ticks: list[tuple[float, float]]) -> Generator[None, None, None]:
    """Note the clock after every step of the trainer."""
    original: Callable[..., Any] = RunningStage.step

    def step(*arguments: Any, **settings: Any) -> Any:
        result = original(*arguments, **settings)
        ticks.append(clock())
        return result

    RunningStage.step = step
    try:
        yield
    finally:
        RunningStage.step = original


def seconds(ticks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Time from step to step, which leaves out how each loop starts and ends."""
    pairs = itertools.pairwise(ticks)
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def main() -> None:
    """Measure and write the result."""
    torch.manual_seed(0)
    data = Pictures()
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=IMAGE_SIZE), PromptConfig())
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "trainer": []}
    rounds: list[list[float]] = []
    for _ in range(ROUNDS):
        steps = {"bare": seconds(bare_loop(model, data)), "trainer": seconds(trainer_loop(model, data))}
        bare, trainer = ([statistics.median(column) for column in zip(*steps[name], strict=True)] for name in steps)
        rounds.append([after / before for before, after in zip(bare, trainer, strict=True)])
        for name in found:
            found[name] += steps[name]
    medians = {
        name: [statistics.median(step[kind] for step in steps) for kind in range(2)] for name, steps in found.items()
    }
    cpu, wall = (sorted(column) for column in zip(*rounds, strict=True))
    result = {
        "cpu_time_ratio": round(statistics.median(cpu), 4),
        "cpu_time_ratio_range": [round(cpu[0], 4), round(cpu[-1], 4)],
        "wall_time_ratio": round(statistics.median(wall), 4),
        "wall_time_ratio_range": [round(wall[0], 4), round(wall[-1], 4)],
        "median_step_seconds": {
            name: {"cpu": round(both[0], 4), "wall": round(both[1], 4)} for name, both in medians.items()
        },
        "steps": len(found["bare"]),
        "batch_size": BATCH_SIZE,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": date.today().isoformat(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
