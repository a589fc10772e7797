"""Difficulty of the generated data: the two measurements that set it, only on the validation split.

    python benchmarks/generated_calibration.py

Zero-shot Rank-1 of the bare small base must lie between 3 and 15 %, Rank-1 after direct fine-tuning (no prompts, no
stage 1) between 50 and 75 %. The test split is never drawn here, and nothing else may be measured before the
generator and the base are frozen. Drawings: no figure says anything about photographs.
"""

import json
import tempfile
import time
from typing import Any

import torch

from _bench import RESULTS, made_with, make_parser, write_json
from promptreid import PromptConfig, PromptedCLIP, evaluate, load_clip
from promptreid.adaptation import adapt
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ReIDDataset
from promptreid.synthetic import write_generated
from promptreid.synthetic.writer import GENERATOR_VERSION
from promptreid.training.recipe import Recipe

IDENTITIES = (2000, 400, 1)  # the split of one is only there because the layout asks for a test split
IMAGE_SIZE = (96, 48)
BATCH_SIZE = 64
EPOCHS = 6
LEARNING_RATE = 1e-3
SEED = 0


def calibrate(data: ReIDDataset, folder: str, *, epochs: int, learning_rate: float) -> dict[str, Any]:
    """Scores on the validation split before and after direct fine-tuning."""
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=IMAGE_SIZE)
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0))
    val = data.val
    if val is None:
        raise RuntimeError("the generated data have no validation split")
    zero_shot = evaluate(model, val).as_dict()
    print(f"zero-shot     {json.dumps(zero_shot)}", flush=True)
    recipe = Recipe(stage_one_epochs=0, stage_two_epochs=epochs, stage_two_learning_rate=learning_rate)
    settings = {"batch_size": BATCH_SIZE, "seed": SEED, "best_metric": None}
    started = time.perf_counter()
    found = adapt(model, data, recipe, output_dir=f"{folder}/run", evaluate_test="never", save=False, **settings)
    training_seconds = time.perf_counter() - started
    fine_tuned = evaluate(model, val).as_dict()
    print(f"fine-tuned    {json.dumps(fine_tuned)}", flush=True)
    return {
        "generator_version": GENERATOR_VERSION,
        "val_images": len(val),
        "val_captions": val.num_captions,
        "zero_shot": zero_shot,
        "direct_fine_tuning": fine_tuned,
        "rank1_after_each_epoch": [round(entry["scores"]["rank1"], 4) for entry in found.histories["stage_two"]],
        "seconds": {"training": round(training_seconds)},
    }


def main() -> None:
    """Measure, print, and write."""
    parser = make_parser(__doc__, output=RESULTS / "generated_calibration.json")
    parser.add_argument("--identities", type=int, default=IDENTITIES[0], help="persons to fine-tune on")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    identities = (arguments.identities, *IDENTITIES[1:])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        data = load_cuhk_pedes(write_generated(f"{folder}/data", num_identities=identities, seed=SEED, progress=False))
        drawing_seconds = time.perf_counter() - started
        found = calibrate(data, folder, epochs=arguments.epochs, learning_rate=arguments.learning_rate)
    found["seconds"] = {"drawing": round(drawing_seconds), **found["seconds"]}
    settings = {
        "identities": identities, "images_per_identity": 4, "image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE,
        "epochs": arguments.epochs, "learning_rate": arguments.learning_rate, "seed": SEED,
    }  # fmt: skip
    write_json(arguments.output, {"settings": settings} | found | made_with(), indent=1)


if __name__ == "__main__":
    main()
