"""`promptreid train`: adapts a model to a data set, in both stages."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from promptreid.cli.evaluate_model import score_table
from promptreid.cli.options import add_device_argument, check_device
from promptreid.cli.output import Output
from promptreid.data.dataset import CaptionedImages
from promptreid.data.reader import load_dataset
from promptreid.data.records import ReIDDataset
from promptreid.evaluation.evaluate import encode_split, evaluate, score, write_evaluation
from promptreid.evaluation.pictures.curves import draw_training_curves, read_log
from promptreid.evaluation.pictures.feature_map import draw_feature_map
from promptreid.evaluation.pictures.similarity import draw_similarities
from promptreid.evaluation.splits import EncodedSplit
from promptreid.files import write_bytes_atomically
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.model.saving import save_prompts
from promptreid.prompts.config import PromptConfig
from promptreid.towers.loading import load_clip
from promptreid.towers.names import TINY_NAME, TINY_TAG
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.stage import Stage
from promptreid.training.trainer import Trainer


@dataclass(frozen=True)
class Defaults:
    """What is used where the command line says nothing."""

    image_size: tuple[int, int]
    epochs: tuple[int, int]
    learning_rates: tuple[float, float]


# The paper's rates and epochs are not known to us: these are our own choice, near those of CSKT and IRRA.
_TINY = Defaults((96, 48), (3, 6), (5e-3, 3e-4))
_OTHER = Defaults((384, 128), (30, 60), (3e-4, 1e-5))


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "train",
        help="adapt a model to a data set, in both stages",
        description="Train prompts with frozen encoders, then the encoders with frozen prompts; score before, between "
        "and after; save the model in OUTPUT/model, and pictures of what changed beside it. A run that was killed goes "
        "on when the same command is given again. The validation split chooses the epoch, and the test split never "
        "does. Needs the extras train and viz.",
    )
    parser.add_argument("root", type=Path, help="the data set's folder (see `promptreid check`)")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything written")
    parser.add_argument("--model", default=TINY_NAME, help="an open_clip name; default %(default)s")
    parser.add_argument("--pretrained", help="its weights: a tag such as openai, or a file")
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="pixels; default 384 128")
    parser.add_argument("--prompt-length", type=int, default=4, help="prompts a block in both encoders; default 4")
    parser.add_argument("--epochs", type=int, nargs=2, metavar=("ONE", "TWO"), help="of the stages; default 30 60")
    parser.add_argument(
        "--learning-rates", type=float, nargs=2, metavar=("ONE", "TWO"), help="of the stages; default 3e-4 1e-5"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load pictures")
    parser.add_argument("--layout", help="CUHK-PEDES, ICFG-PEDES, RSTPReid or folder; default: found out")
    add_device_argument(parser)
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Train the model."""
    tiny = settings.model == TINY_NAME
    defaults = _TINY if tiny else _OTHER
    pretrained = settings.pretrained or (TINY_TAG if tiny else None)
    if pretrained is None:
        raise ValueError(f"--model {settings.model} needs --pretrained TAG, such as openai")
    check_device(settings.device)
    image_size = defaults.image_size if settings.image_size is None else tuple(settings.image_size)
    config = PromptConfig(text_length=settings.prompt_length, vision_length=settings.prompt_length)
    data = load_dataset(settings.root, layout=settings.layout)
    torch.manual_seed(settings.seed)
    clip = load_clip(settings.model, pretrained=pretrained, image_size=image_size, device=settings.device)
    model = PromptedCLIP(clip, config)
    output.say(data.summary())
    epochs, rates = settings.epochs or defaults.epochs, settings.learning_rates or defaults.learning_rates
    schedule = TwoStageSchedule(
        model,
        num_identities=data.train.num_identities,
        stage_one_epochs=epochs[0],
        stage_two_epochs=epochs[1],
        stage_one_learning_rate=rates[0],
        stage_two_learning_rate=rates[1],
    )
    states = _run_stages(settings, output, model, data, schedule)
    return _finish(settings, output, model, data, states)


def _run_stages(
    settings: argparse.Namespace, output: Output, model: PromptedCLIP, data: ReIDDataset, schedule: TwoStageSchedule
) -> dict[str, EncodedSplit]:
    """The test split as the model encodes it before, between and after the stages."""
    pairs = CaptionedImages(data.train, transform=model.train_transform, tokenizer=model.tokenizer)
    with model.disabled():
        states = {"zero shot": encode_split(model, data.test, progress=output.progress)}
    for stage in schedule:
        _train_stage(settings, output, model, data, stage, pairs)
        states[_words(stage)] = encode_split(model, data.test, progress=output.progress)
    return states


def _train_stage(
    settings: argparse.Namespace,
    output: Output,
    model: PromptedCLIP,
    data: ReIDDataset,
    stage: Stage,
    pairs: CaptionedImages,
) -> None:
    validation = data.val

    def scores_on_validation(model: PromptedCLIP) -> dict[str, float]:
        return {} if validation is None else evaluate(model, validation, progress=False).text_to_image.as_dict()

    trainer = Trainer(
        model,
        [stage],
        train_data=pairs,
        batch_size=settings.batch_size,
        output_dir=settings.output / stage.name,
        seed=settings.seed,
        device=settings.device,
        mixed_precision="bf16" if settings.device.startswith("cuda") else "no",
        num_workers=settings.num_workers,
        evaluate=None if validation is None else scores_on_validation,
        evaluate_every_epoch=True,
        best_metric=None if validation is None else "mAP",
        trackers=(),
        progress=output.progress,
    )
    trainer.fit()


def _finish(
    settings: argparse.Namespace,
    output: Output,
    model: PromptedCLIP,
    data: ReIDDataset,
    states: dict[str, EncodedSplit],
) -> int:
    scores = {name: score(encoded) for name, encoded in states.items()}
    results = {name: found.as_dict() for name, found in scores.items()}
    save_prompts(model, settings.output / "model", overwrite=True)
    rule = "epoch with the best validation mAP" if data.val else "last epoch"
    record = {"results": results, "checkpoint_rule": rule, "model": str(settings.output / "model")}
    write_bytes_atomically(settings.output / "results.json", (json.dumps(record, indent=2) + "\n").encode())
    output.record(**record)
    output.say(score_table(results))
    last = list(states)[-1]
    write_evaluation(settings.output, states[last], scores[last])
    _draw(settings.output, states)
    output.say(f"kept: {rule}; results.json, metrics.json, pictures and model/ are in {settings.output}")
    return 0


def _draw(folder: Path, states: dict[str, EncodedSplit]) -> None:
    """What the stages changed: similarities, features in the plane, and how training went."""
    draw_similarities(folder / "similarities.png", states)
    draw_feature_map(folder / "feature_map.png", states)
    logs = [folder / name.replace(" ", "_") / "log.jsonl" for name in states]
    draw_training_curves(folder / "curves.png", [entry for log in logs if log.is_file() for entry in read_log(log)])


def _words(stage: Stage) -> str:
    return stage.name.replace("_", " ")
