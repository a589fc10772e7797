"""Search your own folder of pedestrian crops by a sentence.

    python examples/search_folder.py                                             # drawn people
    python examples/search_folder.py FOLDER "a man in a blue jacket with a white bag"

The small model below knows only drawn pedestrians: replace it with another one for photographs. Images of people can be
biometric data: read docs/responsible_use.md before you search them.
"""

import sys
from pathlib import Path

from promptreid import Gallery, load_prompts
from promptreid.errors import PromptReidError
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import tiny_prompts

OUTPUT = Path("runs/search_folder")
SENTENCE = "a woman in a red top and blue jeans with a black backpack"
HOW_MANY = 5
MODEL = tiny_prompts()  # or a folder that save_prompts wrote, or "user/name" on the Hub


def main() -> None:
    """Encode the folder once, keep its features, search."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else write_generated(OUTPUT / "data", num_identities=(2, 2, 24))
    sentence = sys.argv[2] if len(sys.argv) > 2 else SENTENCE
    model = load_prompts(MODEL)

    gallery = Gallery.build(model, folder)
    gallery.save(OUTPUT / "gallery")  # the next time: Gallery.load(OUTPUT / "gallery", model)
    hits = gallery.search(sentence, k=min(HOW_MANY, len(gallery)))
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank}. {hit.score:.3f} {hit.path}")


if __name__ == "__main__":
    try:
        main()
    except (PromptReidError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
