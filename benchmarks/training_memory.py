"""Peak memory of large contrastive batches with gradient caching, on the shipped base.

    python benchmarks/training_memory.py

Every variant takes two steps of stage 2 in its own process. "peak" is the largest resident memory of the whole
process, Python and torch included; "above start" leaves out what it took before training began. Writes
benchmarks/results/training_memory.json.
"""

import re
import resource
import tempfile
from pathlib import Path

import torch

from _bench import RESULTS, RandomPairs, in_own_process, made_with, make_parser, report
from promptreid import PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule, load_clip

VARIANTS = {  # name: batch size, pairs encoded at a time
    "64": (64, None),
    "256": (256, None),
    "1024 in chunks of 64": (1024, 64),
}
IMAGE_SIZE = (96, 48)


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.M) if status.is_file() else None
    if found:  # on Linux; there ru_maxrss of a child begins at what its parent had
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(batch_size: int, chunk_size: int | None) -> tuple[float, float]:
    """Take two steps; the peak memory before and after."""
    torch.manual_seed(0)
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=IMAGE_SIZE), PromptConfig())
    stages = TwoStageSchedule(model, num_identities=100, stage_one_epochs=0, stage_two_epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            stages,
            train_data=RandomPairs(2 * batch_size, IMAGE_SIZE),  # made when they are asked for, to take no memory
            batch_size=batch_size,
            output_dir=folder,
            device="cpu",
            chunk_size=chunk_size,
            progress=False,
        )
        start = peak_mib()
        trainer.fit()
    return start, peak_mib()


def main() -> None:
    """Measure every variant and write the result."""
    arguments = make_parser(__doc__, output=RESULTS / "training_memory.json").parse_args()
    peaks: dict[str, dict[str, float]] = {}
    for name, variant in VARIANTS.items():
        start, peak = in_own_process(measure, *variant)
        peaks[name] = {"peak": round(peak), "above_start": round(peak - start)}
        print(f"{name:<24}{peak:8.0f} MiB{peak - start:8.0f} MiB above start", flush=True)

    def ratios(kind: str) -> dict[str, float]:
        return {name: round(values[kind] / peaks["64"][kind], 3) for name, values in peaks.items()}

    result = {
        "peak_ratio_to_64": ratios("peak"),
        "above_start_ratio_to_64": ratios("above_start"),
        "mib": peaks,
        **made_with(),
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
