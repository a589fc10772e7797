"""Peak memory of large contrastive batches with gradient caching, on the shipped base.

    python benchmarks/training_memory.py

Every variant takes two steps of stage 2 in a process of its own. "peak" is the largest resident memory of the whole
process, Python and torch included; "above start" leaves out what it took before training began. Writes
benchmarks/results/training_memory.json.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from promptreid import PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule, load_clip

VARIANTS = {  # name: batch size, pairs encoded at a time
    "64": (64, None),
    "256": (256, None),
    "1024 in chunks of 64": (1024, 64),
}
IMAGE_SIZE = (96, 48)
RESULT = Path(__file__).parent / "results" / "training_memory.json"


class Pictures(Dataset[dict[str, Tensor]]):
    """Random pictures, drawn when they are asked for."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.person_ids = torch.arange(length) % 100

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.zeros(77, dtype=torch.int64)
        tokens[0], tokens[1:30], tokens[30] = 49406, torch.randint(1, 49000, (29,)), 49407
        return {"images": torch.randn(3, *IMAGE_SIZE), "tokens": tokens, "person_ids": self.person_ids[index]}


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(batch_size: int, chunk_size: int | None) -> None:
    """Take two steps and print the memory before and after."""
    torch.manual_seed(0)
    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=IMAGE_SIZE), PromptConfig())
    stages = TwoStageSchedule(model, num_identities=100, stage_one_epochs=0, stage_two_epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            stages,
            train_data=Pictures(2 * batch_size),
            batch_size=batch_size,
            output_dir=folder,
            device="cpu",
            chunk_size=chunk_size,
            progress=False,
        )
        start = peak_mib()
        trainer.fit()
    print(json.dumps([start, peak_mib()]))


def main() -> None:
    """Measure every variant and write the result."""
    peaks: dict[str, dict[str, float]] = {}
    for name, (batch_size, chunk_size) in VARIANTS.items():
        command = [sys.executable, __file__, str(batch_size), str(chunk_size or 0)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        start, peak = json.loads(printed.splitlines()[-1])
        peaks[name] = {"peak": round(peak), "above_start": round(peak - start)}
        print(f"{name:<24}{peak:8.0f} MiB{peak - start:8.0f} MiB above start", flush=True)
    result = {
        "peak_ratio_to_64": {name: round(values["peak"] / peaks["64"]["peak"], 3) for name, values in peaks.items()},
        "above_start_ratio_to_64": {
            name: round(values["above_start"] / peaks["64"]["above_start"], 3) for name, values in peaks.items()
        },
        "mib": peaks,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": date.today().isoformat(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), int(sys.argv[2]) or None)
    else:
        main()
