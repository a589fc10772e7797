"""Prompt Decoupling from end to end: adapt a CLIP to text-to-image person re-identification.

    python examples/train_cuhk.py                                    # drawn pedestrians, a few minutes on a laptop
    python examples/train_cuhk.py --data-root DIR --model ViT-B-16 --pretrained openai   # on CUHK-PEDES

Without --data-root it draws a dataset and adapts the small base that ships; such scores say nothing about CUHK-PEDES.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from promptreid import Gallery, Recipe, adapt
from promptreid.adaptation import load_and_verify
from promptreid.cli.train_model import NEEDS, add_training_arguments, complete_training_arguments, make_model
from promptreid.data.reader import load_cuhk_pedes
from promptreid.errors import PromptReidError, missing_extra
from promptreid.evaluation.evaluate import score_table
from promptreid.evaluation.pictures.ranking import draw_ranking, rank_captions
from promptreid.files import write_sealed_json
from promptreid.synthetic import write_generated
from promptreid.synthetic.camera import CAMERAS
from promptreid.training.run_folder import claim_folder

IDENTITIES = (400, 60, 200)  # persons to draw for training, validation and test
QUICK_IDENTITIES, QUICK_EPOCHS = (100, 20, 40), (1, 1)
CAMERA_NAMES = tuple(sorted(camera.name for camera in CAMERAS))  # of what is drawn
NOT_SETTINGS = ("data_root", "output", "quick", "device", "num_workers")


def parse_arguments() -> tuple[argparse.Namespace, Recipe]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="CUHK-PEDES' folder (reid_raw.json, imgs/); drawn if left out")
    parser.add_argument("--output", type=Path, help="folder for everything written; default runs/<model>-seed<seed>")
    parser.add_argument("--quick", action="store_true", help="fewer drawings, one epoch per stage: under a minute")
    add_training_arguments(parser)
    given = parser.parse_args()
    if given.quick and (given.data_root or given.model != "promptreid-tiny"):
        parser.error("--quick draws few pedestrians for promptreid-tiny; leave out --data-root and --model, or --quick")
    given.epochs = given.epochs or (QUICK_EPOCHS if given.quick else None)
    given.identities = QUICK_IDENTITIES if given.quick else IDENTITIES
    arguments, recipe = complete_training_arguments(vars(given))  # what was not given is the preset of the model
    return argparse.Namespace(**arguments), recipe


def main() -> None:
    """Run the whole method."""
    started = time.perf_counter()
    given, recipe = parse_arguments()
    output = given.output or Path("runs", f"{given.model}-seed{given.seed}{'-quick' if given.quick else ''}")
    settings = {name: value for name, value in vars(given).items() if name not in NOT_SETTINGS}
    settings["data"] = str(given.data_root or "generated")

    # What is missing or wrong is found before anything is written.
    for _, package, extra in NEEDS:
        if find_spec(package) is None:
            raise missing_extra("examples/train_cuhk.py", package, extra)
    data = given.data_root and load_cuhk_pedes(given.data_root)
    model = make_model(vars(given), cameras=data.train.cameras if data else CAMERA_NAMES)
    claim_folder(output, settings, note="settings.json", sole=True)
    data = data or load_cuhk_pedes(write_generated(output / "data", num_identities=given.identities, seed=given.seed))
    print(data.summary())

    # Stage 1 trains the prompts, stage 2 the encoders; the validation split chooses each epoch, never the test split.
    run = {name: getattr(given, name) for name in ("batch_size", "steps_per_epoch", "seed", "device", "num_workers")}
    result = adapt(model, data, recipe, output_dir=output, **run)
    saved = load_and_verify(result, data.test, device=given.device)
    encoded = list(result.encoded.values())[-1]
    rankings = rank_captions(encoded, range(0, len(encoded.captions), max(1, len(encoded.captions) // 4))[:4])
    draw_ranking(output / "ranking.png", rankings, title="After stage 2: the ten best of the test images")
    result.write_report(output / "report.html", data, settings=settings)
    gallery = Gallery(saved, data.test.paths, encoded.image_features)  # Gallery.build(saved, paths) encodes them itself
    best = gallery.search(rankings[0].caption, k=1)[0]

    scores = result.as_dict()["results"]
    record = {**scores, "settings": settings, "checkpoint_rule": result.checkpoint_rule, "test_images": len(data.test)}
    record |= {"test_captions": data.test.num_captions, "seconds": round(time.perf_counter() - started, 1)}
    write_sealed_json(output / "results.json", record)
    print(score_table(scores))
    print(f"saved and loaded again: the same scores; of {len(gallery)}, “{rankings[0].caption}” finds {best.path}")
    print(f"{record['seconds']:.0f} s; results.json, ranking.png, report.html and model/ are in {output}")


if __name__ == "__main__":
    try:
        main()
    except (PromptReidError, ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
