"""Pictures a second of `Gallery.build` on files, against the bare encoder on the same pictures in memory.

    python benchmarks/search_indexing.py

ViT-B-16 with random weights at 384 x 128, which is as fast as with trained ones. Prints the share of the encoder's own
throughput, measured by turns in one process, and writes it to benchmarks/results/search_indexing.json.
"""

import datetime
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip
from promptreid.data.images import open_image
from promptreid.synthetic import write_generated

MODEL, IMAGE_SIZE, IDENTITIES, BATCH_SIZE, REPEATS = "ViT-B-16", (384, 128), (10, 1, 5), 16, 3
RESULT = Path(__file__).parent / "results" / "search_indexing.json"


def main() -> None:
    """Measure and report."""
    model = PromptedCLIP(load_clip(MODEL, image_size=IMAGE_SIZE), PromptConfig(text_length=4, vision_length=4)).eval()
    with tempfile.TemporaryDirectory() as folder:
        root = write_generated(Path(folder, "data"), num_identities=IDENTITIES, progress=False) / "imgs"
        paths = sorted(root.rglob("*.jpg"))
        pictures = torch.stack([model.eval_transform(open_image(path)) for path in paths])
        times: dict[str, list[float]] = {"encoder": [], "indexing": []}
        for _ in range(REPEATS):
            begin = time.perf_counter()
            with torch.inference_mode():
                for batch in pictures.split(BATCH_SIZE):
                    model.encode_image(batch, normalize=True)
            times["encoder"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            Gallery.build(model, root, batch_size=BATCH_SIZE, progress=False)
            times["indexing"].append(time.perf_counter() - begin)
    best = {name: min(found) for name, found in times.items()}
    result = {
        "model": f"{MODEL} {IMAGE_SIZE}",
        "pictures": len(paths),
        "pictures_a_second": {name: round(len(paths) / taken, 2) for name, taken in best.items()},
        "share_of_the_encoder": best["encoder"] / best["indexing"],
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
