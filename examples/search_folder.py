"""Search your own folder of pedestrian crops by a sentence.

    python examples/search_folder.py                                             # drawn people
    python examples/search_folder.py FOLDER "a man in a blue jacket with a white bag"

The small model below knows only drawn pedestrians: replace it with another one for photographs. Images of people can be
biometric data: read docs/responsible_use.md before you search them.
"""

import sys
from pathlib import Path

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip
from promptreid.synthetic import write_generated

OUTPUT = Path("runs/search_folder")
SENTENCE = "a woman in a red top and blue jeans with a black backpack"
HOW_MANY = 5
MODEL, PRETRAINED, IMAGE_SIZE = "promptreid-tiny", "generated_v3", (96, 48)  # or load_prompts("your-folder")


def main() -> None:
    """Encode the folder once, keep its features, search."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else write_generated(OUTPUT / "data", num_identities=(2, 2, 24))
    sentence = sys.argv[2] if len(sys.argv) > 2 else SENTENCE
    model = PromptedCLIP(load_clip(MODEL, pretrained=PRETRAINED, image_size=IMAGE_SIZE), PromptConfig()).eval()

    gallery = Gallery.build(model, folder)
    gallery.save(OUTPUT / "gallery")  # the next time: Gallery.load(OUTPUT / "gallery", model)
    hits = gallery.search(sentence, k=min(HOW_MANY, len(gallery)))
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank}. {hit.score:.3f} {hit.path}")


if __name__ == "__main__":
    main()
