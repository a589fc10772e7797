"""`promptreid train`: adapts a model to a dataset, in both stages."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from promptreid.cli.argument_types import folder_to_read, folder_to_write, positive, positive_or_none, whole
from promptreid.cli.model_names import check_listed, check_names, check_start
from promptreid.cli.options import (
    LARGEST_SEED,
    LARGEST_SIDE,
    DividedDataArguments,
    add_data_arguments,
    add_device_argument,
    add_division_arguments,
    add_revision_argument,
    at_revision,
    check_apart,
    check_device,
    check_division,
    joined_processes,
    refuse_unused,
)
from promptreid.cli.output import Output
from promptreid.defaults import BATCH_SIZE, IMAGE_SIZE, OnBad
from promptreid.errors import CheckpointError, shell_word
from promptreid.prompts.config import PROMPT_FORMS, PromptConfig, PromptForm
from promptreid.towers.tiny import TINY_NAME

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.data.records import ReIDDataset
    from promptreid.model.prompted_clip import PromptedCLIP
    from promptreid.training.recipe import Recipe

DESCRIPTION = """Train prompts with frozen encoders, then the encoders with frozen prompts; score before, between and
after; save the model in OUTPUT/model, and figures of what changed beside it. A killed run resumes when the same
command is run again. The validation split chooses the epoch, and the test split never does. Needs the extras train
and viz."""
# The ways of `promptreid.training.ablations`, which would import torch.
WAYS = (
    "pd", "direct", "direct_short", "direct_id_warmup", "stage_one", "joint", "prompts_both", "pd_no_id",
    "text_prompts", "image_prompts", "norms_stage_one",
)  # fmt: skip
ALGORITHMS = ("adamw", "adam", "sgd")  # those of Stage, which would import torch
MATCHINGS = ("contrastive", "sdm", "nitc")  # those of Recipe, which would import torch
NEEDS = [(None, "accelerate", "train"), (None, "matplotlib", "viz")]
_PROJECT = "promptreid"
_SPLIT_NOTE = "split.json"
_OF_STAGE_ONE = ("self_consistency", "average_prompts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("root", type=folder_to_read, help="the dataset's folder (see `promptreid check`)")
    parser.add_argument("--output", type=folder_to_write, required=True, help="folder for everything written")
    add_training_arguments(parser)
    parser.add_argument(
        "--cache-images",
        type=folder_to_write,
        metavar="DIR",
        help="cache decoded images there: large, but training is faster",
    )
    add_data_arguments(parser)
    add_division_arguments(parser)
    parser.add_argument(
        "--seeds", type=whole(0, LARGEST_SEED), nargs="+", metavar="SEED", help="train once for each: mean and spread"
    )
    parser.add_argument(
        "--compare",
        choices=WAYS,
        nargs="+",
        metavar="WAY",
        help=f"train in several ways under the same seeds: {', '.join(WAYS)}",
    )
    parser.add_argument(
        "--tracker", action="append", metavar="NAME", help="wandb, mlflow, tensorboard or another; may be repeated"
    )
    parser.add_argument("--project", metavar="NAME", help=f"under which trackers keep the run; default {_PROJECT}")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `TrainingArguments`, which say which model is trained and how."""
    parser.add_argument(
        "--model", default=TINY_NAME, help="an open_clip name, or hf-hub:USER/NAME; default %(default)s"
    )
    parser.add_argument("--pretrained", help='its weights: a tag such as openai, or a file; "none" for random weights')
    parser.add_argument(
        "--image-size",
        type=whole(1, LARGEST_SIDE),
        nargs=2,
        metavar=("H", "W"),
        help="pixels; default the model's preset",
    )
    parser.add_argument(
        "--prompt-length",
        type=whole(0),
        default=PromptConfig.text_length,
        help="prompts per block in both encoders; default %(default)s",
    )
    parser.add_argument(
        "--prompt-kind",
        choices=PROMPT_FORMS,
        default=PromptConfig.kind,
        help="separate tokens in both encoders; image prompts made of the text prompts; keys and values of "
        "attention; or image prompts for each camera of the training images; default %(default)s",
    )
    parser.add_argument(
        "--prompt-depth",
        type=whole(1),
        metavar="BLOCKS",
        help="first blocks of both encoders that own prompts; 1 for prompts that are kept to the end; default all",
    )
    of_stages = "of the stages; default the model's preset"
    parser.add_argument("--epochs", type=whole(0), nargs=2, metavar=("ONE", "TWO"), help=of_stages)
    parser.add_argument("--learning-rates", type=positive, nargs=2, metavar=("ONE", "TWO"), help=of_stages)
    parser.add_argument(
        "--matching", choices=MATCHINGS, help="loss that pulls pairs together in both stages; default contrastive"
    )
    _add_optimizer_arguments(parser)
    _add_regularization_arguments(parser)
    parser.add_argument(
        "--batch-size", type=whole(2, why="pairs are compared"), default=BATCH_SIZE, help="default: %(default)s"
    )
    parser.add_argument("--steps-per-epoch", type=whole(1), help="end epochs after this many steps; default: all pairs")
    parser.add_argument("--seed", type=whole(0, LARGEST_SEED), default=0, help="default: %(default)s")
    parser.add_argument("--num-workers", type=whole(0), default=0, help="processes that load images")
    add_revision_argument(parser)
    add_device_argument(parser)


def _add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    both = "of both stages; default the model's preset"
    parser.add_argument("--algorithm", choices=ALGORITHMS, help=f"optimiser {both}")
    parser.add_argument("--epsilon", type=positive, help=f"added to the optimiser's denominator, {both}")
    parser.add_argument(
        "--max-norm",
        type=positive_or_none,
        metavar="LENGTH",
        help=f'longest the gradient may be, "none" for no clipping, {both}',
    )


def _add_regularization_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--self-consistency",
        type=positive,
        metavar="WEIGHT",
        help="in stage 1 keep features near those without prompts (PromptSRC); 1 is its published weight",
    )
    parser.add_argument(
        "--average-prompts",
        action="store_true",
        help="end stage 1 with the Gaussian-weighted average of its epochs (PromptSRC)",
    )


class TrainingArguments(TypedDict):
    """The arguments of `add_training_arguments`."""

    model: str
    pretrained: str | None
    image_size: Sequence[int] | None
    prompt_length: int
    prompt_kind: PromptForm
    prompt_depth: int | None
    epochs: Sequence[int] | None
    learning_rates: Sequence[float] | None
    matching: str | None
    algorithm: str | None
    epsilon: float | None
    max_norm: float | Literal["none"] | None
    self_consistency: float | None
    average_prompts: bool
    batch_size: int
    steps_per_epoch: int | None
    seed: int
    num_workers: int
    revision: str | None
    device: str | None


def complete_training_arguments(given: TrainingArguments) -> tuple[TrainingArguments, "Recipe"]:
    """Check the arguments and fill in the preset of the model where nothing was given.

    Returns:
        The arguments, with `pretrained` a tag, a file or, for random weights and repositories, None, and the revision
        in `model`; and the recipe with these epochs, learning rates and optimiser.

    Raises:
        ValueError: One is out of range, or the device cannot be used.
    """
    check_start(given["model"])
    from promptreid.adaptation import preset_for

    name = at_revision(given["model"], given["revision"])
    preset = preset_for(name)
    recipe = preset.recipe.with_stages(epochs=given["epochs"], learning_rates=given["learning_rates"])
    recipe = _with_options(recipe, given)
    if recipe.stage_one_epochs == recipe.stage_two_epochs == 0:
        raise ValueError("--epochs is 0 0, so there is nothing to train; give at least one epoch to one of the stages")
    _refuse_unused(recipe, given)
    if recipe.stage_one_epochs and not given["prompt_length"]:
        raise ValueError("--prompt-length is 0, expected at least 1: stage 1 trains only prompts")
    pretrained = given["pretrained"] or preset.pretrained
    check_listed(given["model"], pretrained, without='"none" for random weights')
    pretrained = None if pretrained == "none" else pretrained
    check_names(given["model"], pretrained)
    complete = given.copy()
    complete["model"], complete["revision"] = name, None
    complete["device"] = check_device(given["device"])
    complete["pretrained"] = pretrained
    complete["image_size"] = tuple(given["image_size"] or preset.image_size)
    complete["epochs"] = (recipe.stage_one_epochs, recipe.stage_two_epochs)
    complete["learning_rates"] = (recipe.stage_one_learning_rate, recipe.stage_two_learning_rate)
    return complete, recipe


def _refuse_unused(recipe: "Recipe", given: TrainingArguments) -> None:
    if not recipe.stage_one_epochs:
        of_stage_one = {name: given[name] for name in _OF_STAGE_ONE}
        refuse_unused(of_stage_one, "they are of stage 1, which has no epochs")
    if not given["prompt_length"]:
        refuse_unused({"prompt_depth": given["prompt_depth"]}, "--prompt-length is 0, so there are no prompts")
    if recipe.algorithm == "sgd":
        refuse_unused({"epsilon": given["epsilon"]}, "sgd has no denominator")


def _refuse_unused_by(ways: Sequence[str], given: TrainingArguments) -> None:
    from promptreid.training.ablations import ABLATIONS

    ablations = [ABLATIONS[way] for way in ways]
    if not any(each.has_stage_one for each in ablations):
        of_stage_one = {name: given[name] for name in _OF_STAGE_ONE}
        refuse_unused(of_stage_one, f"stage 1 is in no way of --compare {' '.join(ways)}")
    if all(each.prompts == "none" for each in ablations):
        refuse_unused({"prompt_depth": given["prompt_depth"]}, f"--compare {' '.join(ways)} has no prompts")


def _with_options(recipe: "Recipe", given: TrainingArguments) -> "Recipe":
    """The recipe with what was given of the losses, of the optimiser and of regularisation."""
    options = {name: given[name] for name in ("matching", "algorithm", "epsilon", "max_norm", "self_consistency")}
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    changes |= {"average_prompts": True} if given["average_prompts"] else {}
    return replace(recipe, **{name: None if value == "none" else value for name, value in changes.items()})


def run(
    console: Output,
    /,
    *,
    root: Path,
    output: Path,
    cache_images: Path | None,
    layout: str | None,
    image_dir: Path | None,
    table: Path | None,
    on_bad: OnBad,
    split: str | None,
    split_seed: int,
    seeds: Sequence[int] | None,
    compare: Sequence[str] | None,
    tracker: Sequence[str] | None,
    project: str | None,
    **given: "Unpack[TrainingArguments]",
) -> int:
    """Train the model, or several."""
    from promptreid.cli.training_runs import Training
    from promptreid.training.processes import failing_together

    _check_each_once("--seeds", seeds or ())
    _check_each_once("--compare", compare or ())
    _check_output(output, root, image_dir, several=seeds is not None or compare is not None)
    if not tracker:
        refuse_unused({"project": project}, "it goes with --tracker NAME")
    if seeds is not None and given["seed"]:
        refuse_unused({"seed": given["seed"]}, "--seeds already lists every seed")
    check_division(split, split_seed)
    _check_divided_alike(output, split, split_seed)
    arguments, recipe = complete_training_arguments(given)
    if compare is not None:
        _refuse_unused_by(compare, given)
    with joined_processes(console, str(arguments["device"])):
        with failing_together():
            reading = DividedDataArguments(
                layout=layout, image_dir=image_dir, table=table, on_bad=on_bad, split=split, split_seed=split_seed
            )
            data = _load(console, root, reading)
        console.say(data.summary())
        options: dict[str, Any] = {"cache_dir": cache_images, "trackers": tuple(tracker or ())}
        options |= {"project": project or _PROJECT, "progress": not console.as_json}
        # A run that is refused must not change the note of the one that is there.
        write_division = partial(_write_division, output, data, split, split_seed)
        training = Training(console, data, arguments, recipe, options, on_claimed=write_division)
        if seeds is None and compare is None:
            training.run(output)
        else:
            training.compare(output, seeds or (arguments["seed"],), compare or ("pd",))
    return 0


def _check_each_once(option: str, values: Sequence[object]) -> None:
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ValueError(f"{option} has {twice[0]} more than once; give each once")


def _check_output(output: Path, root: Path, image_dir: Path | None, *, several: bool) -> None:
    """Refuse a comparison in the folder of a single run, and the reverse, which would overwrite its figures.

    And a new run among the images, whose figures `promptreid index` would take for people later.
    """
    if several and holds_run(output):
        raise ValueError(f"--output {output} holds a single run; give another folder, such as --output compared")
    if not several and holds_comparison(output):
        raise ValueError(f"--output {output} holds the runs of --seeds or --compare; give another folder for this run")
    if holds_run(output) or holds_comparison(output):
        return  # that an earlier version began there
    check_apart(output, root, image_dir)


def _check_divided_alike(output: Path, split: str | None, seed: int) -> None:
    """Refuse to resume a run with another division, which would else be told as files and counts that differ."""
    from promptreid.data.reader import split_shares
    from promptreid.files import read_sealed_json

    note = output / _SPLIT_NOTE
    if split is None or not note.is_file() or not (holds_run(output) or holds_comparison(output)):
        return
    shares = split_shares(split)
    try:
        found = read_sealed_json(note)
        before, first_seed = found["split"], found["seed"]
        alike = split_shares(before) == shares
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # a note that is damaged decides nothing
    different = [] if alike else [f"--split was {before}, is {split}"]
    different += [] if first_seed == seed else [f"--split-seed was {first_seed}, is {seed}"]
    if different:
        raise CheckpointError(
            f"{output} holds another run: {'; '.join(different)}. Divide the persons as before to resume it, or give "
            "another --output"
        )


def holds_run(folder: Path) -> bool:
    """Whether a single run has begun in a folder."""
    return (folder / "results.json").exists() or any(folder.glob("*/checkpoints/step-*"))


def holds_comparison(folder: Path) -> bool:
    """Whether one of the runs of a comparison has begun in a folder."""
    return any(holds_run(each) or (each / "scores.json").exists() for each in folder.glob("*/seed-*"))


def _load(console: Output, root: Path, reading: DividedDataArguments) -> "ReIDDataset":
    from promptreid.data.images import keep_readable
    from promptreid.data.reader import load_dataset

    data, on_bad = load_dataset(root, **reading), reading["on_bad"]
    if on_bad == "skip":
        kept = {each.name: keep_readable(each, on_bad=on_bad, progress=console.progress) for each in data.splits}
        data = replace(data, train=kept["train"], val=kept.get("val"), test=kept["test"])
    if data.train.num_identities < 2:
        few = "1 person" if data.train.num_identities else "no person"
        division = f" --split {reading['split']}" if reading["split"] else ""
        raise ValueError(
            f"the train split of {root} has {few}; training needs at least 2, to tell them apart. promptreid check "
            f"{shell_word(root)}{division} says what is in it"
        )
    return data


def _write_division(folder: Path, data: "ReIDDataset", shares: str | None, seed: int) -> None:
    """Note which persons `--split` drew for which split; with their names where the table has names."""
    from promptreid.files import write_sealed_json

    if shares is None:
        return
    persons = {each.name: sorted(each.labels) for each in data.splits}
    note: dict[str, Any] = {"split": shares, "seed": seed, "persons": persons}
    if data.names:
        note["names"] = {split: [data.names[person] for person in numbers] for split, numbers in persons.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed_json(folder / _SPLIT_NOTE, note, indent=None)


def make_model(arguments: TrainingArguments, *, way: str = "pd", cameras: Sequence[str] = ()) -> "PromptedCLIP":
    """Draw the model that complete arguments describe, under their seed, with the prompts of a way of training.

    Args:
        arguments: What `complete_training_arguments` returned.
        way: One of `ABLATIONS`.
        cameras: Those of the training images, for which grouped prompts are.

    Raises:
        ValueError: Prompts are to be grouped, and no camera is known.
    """
    import torch

    from promptreid.model.prompted_clip import PromptedCLIP
    from promptreid.towers.loading import load_clip
    from promptreid.training.ablations import ABLATIONS

    grouped = arguments["prompt_kind"] == "grouped"
    if grouped and not cameras:
        raise ValueError(
            "--prompt-kind grouped has prompts for each camera, but the annotation names none; give its records a "
            'field "camera"'
        )
    torch.manual_seed(arguments["seed"])
    clip = load_clip(
        arguments["model"],
        pretrained=arguments["pretrained"],
        image_size=cast("tuple[int, int]", arguments["image_size"] or IMAGE_SIZE),
        device=check_device(arguments["device"]),
    )
    length = arguments["prompt_length"]
    depth = arguments["prompt_depth"]
    config = PromptConfig(
        length, length, depth, depth, kind=arguments["prompt_kind"], groups=tuple(cameras) if grouped else ()
    )
    return PromptedCLIP(clip, ABLATIONS[way].config(config))
