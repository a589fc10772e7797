"""Cost of a step of the trainer, compared with the same step in a bare loop, on the shipped base.

    python benchmarks/training_overhead.py

Both loops read the same images, take the same steps of stage 2 and take turns in one process; the ratio is the median
over the rounds. Time is that of the process on the CPU, which other programs on the machine change little; wall-clock
time is given beside it. Writes benchmarks/results/training_overhead.json.
"""

import itertools
import statistics
import tempfile
import time
from typing import Any

import torch
from accelerate.tracking import GeneralTracker
from torch.utils.data import DataLoader

from _bench import RESULTS, RandomPairs, made_with, make_parser, paired_ratio, report, take_turns
from promptreid import PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule, load_clip

ROUNDS = 12
STEPS = 6  # a round and loop; the first of them is not counted
BATCH_SIZE = 64
IMAGE_SIZE = (96, 48)
Times = list[tuple[float, float]]  # seconds of the process on the CPU, and of the wall clock


def clock() -> tuple[float, float]:
    """Seconds of this process on the CPU, and of the wall clock."""
    return time.process_time(), time.perf_counter()


def bare_loop(model: PromptedCLIP, data: RandomPairs) -> Times:
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


def trainer_loop(model: PromptedCLIP, data: RandomPairs) -> Times:
    """The trainer as it is by default: checks, log, TensorBoard, progress bar."""
    clock_tracker = ClockTracker()
    stages = TwoStageSchedule(model, num_identities=100, stage_one_epochs=0, stage_two_epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            stages,
            train_data=data,
            batch_size=BATCH_SIZE,
            output_dir=folder,
            device="cpu",
            trackers=("tensorboard", clock_tracker),
        )
        trainer.fit()
    return clock_tracker.ticks


class ClockTracker(GeneralTracker):
    """Notes the clock whenever the trainer logs, which is after every step."""

    name = "clock"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.ticks: Times = []

    @property
    def tracker(self) -> "ClockTracker":
        """The tracker itself, as accelerate asks for it."""
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing is stored."""

    def log(self, values: dict[str, Any], step: int | None = None, **settings: Any) -> None:
        """Note the clock."""
        self.ticks.append(clock())


def step_times(ticks: Times) -> Times:
    """Time from step to step, which leaves out how each loop starts and ends."""
    pairs = itertools.pairwise(ticks)
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def summarize(steps: dict[str, list[Times]]) -> dict[str, Any]:
    """Ratios and medians, from each loop's step times by round."""
    result: dict[str, Any] = {}
    medians: dict[str, dict[str, float]] = {name: {} for name in steps}
    for index, kind in enumerate(("cpu", "wall")):
        rounds = {name: [[step[index] for step in times] for times in found] for name, found in steps.items()}
        trainer, bare = ([statistics.median(taken) for taken in rounds[name]] for name in ("trainer", "bare"))
        ratio = paired_ratio(trainer, bare).rounded(4)
        result |= {f"{kind}_time_ratio": ratio.median, f"{kind}_time_ratio_range": [ratio.lowest, ratio.highest]}
        for name, found in rounds.items():
            medians[name][kind] = round(statistics.median(itertools.chain(*found)), 4)
    return result | {"median_step_seconds": medians, "steps": sum(map(len, steps["bare"]))}


def main() -> None:
    """Measure and write the result."""
    arguments = make_parser(__doc__, output=RESULTS / "training_overhead.json").parse_args()
    torch.manual_seed(0)
    data = RandomPairs(STEPS * BATCH_SIZE, IMAGE_SIZE, in_memory=True)  # the loader's own work would hide the trainer's
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=IMAGE_SIZE), PromptConfig())
    variants = {
        "bare": lambda: step_times(bare_loop(model, data)),
        "trainer": lambda: step_times(trainer_loop(model, data)),
    }
    steps = take_turns(variants, rounds=ROUNDS)
    report(summarize(steps) | {"batch_size": BATCH_SIZE} | made_with(), arguments.output)


if __name__ == "__main__":
    main()
