"""How far freshly made prompts move the shipped base, by initialisation: Rank-1 and cosine to bare features.

    python benchmarks/prompt_initialization.py

Invariant: with the default, zero-shot Rank-1 stays within one point of the bare model's. Drawn pedestrians; nothing
measured here says anything about CUHK-PEDES.
"""

import tempfile

import torch

from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.data.cuhk_pedes import load_cuhk_pedes
from promptreid.data.generated import write_generated
from promptreid.evaluation.evaluate import EncodedSplit, encode_split, score
from promptreid.prompts import INITIALIZATIONS

SEEDS = (0, 1, 2, 3, 4)
IMAGE_SIZE = (96, 48)


def encode(model: PromptedCLIP, folder: str) -> EncodedSplit:
    """Encode every image and caption."""
    return encode_split(model, load_cuhk_pedes(folder).train, progress=False)


def main() -> None:
    """Print one line a tower and initialisation."""
    with tempfile.TemporaryDirectory() as folder:
        # The training split stands in: large enough, and the test split stays unseen by this choice.
        write_generated(f"{folder}/data", num_identities=(300, 1, 1), seed=1, progress=False)
        model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=IMAGE_SIZE))
        with model.disabled():
            bare = encode(model, f"{folder}/data")
        print(f"{'bare model':<28}rank1 {100 * score(bare).text_to_image.rank1:6.2f}")
        for tower in ("text", "vision"):
            for initialization in INITIALIZATIONS:
                report(tower, initialization, bare, f"{folder}/data")


def report(tower: str, initialization: str, bare: EncodedSplit, folder: str) -> None:
    """Print how prompts in one tower alone change the features."""
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
    name = f"{tower} {initialization}"
    print(f"{name:<28}rank1 {rank.mean():6.2f} ± {rank.std():.2f}   cosine {cosine.mean():.4f}", flush=True)


if __name__ == "__main__":
    main()
