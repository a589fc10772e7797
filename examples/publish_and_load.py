"""Save the prompts, load them elsewhere, and check that nothing changed.

    python examples/publish_and_load.py                       # to a folder on this machine
    python examples/publish_and_load.py you/your-prompts      # and to a private repository on the Hub

Log in to the Hub first: `hf auth login`.
"""

import sys
from pathlib import Path

from promptreid import PromptConfig, PromptedCLIP, evaluate, load_clip, load_prompts, push_prompts, save_prompts
from promptreid.data import load_dataset
from promptreid.errors import PromptReidError
from promptreid.hub.card import CardDetails
from promptreid.synthetic import write_generated

DATA = "runs/publish_and_load/data"
OUTPUT = "runs/publish_and_load/model"
MODEL, PRETRAINED, IMAGE_SIZE = "promptreid-tiny", "generated_v3", (96, 48)  # or "ViT-B-16", "openai", (384, 128)


def main() -> None:
    """Write a folder of prompts and load it again."""
    data = load_dataset(write_generated(DATA, num_identities=(2, 2, 16), seed=0))
    model = PromptedCLIP(load_clip(MODEL, pretrained=PRETRAINED, image_size=IMAGE_SIZE), PromptConfig())
    ...  # train it, as examples/own_training_loop.py does

    folder = save_prompts(model, OUTPUT, overwrite=True)
    for path in sorted(Path(folder).iterdir()):
        print(f"{path.stat().st_size:>10,} bytes  {path.name}")

    loaded = load_prompts(folder)  # makes the open_clip model too, and checks that the prompts belong to it
    before, after = evaluate(model, data.test), evaluate(loaded, data.test)
    if len(sys.argv) > 1:
        details = CardDetails(dataset="generated pedestrians (drawings)")  # the card says what the scores are of
        print(push_prompts(model, sys.argv[1], metrics=after.as_dict(), details=details))
    print(f"rank-1 before {before.text_to_image.rank1:.4f}, after {after.text_to_image.rank1:.4f}")


if __name__ == "__main__":
    try:
        main()
    except (PromptReidError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
