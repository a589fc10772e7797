"""`promptreid train`: adapts a model to a dataset, in both stages."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.options import LARGEST_SIDE, add_device_argument, add_layout_argument, check_device, folder_to_write
from promptreid.cli.output import Output
from promptreid.defaults import BATCH_SIZE
from promptreid.prompts.config import PromptConfig
from promptreid.towers.tiny import TINY_NAME

if TYPE_CHECKING:
    from promptreid.adaptation import Adaptation
    from promptreid.training.recipe import Recipe

DESCRIPTION = """Train prompts with frozen encoders, then the encoders with frozen prompts; score before, between and
after; save the model in OUTPUT/model, and figures of what changed beside it. A killed run resumes when the same
command is run again. The validation split chooses the epoch, and the test split never does. Needs the extras train
and viz."""
NEEDS = [(None, "accelerate", "train"), (None, "matplotlib", "viz")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("root", type=Path, help="the dataset's folder (see `promptreid check`)")
    parser.add_argument("--output", type=folder_to_write, required=True, help="folder for everything written")
    add_training_arguments(parser)
    parser.add_argument(
        "--cache-images", type=Path, metavar="DIR", help="keep decoded images there: large, and training is faster"
    )
    add_layout_argument(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model is trained and how; `complete_training_arguments` reads them."""
    parser.add_argument("--model", default=TINY_NAME, help="an open_clip name; default %(default)s")
    parser.add_argument("--pretrained", help='its weights: a tag such as openai, or a file; "none" for random weights')
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"), help="pixels; default the model's preset"
    )
    parser.add_argument(
        "--prompt-length",
        type=int,
        default=PromptConfig.text_length,
        help="prompts per block in both encoders; default %(default)s",
    )
    parser.add_argument(
        "--epochs", type=int, nargs=2, metavar=("ONE", "TWO"), help="of the stages; default the model's preset"
    )
    parser.add_argument(
        "--learning-rates",
        type=float,
        nargs=2,
        metavar=("ONE", "TWO"),
        help="of the stages; default the model's preset",
    )
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images")
    add_device_argument(parser)


def complete_training_arguments(settings: argparse.Namespace) -> "Recipe":
    """Check the options of `add_training_arguments` and fill in the preset of the model where nothing was given.

    Args:
        settings: The parsed arguments; afterwards `pretrained` is a tag or None, `device` a device, and `image_size`,
            `epochs` and `learning_rates` are pairs.

    Returns:
        The recipe with these epochs and learning rates.

    Raises:
        ValueError: An option is out of range, or the device cannot be used.
    """
    from promptreid.adaptation import preset_for

    preset = preset_for(settings.model)
    recipe = preset.recipe.with_stages(epochs=settings.epochs, learning_rates=settings.learning_rates)
    lowest = {"seed": 0, "num_workers": 0, "batch_size": 2, "prompt_length": 1 if recipe.stage_one_epochs else 0}
    for name, minimum in lowest.items():
        if getattr(settings, name) < minimum:
            option = f"--{name.replace('_', '-')}"
            reasons = {"prompt_length": ": stage 1 trains prompts alone", "batch_size": ": pairs are compared"}
            reason = reasons.get(name, "") if minimum else ""
            raise ValueError(f"{option} is {getattr(settings, name)}, expected at least {minimum}{reason}")
    if settings.image_size and not all(1 <= side <= LARGEST_SIDE for side in settings.image_size):
        raise ValueError(
            f"--image-size is {settings.image_size}, expected a height and a width of 1 to {LARGEST_SIDE} pixels"
        )
    pretrained = settings.pretrained or preset.pretrained
    if pretrained is None:
        raise ValueError(f'--model {settings.model} needs --pretrained TAG, such as openai; "none" for random weights')
    settings.device = check_device(settings.device)
    settings.pretrained = None if pretrained == "none" else pretrained
    settings.image_size = tuple(settings.image_size or preset.image_size)
    settings.epochs = (recipe.stage_one_epochs, recipe.stage_two_epochs)
    settings.learning_rates = (recipe.stage_one_learning_rate, recipe.stage_two_learning_rate)
    return recipe


def run(console: Output, /, **given: Any) -> int:
    """Train the model."""
    import torch

    from promptreid.adaptation import adapt
    from promptreid.data.reader import load_dataset
    from promptreid.evaluation.evaluate import score_table, write_evaluation
    from promptreid.model.prompted_clip import PromptedCLIP
    from promptreid.towers.loading import load_clip

    settings = argparse.Namespace(**given)
    recipe = complete_training_arguments(settings)
    config = PromptConfig(text_length=settings.prompt_length, vision_length=settings.prompt_length)
    data = load_dataset(settings.root, layout=settings.layout)
    torch.manual_seed(settings.seed)
    clip = load_clip(
        settings.model, pretrained=settings.pretrained, image_size=settings.image_size, device=settings.device
    )
    console.say(data.summary())
    result = adapt(
        PromptedCLIP(clip, config),
        data,
        recipe,
        output_dir=settings.output,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=settings.device,
        num_workers=settings.num_workers,
        cache_dir=settings.cache_images,
        trackers=(),
        progress=console.progress,
    )
    console.record(**result.as_dict())
    console.say(*score_table(result.as_dict()["results"]).split("\n"))
    last = list(result.encoded)[-1]
    write_evaluation(settings.output, result.encoded[last], result.scores[last])
    _draw(settings.output, result)
    rule = result.checkpoint_rule
    console.say(f"kept: {rule}; results.json, metrics.json, pictures and model/ are in {settings.output}")
    return 0


def _draw(folder: Path, result: "Adaptation") -> None:
    """What the stages changed: similarities, features in the plane, and how training went."""
    from promptreid.evaluation.pictures.curves import draw_training_curves
    from promptreid.evaluation.pictures.feature_space import draw_feature_map, draw_similarities

    draw_similarities(folder / "similarities.png", result.encoded)
    draw_feature_map(folder / "feature_map.png", result.encoded)
    history = [entry for entries in result.histories.values() for entry in entries]
    draw_training_curves(folder / "curves.png", history)
