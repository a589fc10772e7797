"""Write down what the generator and the small base are: hashes that tests hold them to.

    python tools/freeze_generated.py

Run it once for each version, before anything is compared on its data. Whoever changes the generator raises
`GENERATOR_VERSION` (synthetic/writer.py); new weights of the base get a tag of their own (towers/tiny), and the old
ones stay. Then run this again, and say so in the changelog.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from web_world import PLAIN_WORLD, VARIED_WORLD, draw_web_pair

from promptreid.synthetic import write_generated
from promptreid.synthetic.scenes import SCENES
from promptreid.synthetic.writer import GENERATOR_VERSION
from promptreid.towers.tiny import TINY_FOLDER, TINY_WEIGHTS

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests/synthetic/frozen.json"


def digest(*parts: bytes) -> str:
    """SHA-256 of all parts, one after another."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def generator_hashes() -> dict[str, str]:
    """Hashes of a small dataset and of some of the pretraining world's pairs."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_generated(
            Path(folder) / "set", num_identities=(8, 4, 8), images_per_identity=4, near_twins=0.5, progress=False
        )
        texts = [(root / name).read_bytes() for name in ("reid_raw.json", SCENES)]
        images = [path.read_bytes() for path in sorted((root / "imgs").rglob("*.jpg"))]
    worlds = [PLAIN_WORLD, VARIED_WORLD]
    pairs = [draw_web_pair(np.random.default_rng([0, index]), worlds[index % 2]) for index in range(200)]
    return {
        "street_texts": digest(*texts),
        "street_pictures": digest(*images),
        "web_texts": digest(*(text.encode() for _, text in pairs)),
        "web_pictures": digest(*(image.tobytes() for image, _ in pairs)),
    }


def base_hashes() -> dict[str, str]:
    """Hashes of all the weights that ship and of the prompts."""
    names = ("promptreid-tiny.json", *TINY_WEIGHTS.values(), "prompts/prompts.safetensors")
    return {name: digest((TINY_FOLDER / name).read_bytes()) for name in names}


def freeze() -> dict[str, Any]:
    """Everything that is written down."""
    training = json.loads((TINY_FOLDER / "training-v3.json").read_text(encoding="utf-8"))
    return {
        "generator": {"version": GENERATOR_VERSION, **generator_hashes()},
        "base": {"version": training["version"], **base_hashes()},
        "drawn_with": {"numpy": np.__version__, "pillow": PIL.__version__},
    }


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(freeze(), indent=1) + "\n", encoding="utf-8")
