"""One training job with all cores, or several with one thread each, with and without reused memory?

    python benchmarks/side_by_side.py

Each job trains stage 2 of the shipped base on a batch of 64 that is in memory already. It reports steps per second of
all jobs together, and processor seconds per step in the program and in the kernel, which do not depend on other work.
Variants take turns.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from _bench import RESULTS, made_with, make_parser, report, take_turns

# What glibc's allocator reads: one arena that grows in large pieces and is not given back after every step.
KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
    "MALLOC_TOP_PAD_": str(2**27),
}


def job(steps: int) -> None:
    """Train for some steps, and print their seconds by the clock, in the program and in the kernel."""
    import resource  # Windows has none

    import torch

    from promptreid import PromptConfig, PromptedCLIP, TwoStageSchedule, load_clip
    from training_throughput import batch_of

    torch.manual_seed(0)
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48)), PromptConfig())
    stage = TwoStageSchedule(model, num_identities=100)[1]
    stage.prepare()
    optimizer = stage.optimizer()
    batch = batch_of(64, model, "cpu")

    def step() -> None:
        out = model(batch["images"], batch["tokens"])
        stage.losses(out["image_features"], out["text_features"], batch["person_ids"])["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(steps):
        step()
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([clock, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime]))


def measure(jobs: int, threads: int, environment: dict[str, str], steps: int) -> dict[str, float]:
    """Start some jobs at once and wait for them."""
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)} | environment
    command = [sys.executable, __file__, "--job", str(steps)]
    started = [subprocess.Popen(command, env=settings, stdout=subprocess.PIPE) for _ in range(jobs)]
    taken = [json.loads(process.communicate()[0]) for process in started]
    clock, program, kernel = (statistics.mean(column) / steps for column in zip(*taken, strict=True))
    return {"steps_per_second": jobs / clock, "program_seconds": program, "kernel_seconds": kernel}


def main() -> None:
    """Measure, print and write down."""
    parser = make_parser(__doc__, output=RESULTS / "side_by_side.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", type=int, metavar="STEPS", help="be one of the jobs")
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job)
        return
    jobs, steps = arguments.jobs, arguments.steps
    variants: dict[str, Any] = {
        f"one job, {jobs} threads": lambda: measure(1, jobs, {}, steps),
        f"{jobs} jobs, one thread": lambda: measure(jobs, 1, {}, steps),
        f"{jobs} jobs, one thread, memory kept": lambda: measure(jobs, 1, KEPT, steps),
    }
    found = take_turns(variants, rounds=arguments.rounds, mirrored=True)
    medians = {
        name: {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}
        for name, runs in found.items()
    }
    report({"jobs": jobs, "steps": steps, "rounds": arguments.rounds} | medians | made_with(), arguments.output)


if __name__ == "__main__":
    main()
