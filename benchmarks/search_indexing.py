"""Images per second of `Gallery.build` on files, compared with the bare encoder on the same images in memory.

    python benchmarks/search_indexing.py

ViT-B-16 with random weights at 384 x 128, which is as fast as with trained ones. Prints the share of the encoder's own
throughput, measured in turn in one process, and writes it to benchmarks/results/search_indexing.json.
"""

import tempfile
from pathlib import Path

import torch

from _bench import RESULTS, made_with, make_parser, report, seconds, spread, take_turns
from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip
from promptreid.data.images import open_image
from promptreid.synthetic import write_generated

MODEL, IMAGE_SIZE, IDENTITIES, BATCH_SIZE, REPEATS = "ViT-B-16", (384, 128), (10, 1, 5), 16, 3


def measure(model: PromptedCLIP, folder: Path) -> tuple[dict[str, float], int]:
    """Shortest time to encode and to index the images of a folder, and how many there are."""
    paths = sorted(folder.rglob("*.jpg"))
    images = torch.stack([model.eval_transform(open_image(path)) for path in paths])

    def encode() -> None:
        with torch.inference_mode():
            for batch in images.split(BATCH_SIZE):
                model.encode_image(batch, normalize=True)

    variants = {
        "encoder": lambda: seconds(encode),
        "indexing": lambda: seconds(lambda: Gallery.build(model, folder, batch_size=BATCH_SIZE, progress=False)),
    }
    times = take_turns(variants, rounds=REPEATS)
    return {name: spread(taken).lowest for name, taken in times.items()}, len(paths)


def main() -> None:
    """Measure and report."""
    arguments = make_parser(__doc__, output=RESULTS / "search_indexing.json").parse_args()
    model = PromptedCLIP(load_clip(MODEL, image_size=IMAGE_SIZE), PromptConfig(text_length=4, vision_length=4)).eval()
    with tempfile.TemporaryDirectory() as folder:
        root = write_generated(Path(folder, "data"), num_identities=IDENTITIES, progress=False)
        best, count = measure(model, root / "imgs")
    result = {
        "model": f"{MODEL} {IMAGE_SIZE}",
        "pictures": count,
        "pictures_a_second": {name: round(count / taken, 2) for name, taken in best.items()},
        "share_of_the_encoder": best["encoder"] / best["indexing"],
        **made_with(),
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
