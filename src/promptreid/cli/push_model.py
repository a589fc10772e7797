"""`promptreid push`: publishes a saved model on the Hugging Face Hub."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptreid.cli.argument_types import folder_to_read, saved_model, some_path
from promptreid.cli.options import check_file
from promptreid.cli.output import Output
from promptreid.errors import shell_word

if TYPE_CHECKING:
    from promptreid.hub.transfer import PublishedURL

DESCRIPTION = """Publish a folder that `promptreid train` or save_prompts wrote, with a model card. The repository is
private unless you say --public. Log in first with `hf auth login`, or set HF_TOKEN."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("folder", type=_saved_folder, help="the saved model")
    parser.add_argument("repository", type=_repository, help="USER/NAME")
    parser.add_argument("--public", action="store_true", help="make it public")
    parser.add_argument("--revision", help="branch; made if it does not exist; default main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", dest="commit_message", metavar="TEXT", help="commit message")
    parser.add_argument(
        "--metrics", type=some_path, metavar="FILE", help="metrics.json of `promptreid evaluate`, for the card"
    )
    parser.add_argument("--dataset", metavar="NAME", help="dataset of the metrics, for the card")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the card and the files with their sizes, and upload nothing"
    )


def _repository(text: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        message = f"is {text!r}, which is not the id of a Hub repository, such as user/name"
        raise argparse.ArgumentTypeError(message) from error
    if "/" not in text:
        raise argparse.ArgumentTypeError(f"is {text}, without its owner; write USER/{text}")
    return text


def _saved_folder(text: str) -> str:
    return saved_model(str(folder_to_read(text)))


def run(
    console: Output,
    /,
    *,
    folder: str,
    repository: str,
    public: bool,
    metrics: Path | None,
    dataset: str | None,
    dry_run: bool,
    **commit: Any,
) -> int:
    """Publish the model."""
    check_file("--metrics", metrics)
    from promptreid.hub.card import CardDetails
    from promptreid.model.publishing import files_to_push, push_prompts

    scores = None if metrics is None else _read_metrics(metrics)
    details = None if dataset is None else CardDetails(dataset=dataset)
    if dry_run:
        _show(console, repository, files_to_push(folder, repository, metrics=scores, details=details))
        return 0
    url = push_prompts(folder, repository, private=not public, **commit, metrics=scores, details=details)
    console.say(*_ending(repository, url, commit))
    console.record(url=url, private=url.is_private, changed=url.is_new)
    return 0


def _ending(repository: str, url: "PublishedURL", commit: Mapping[str, Any]) -> list[str]:
    """What became of it, who sees it, and how it is loaded."""
    seen = "private" if url.is_private else "public"
    if commit["create_pr"]:
        return [f"pull request opened ({seen} repository): {url}"]
    revision = commit["revision"]
    python, shell = (f', revision="{revision}"', f" --revision {shell_word(revision)}") if revision else ("", "")
    return [
        f"published, {seen}: {url}" if url.is_new else f"unchanged, {seen}: {url} holds these very files already",
        f"to load it: --model {repository}{shell} of index, search and evaluate, or in Python "
        f'load_prompts("{repository}"{python})',
    ]


def _show(console: Output, repository: str, files: Mapping[str, bytes | Path]) -> None:
    """Print the card, and the names and sizes of the files."""
    from promptreid.hub.card import CARD

    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in files.items()}
    card = files[CARD]
    text = card.decode() if isinstance(card, bytes) else ""
    console.say(*text.rstrip("\n").split("\n"), "", f"to {repository}, nothing is uploaded:")
    console.say(*(f"{size:>12,} bytes  {name}" for name, size in sorted(sizes.items())))
    console.record(card=text, files=sizes)


def _read_metrics(path: Path) -> dict[str, Any]:
    """The scores in `metrics.json`, in the form of `Evaluation.as_dict()`."""
    from promptreid.files import read_sealed_json

    try:
        content = read_sealed_json(path)
        scores, other = dict(content["text_to_image"]), dict(content["image_to_text"])
        names = [name for name in scores if not name.startswith("num_")]
        return {**{name: scores[name] for name in names}, "image_to_text": {name: other[name] for name in names}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a metrics.json of `promptreid evaluate` ({why})") from error
