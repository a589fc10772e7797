"""Summary of the synthetic data: counts, lengths, speed, and the contact sheets of docs/synthetic.md.

    python benchmarks/generated_summary.py
    python benchmarks/generated_summary.py --persons 30 --output /tmp/summary.json --sheets /tmp      # a try

Only of the training split; the test split is never looked at.
"""

import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from _bench import RESULTS, made_with, make_parser, report
from promptreid.synthetic import DescribedImage, load_scenes, write_generated
from promptreid.synthetic.writer import GENERATOR_VERSION

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from web_world import PLAIN_WORLD, VARIED_WORLD, draw_web_pair

PERSONS = 500
SHEETS = RESULTS.parents[1] / "docs" / "pictures"
COLUMNS, CELL = 8, (150, 330)


def shares(values: list[str]) -> dict[str, float]:
    """Share of each value, the most frequent first."""
    return {name: round(count / len(values), 3) for name, count in Counter(values).most_common()}


def summarize(images: list[DescribedImage]) -> dict[str, Any]:
    """Distribution of what is drawn and said."""
    people = {image.person_id: image.scene.person for image in images}
    captions = [caption for image in images for caption in image.captions]
    words = np.array([len(caption.text.split()) for caption in captions])
    said = Counter(name for caption in captions for name in caption.said)
    attributes = ("gender", "age", "build", "skin", "hair_length", "upper_kind", "upper_pattern", "lower_kind", "bag",
                  "hat", "glasses", "shoe_kind")  # fmt: skip
    return {
        "persons": len(people),
        "pictures": len(images),
        "captions": len(captions),
        "persons_by": {name: shares([getattr(person, name) for person in people.values()]) for name in attributes},
        "pictures_by": {
            name: shares([str(getattr(image.scene, name)) for image in images])
            for name in ("camera", "view", "occluder")
        },
        "caption_words": {"mean": round(float(words.mean()), 1), "min": int(words.min()), "max": int(words.max())},
        "captions_with_a_mistake": round(float(np.mean([bool(caption.mistakes) for caption in captions])), 3),
        "captions_that_single_out_their_person": round(singled_out(images), 3),
        "captions_that_name": {name: round(count / len(captions), 3) for name, count in said.most_common()},
    }


def singled_out(images: list[DescribedImage]) -> float:
    """Share of captions whose person a reader finds first who knows the truth about everybody; ties count in part."""
    people = {image.person_id: image.scene.person for image in images}
    found = 0.0
    for image in images:
        for caption in image.captions:
            agreement = {
                number: sum(str(getattr(person, name)) == value for name, value in caption.said.items())
                for number, person in people.items()
            }
            most = max(agreement.values())
            if agreement[image.person_id] == most:
                found += 1 / sum(value == most for value in agreement.values())
    return found / sum(len(image.captions) for image in images)


def sheet(cells: list[tuple[Image.Image, str]], path: Path) -> None:
    """Save images with their captions as one image."""
    wide, tall = CELL
    page = Image.new("RGB", (COLUMNS * wide, -(-len(cells) // COLUMNS) * tall), "white")
    canvas = ImageDraw.Draw(page)
    for position, (image, caption) in enumerate(cells):
        left, top = position % COLUMNS * wide, position // COLUMNS * tall
        scale = min(170 / image.height, 140 / image.width)
        page.paste(image.resize((round(image.width * scale), round(image.height * scale))), (left + 4, top + 4))
        canvas.multiline_text((left + 4, top + 180), "\n".join(textwrap.wrap(caption, 25)[:11]), fill="black")
    path.parent.mkdir(exist_ok=True)
    page.save(path, quality=82)


def main() -> None:
    """Draw, count, and write results and sheets."""
    parser = make_parser(__doc__, output=RESULTS / "generated_summary.json")
    parser.add_argument("--sheets", type=Path, default=SHEETS, help="folder for the contact sheets")
    parser.add_argument("--persons", type=int, default=PERSONS, help="at least 24, to fill the sheet")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        root = write_generated(f"{folder}/set", num_identities=(arguments.persons, 1, 1), progress=False)
        speed = 4 * (arguments.persons + 2) / (time.process_time() - started)
        images = [image for image in load_scenes(root) if image.split == "train"]
        chosen = [image for person in range(12, 24) for image in images[4 * person : 4 * person + 2]]
        cells = [(Image.open(image.path), image.captions[0].text) for image in chosen]
        sheet(cells, arguments.sheets / "generated_street.jpg")
    worlds = [PLAIN_WORLD, VARIED_WORLD]
    pairs = [draw_web_pair(np.random.default_rng([1, index]), worlds[index % 2]) for index in range(24)]
    sheet([(image, caption) for image, caption in pairs], arguments.sheets / "generated_web.jpg")
    result = {
        "generator_version": GENERATOR_VERSION,
        **summarize(images),
        "images_per_second_of_one_core": round(speed),
        **made_with(),
    }
    report(result, arguments.output, indent=1)


if __name__ == "__main__":
    main()
