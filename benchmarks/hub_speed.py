"""Time to load prompts into a ViT-B/16, size of their files, and time that importing promptreid adds.

    python benchmarks/hub_speed.py

Loading: a folder with only prompts into an existing model (8 rounds after the first). Import: `import open_clip`,
and then `import promptreid`, in a fresh process (8 of them).
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _bench import RESULTS, made_with, make_parser, report, spread
from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.towers.fingerprint import weight_digests
from promptreid.towers.loading import ClipSource, model_config, stamp

ROUNDS = 8
MODEL, IMAGE_SIZE = "ViT-B-16", (384, 128)
LENGTH = 4


IMPORTS = """
import time
start = time.perf_counter()
import open_clip
middle = time.perf_counter()
import promptreid
print(middle - start, time.perf_counter() - middle)
"""


def import_seconds() -> tuple[float, float]:
    """Time that a fresh process takes to import open_clip, and promptreid after it."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    return first, second


def measure_imports() -> dict[str, float]:
    """Milliseconds to import open_clip, and how many promptreid adds."""
    alone, added = zip(*(import_seconds() for _ in range(ROUNDS)), strict=True)
    return {
        "open_clip_ms": round(1000 * spread(alone).median, 1),
        "added_ms": round(1000 * spread(added).median, 1),
        "fastest_added_ms": round(1000 * spread(added).lowest, 1),
    }


def measure_loading(folder: Path) -> dict[str, float]:
    """Milliseconds to load prompts into a model, and to make that model, for comparison."""
    start = time.perf_counter()
    clip = load_clip(MODEL, image_size=IMAGE_SIZE)
    making = time.perf_counter() - start
    # The weights are random, which changes no time; they are said to be the tag's, so that they are not saved.
    stamp(clip, ClipSource(MODEL, "openai", IMAGE_SIZE), model_config(clip), digests=weight_digests(clip))
    model = PromptedCLIP(clip, PromptConfig(text_length=LENGTH, vision_length=LENGTH))
    save_prompts(model, folder)
    bare = model.detach()
    seconds: list[float] = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        loaded = load_prompts(folder, model=bare)
        seconds.append(time.perf_counter() - start)
        loaded.detach()
    first, *rest = seconds
    return {
        "make_the_model_ms": round(1000 * making, 1),
        "first_load_ms": round(1000 * first, 1),
        "median_load_ms": round(1000 * spread(rest).median, 1),
        "fastest_load_ms": round(1000 * spread(rest).lowest, 1),
    }


def measure_size(folder: Path) -> dict[str, int]:
    """Bytes of the files, and how many of them are not tensors."""
    files = {path.name: path.stat().st_size for path in sorted(folder.glob("prompt*"))}
    tensors = 4 * LENGTH * 12 * (768 + 512)
    total = sum(files.values())
    return {**files, "tensor_bytes": tensors, "over_tensors_bytes": total - tensors}


def main() -> None:
    """Measure, print and write."""
    arguments = make_parser(__doc__, output=RESULTS / "hub_speed.json").parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "prompts"
        results = {"loading": measure_loading(folder), "size": measure_size(folder), "import": measure_imports()}
    model = f"{MODEL} at {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}, {LENGTH} + {LENGTH} prompts in every block"
    report({"model": model} | results | made_with(), arguments.output)


if __name__ == "__main__":
    main()
