"""The weights that a run starts from: the small base as it ships, or pretrained further on its own domain."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from plan import HERE, Run

PRETRAINING = HERE.parents[1] / "tools" / "pretrain_tiny.py"
FURTHER_STEPS, FURTHER_PAIRS = 1000, 48_000  # about as many steps as what ships has seen, on pairs of their own


def base_weights(run: Run, scratch: Path) -> str:
    """What `load_clip` takes for `pretrained`; the first run that needs the other base pretrains it.

    Args:
        run: Says which one.
        scratch: Gets the other base's weights, in `base-further`.

    Raises:
        subprocess.CalledProcessError: Pretraining failed; its own message stands above.
        ValueError: The folder holds weights of another pretraining, or damaged ones.
    """
    if run.base == "shipped":
        return "generated"
    folder = scratch / "base-further"
    record, weights = folder / "training.json", folder / "promptreid-tiny.safetensors"
    if not record.is_file():  # it is written last
        print(f"pretraining the other base, {FURTHER_STEPS} steps; about 20 minutes on a core", flush=True)
        steps, pairs = str(FURTHER_STEPS), str(FURTHER_PAIRS)
        command = [sys.executable, str(PRETRAINING), "--further", steps, "--pairs", pairs, "--output", str(folder)]
        subprocess.run(command, check=True)
    made = json.loads(record.read_text(encoding="utf-8"))
    settings = made["settings"]["further"], made["settings"]["pairs"]
    if settings != (FURTHER_STEPS, FURTHER_PAIRS) or weights_hash(weights) != made["weights_sha256"]:
        raise ValueError(
            f"{folder} holds damaged weights or those of another pretraining; delete it, and they are made"
        )
    return str(weights)


def weights_hash(weights: Path | str) -> str:
    """SHA-256 of a weight file."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()
