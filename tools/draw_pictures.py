"""Draws the pictures of docs/pictures.md: adapts the small model to drawn pedestrians and copies what that leaves.

Which parts answer which words is asked of the small model with the prompts that ship with it.

python tools/draw_pictures.py            # docs/pictures/{similarities,feature_map,curves,phrases}.png; some minutes
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from promptreid import load_prompts
from promptreid.cli.main import main as command
from promptreid.data.reader import load_dataset
from promptreid.evaluation.pictures.occlusion import draw_occlusion_maps
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import tiny_prompts

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
IDENTITIES, EPOCHS, PHRASES = (150, 20, 40), ("3", "6"), 3


def main() -> None:
    """Train, draw, copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder of the pictures; default %(default)s")
    parser.add_argument("--phrases", nargs="+", help="default: parts of the pictured person's caption")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder, "data"), Path(folder, "run")
        write_generated(data, num_identities=IDENTITIES, seed=0, progress=False)
        if command(["train", str(data), "--output", str(run), "--epochs", *EPOCHS]) != 0:
            raise SystemExit("training failed")
        for name in ("similarities.png", "feature_map.png", "curves.png"):
            shutil.copyfile(run / name, settings.output / name)
        record = load_dataset(data).test.records[0]
        print(record.captions)
        phrases = settings.phrases or parts(record.captions[0])
        draw_occlusion_maps(settings.output / "phrases.png", load_prompts(tiny_prompts()), record.path, phrases)


def parts(caption: str) -> list[str]:
    """The first few things of a caption that follow an article, five words of each at most."""
    found = re.findall(r"\ban? ([^.,]+)", caption)
    return [" ".join(words.split()[:5]) for words in found[:PHRASES]] or [caption]


if __name__ == "__main__":
    main()
