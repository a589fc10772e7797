"""How much newly created prompts change version 2 of the small base, by initialisation: Rank-1 and cosine.

    python benchmarks/prompt_initialization.py

The cosine is that to the bare features. Invariant: with the default, zero-shot Rank-1 stays within one point of the
bare model's. Drawn pedestrians; nothing measured here says anything about CUHK-PEDES. Prints one line for each tower
and initialisation, and writes benchmarks/results/prompt_initialization.json.
"""

import tempfile
from typing import Any

import torch

from _bench import RESULTS, made_with, make_parser, write_json
from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.data.reader import load_cuhk_pedes
from promptreid.evaluation.evaluate import EncodedSplit, encode_split, score
from promptreid.prompts.config import INITIALIZATIONS
from promptreid.synthetic import write_generated

SEEDS = (0, 1, 2, 3, 4)
IMAGE_SIZE = (96, 48)
IDENTITIES = (300, 1, 1)


def encode(model: PromptedCLIP, folder: str) -> EncodedSplit:
    """Encode every image and caption."""
    return encode_split(model, load_cuhk_pedes(folder).train, progress=False)


def main() -> None:
    """Measure every initialisation in either tower alone, and write it down."""
    arguments = make_parser(__doc__, output=RESULTS / "prompt_initialization.json").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # The training split stands in: large enough, and the test split stays unseen by this choice.
        write_generated(f"{folder}/data", num_identities=IDENTITIES, seed=1, progress=False)
        model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=IMAGE_SIZE))
        with model.disabled():
            bare = encode(model, f"{folder}/data")
        rank1 = 100 * score(bare).text_to_image.rank1
        print(f"{'bare model':<28}rank1 {rank1:6.2f}", flush=True)
        results: dict[str, Any] = {"bare model": {"rank1_percent": round(rank1, 2)}}
        for tower in ("text", "vision"):
            for initialization in INITIALIZATIONS:
                name = f"{tower} {initialization}"
                results[name] = moved(tower, initialization, bare, f"{folder}/data")
                print(f"{name:<28}{results[name]}", flush=True)
    write_json(arguments.output, results | {"seeds": len(SEEDS)} | made_with())
    print(f"written to {arguments.output}")


def moved(tower: str, initialization: str, bare: EncodedSplit, folder: str) -> dict[str, float]:
    """How prompts in one tower alone change the features: mean over seeds, and standard deviation of Rank-1."""
    ranks, cosines = [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        other = "vision" if tower == "text" else "text"
        config = PromptConfig(**{f"{tower}_initialization": initialization, f"{other}_length": 0})
        clip = load_clip("promptreid-tiny", pretrained="generated", image_size=IMAGE_SIZE)
        encoded = encode(PromptedCLIP(clip, config), folder)
        ranks.append(100 * score(encoded).text_to_image.rank1)
        ours, theirs = (
            (encoded.text_features, bare.text_features)
            if tower == "text"
            else (encoded.image_features, bare.image_features)
        )
        cosines.append((ours * theirs).sum(dim=1).mean().item())
    rank, cosine = torch.tensor(ranks), torch.tensor(cosines)
    return {
        "rank1_percent": round(rank.mean().item(), 2),
        "rank1_std": round(rank.std().item(), 2),
        "cosine_to_bare": round(cosine.mean().item(), 4),
    }


if __name__ == "__main__":
    main()
