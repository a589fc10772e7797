"""Prompt Decoupling from end to end: adapt a CLIP to text-to-image person re-identification.

    python examples/train_cuhk.py                                    # drawn pedestrians, a few minutes on a laptop
    python examples/train_cuhk.py --data-root DIR --model ViT-B-16 --pretrained openai   # on CUHK-PEDES

Without --data-root it draws its own data set and adapts the small base that ships with promptreid: it shows that
the method runs, and its scores say nothing about CUHK-PEDES.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from promptreid import (
    Gallery,
    PromptConfig,
    PromptedCLIP,
    Trainer,
    TwoStageSchedule,
    evaluate,
    load_clip,
    load_prompts,
    save_prompts,
)
from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_cuhk_pedes
from promptreid.errors import PromptReidError
from promptreid.evaluation.evaluate import encode_split, score
from promptreid.evaluation.pictures.ranking import draw_ranking, rank_captions
from promptreid.synthetic import write_generated


@dataclass(frozen=True)
class Recipe:
    """What is trained for how long; pictures are (height, width)."""

    image_size: tuple[int, int]
    batch_size: int
    epochs: tuple[int, int]  # of stage 1 and of stage 2
    learning_rates: tuple[float, float]
    identities: tuple[int, int, int]  # persons to draw for training, validation and test, without --data-root


# The paper's rates and epochs are not known to us: these are our own choice, near those of CSKT and IRRA.
PAPER = Recipe((384, 128), 64, (30, 60), (3e-4, 1e-5), (400, 60, 200))
DRAWN = Recipe((96, 48), 64, (3, 6), (5e-3, 3e-4), (400, 60, 200))
QUICK = Recipe((96, 48), 64, (1, 1), (5e-3, 3e-4), (100, 20, 40))
METRICS = ("rank1", "rank5", "rank10", "mAP", "mINP")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="CUHK-PEDES' folder (reid_raw.json, imgs/); drawn if left out")
    parser.add_argument("--model", default="promptreid-tiny", help="any open_clip model name")
    parser.add_argument("--pretrained", help='open_clip tag or weight file; "none" for random weights')
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="pixels; default the recipe's")
    parser.add_argument("--prompt-length", type=int, default=4, help="prompts a block, in both encoders")
    parser.add_argument("--output", type=Path, help="folder for everything written; default runs/<model>-seed<seed>")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load pictures")
    parser.add_argument("--quick", action="store_true", help="fewer drawings, one epoch a stage: under a minute")
    arguments = parser.parse_args()
    for name in ("seed", "num_workers"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, expected at least 0")
    if arguments.prompt_length < 1:
        parser.error(f"--prompt-length is {arguments.prompt_length}, expected at least 1: stage 1 trains prompts alone")
    if arguments.image_size and not all(1 <= side <= 2048 for side in arguments.image_size):
        parser.error(f"--image-size is {arguments.image_size}, expected a height and a width of 1 to 2048 pixels")
    if arguments.quick and (arguments.data_root or arguments.model != "promptreid-tiny"):
        parser.error("--quick draws few pedestrians for promptreid-tiny; leave out --data-root and --model, or --quick")
    if arguments.model == "promptreid-tiny":
        arguments.pretrained = arguments.pretrained or "generated"
    elif arguments.pretrained is None:
        parser.error(f'--model {arguments.model} needs --pretrained TAG, such as openai; "none" for random weights')
    try:
        torch.empty(1, device=arguments.device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {arguments.device} cannot be used here: {str(error).splitlines()[0]}")
    return arguments


def refuse_other_runs(output: Path, settings: dict[str, Any]) -> None:
    """Allow a new or empty folder, and one that holds this very run, which is then gone on with."""
    stamp = output / "settings.json"
    if stamp.is_file():
        try:
            found = json.loads(stamp.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FileExistsError(f"{stamp} is damaged ({error}); give another --output, or delete {output}") from error
        if found != settings:
            raise FileExistsError(f"{output} holds a run with other settings; give another --output, or delete it")
    elif output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} holds other files; give an empty or new folder as --output")
    for place in (output, *output.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{place} is a file; give a folder as --output")


def table(results: dict[str, Any]) -> str:
    """The scores in percent, one row a model and direction."""
    lines = [f"{'':<26}" + "".join(f"{name:>8}" for name in METRICS)]
    for direction in ("text to image", "image to text"):
        for key in ("zero_shot", "stage_one", "stage_two"):
            scores = results[key] if direction == "text to image" else results[key]["image_to_text"]
            cells = "".join(f"{100 * scores[name]:8.2f}" for name in METRICS)
            lines.append(f"{key.replace('_', ' '):<12}{direction:<14}{cells}")
    return "\n".join(lines)


def main() -> None:
    """Run the whole method."""
    arguments = parse_arguments()
    started = time.perf_counter()
    drawn = arguments.data_root is None
    recipe = QUICK if arguments.quick else DRAWN if arguments.model == "promptreid-tiny" else PAPER
    pretrained = None if arguments.pretrained == "none" else arguments.pretrained
    image_size = tuple(arguments.image_size or recipe.image_size)
    name = f"{arguments.model}-seed{arguments.seed}{'-quick' if arguments.quick else ''}"
    output = arguments.output or Path("runs", name)
    settings = {
        "data": "generated" if drawn else str(arguments.data_root),
        "model": arguments.model,
        "pretrained": pretrained,
        "prompt_length": arguments.prompt_length,
        "seed": arguments.seed,
        **json.loads(json.dumps({**vars(recipe), "image_size": image_size})),
    }

    # Everything that can be wrong is found out before training starts.
    config = PromptConfig(text_length=arguments.prompt_length, vision_length=arguments.prompt_length)
    refuse_other_runs(output, settings)
    data = None if drawn else load_cuhk_pedes(arguments.data_root)
    torch.manual_seed(arguments.seed)
    clip = load_clip(arguments.model, pretrained=pretrained, image_size=image_size, device=arguments.device)
    model = PromptedCLIP(clip, config)

    output.mkdir(parents=True, exist_ok=True)
    (output / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if data is None:
        drawings = write_generated(output / "data", num_identities=recipe.identities, seed=arguments.seed)
        data = load_cuhk_pedes(drawings)
    print(data.summary())

    train_data = CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer)
    schedule = TwoStageSchedule(
        model,
        num_identities=data.train.num_identities,
        stage_one_epochs=recipe.epochs[0],
        stage_two_epochs=recipe.epochs[1],
        stage_one_learning_rate=recipe.learning_rates[0],
        stage_two_learning_rate=recipe.learning_rates[1],
    )
    with model.disabled():
        results: dict[str, Any] = {"zero_shot": evaluate(model, data.test).as_dict()}

    validation = data.val
    for stage, key in zip(schedule, ("stage_one", "stage_two"), strict=True):
        trainer = Trainer(
            model,
            [stage],
            train_data=train_data,
            batch_size=recipe.batch_size,
            output_dir=output / stage.name,
            seed=arguments.seed,
            device=arguments.device,
            mixed_precision="bf16" if arguments.device.startswith("cuda") else "no",
            num_workers=arguments.num_workers,
            evaluate=validation and (lambda model: evaluate(model, validation, progress=False).text_to_image.as_dict()),
            evaluate_every_epoch=True,
            best_metric=validation and "mAP",
        )
        trainer.fit()  # ends with the epoch that the validation split chose; the test split never chooses
        encoded = encode_split(model, data.test)
        results[key] = score(encoded).as_dict()

    save_prompts(model, output / "model", overwrite=True)
    loaded = load_prompts(output / "model", device=arguments.device)
    again = evaluate(loaded, data.test).as_dict()
    before = results["stage_two"]
    both = ((again, before), (again["image_to_text"], before["image_to_text"]))
    if any(abs(new[name] - old[name]) > 1e-6 for new, old in both for name in METRICS):
        raise RuntimeError(f"the saved model scores {again}, but it scored {before} before saving")

    step = max(1, len(encoded.captions) // 4)
    rankings = rank_captions(encoded, range(0, 4 * step, step)[: len(encoded.captions)])
    draw_ranking(output / "ranking.png", rankings, title="After stage 2: the ten best of the test images")
    gallery = Gallery.build(loaded, [record.path for record in data.test.records])
    question = rankings[0].caption
    best = gallery.search(question, k=1)[0]

    seconds = round(time.perf_counter() - started, 1)
    rule = "epoch with the best validation mAP" if validation else "last epoch"
    results |= {"settings": settings, "checkpoint_rule": rule}
    results |= {"test_images": len(data.test), "test_captions": data.test.num_captions, "seconds": seconds}
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    print(f"saved and loaded again: the same scores\nof {len(gallery)} pictures, “{question}” finds {best.path}")
    print(f"{seconds:.0f} s; results.json, ranking.png and model/ are in {output}")


if __name__ == "__main__":
    try:
        main()
    except (PromptReidError, ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
