"""`promptreid push`: publishes a saved model on the Hugging Face Hub."""

import argparse
import json
from pathlib import Path
from typing import Any

from promptreid.cli.output import Output
from promptreid.hub.card import CardDetails
from promptreid.model.publishing import push_prompts


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "push",
        help="publish a saved model on the Hugging Face Hub",
        description="Publish a folder that `promptreid train` or save_prompts wrote, with a model card. The repository "
        "is private unless you say --public. Log in first with `hf auth login`, or set HF_TOKEN.",
    )
    parser.add_argument("folder", type=Path, help="the saved model")
    parser.add_argument("repository", help="USER/NAME")
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    parser.add_argument("--revision", help="branch; made if it is not there; default main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", help="commit message")
    parser.add_argument(
        "--metrics", type=Path, metavar="FILE", help="metrics.json of `promptreid evaluate`, for the card"
    )
    parser.add_argument("--dataset", metavar="NAME", help="data set of the metrics, for the card")
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Publish the model."""
    url = push_prompts(
        settings.folder,
        settings.repository,
        private=not settings.public,
        revision=settings.revision,
        create_pr=settings.create_pr,
        commit_message=settings.message,
        metrics=None if settings.metrics is None else _read_metrics(settings.metrics),
        details=None if settings.dataset is None else CardDetails(dataset=settings.dataset),
    )
    output.say(f"published: {url}")
    output.record(url=url)
    return 0


def _read_metrics(path: Path) -> dict[str, Any]:
    """The scores in `metrics.json`, in the form of `Evaluation.as_dict()`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores, other = dict(content["text_to_image"]), dict(content["image_to_text"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no metrics.json of `promptreid evaluate` ({error})") from error
    names = [name for name in scores if not name.startswith("num_")]
    return {**{name: scores[name] for name in names}, "image_to_text": {name: other[name] for name in names}}
