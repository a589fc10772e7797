"""Prompt Decoupling under several seeds on drawn pedestrians: mean ± standard deviation.

    python benchmarks/training_seeds.py --seeds 0 1 2

The validation split chooses each stage's epoch; the test split is looked at once, at the end. After an interruption
the same command resumes. What it measures is the spread between seeds on drawings and says nothing about CUHK-PEDES.
Writes benchmarks/results/training_seeds.json.
"""

from pathlib import Path

import torch

from _bench import METRICS, RESULTS, made_with, make_parser, report
from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.adaptation import adapt
from promptreid.data.reader import load_cuhk_pedes
from promptreid.synthetic import write_generated
from promptreid.training.recipe import Recipe
from promptreid.training.seeds import run_seeds

IDENTITIES = (100, 20, 40)
IMAGE_SIZE = (96, 48)
RECIPE = Recipe().with_stages(epochs=(1, 2), learning_rates=(5e-3, 3e-4))
BATCH_SIZE = 64


def train(seed: int, folder: Path) -> dict[str, float]:
    """Train and test one run."""
    data = load_cuhk_pedes(write_generated(folder.parent / "data", num_identities=IDENTITIES, seed=0, progress=False))
    torch.manual_seed(seed)
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=IMAGE_SIZE)
    model = PromptedCLIP(clip, PromptConfig())
    found = adapt(
        model,
        data,
        RECIPE,
        output_dir=folder / "run",
        evaluate_test="last",
        save=False,
        batch_size=BATCH_SIZE,
        seed=seed,
    )
    [scores] = found.scores.values()
    return {name: scores.text_to_image.as_dict()[name] for name in METRICS}


def main() -> None:
    """Run the seeds and print the table."""
    parser = make_parser(__doc__, output=RESULTS / "training_seeds.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/training_seeds"), help="folder for checkpoints")
    arguments = parser.parse_args()
    found = run_seeds(train, arguments.seeds, output_dir=arguments.runs)
    print(found.table())
    report(found.as_dict() | made_with(), arguments.output)


if __name__ == "__main__":
    main()
