"""`promptreid index`: makes or updates a gallery of a folder of crops."""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from promptreid.cli.options import ModelChoice, add_model_arguments, chosen_model, load_model
from promptreid.cli.output import Output
from promptreid.errors import DatasetError
from promptreid.retrieval.editing import Changes, list_pictures
from promptreid.retrieval.export import check_ending
from promptreid.retrieval.gallery import Gallery
from promptreid.retrieval.gallery_files import exists
from promptreid.towers.names import TINY_NAME

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_TINY_NOTE = (
    f"note: {TINY_NAME}, the small model that ships with promptreid, knows drawn pedestrians only. For photographs "
    "give --model with a model of yours, or an open_clip name: --model ViT-B-16 --pretrained openai"
)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]
    """Describe the command."""
    parser = commands.add_parser(
        "index",
        help="encode a folder of crops, to be searched",
        description="Encode every picture in a folder and its sub-folders. Given again, it encodes only pictures that "
        "are new or have changed, with the model that made the index. Pictures that cannot be read are listed and "
        "skipped. What the index holds can count as biometric data: its files are readable by you alone.",
    )
    parser.add_argument("folder", type=Path, nargs="?", help="pictures, one person each")
    parser.add_argument("--output", type=Path, default=Path("gallery"), help="the index's folder; default %(default)s")
    add_model_arguments(parser, default=None)
    parser.add_argument(
        "--storage", choices=("float32", "float16"), help="float16 takes half the room; default float32"
    )
    parser.add_argument("--prune", action="store_true", help="take pictures out that are no longer in the folder")
    parser.add_argument("--remove", nargs="+", metavar="PICTURE", help="take these pictures out of the index, for good")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write features to a .parquet or .npz file too")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures at a time; default %(default)s")
    parser.add_argument("--threads", type=int, default=4, help="threads that read pictures ahead; default %(default)s")
    return parser


def run(settings: argparse.Namespace, output: Output) -> int:
    """Make or update the index."""
    if settings.folder is None and not settings.remove and not settings.export:
        raise ValueError("give the folder of pictures to index: promptreid index FOLDER")
    if settings.export is not None:
        check_ending(settings.export)
    if settings.folder is not None and settings.remove:
        raise ValueError("give a folder to index or pictures to --remove, not both at once")
    if settings.folder is None:
        gallery = Gallery.load(settings.output)
        if settings.remove:
            removed = gallery.remove([_picture(name) for name in settings.remove])
            output.say(f"removed {removed} pictures; {len(gallery)} are left in {settings.output}")
            output.record(removed=removed)
    else:
        gallery = _update(settings, output) if exists(settings.output) else _build(settings, output)
    if settings.export is not None:
        output.say(f"features are in {gallery.export(settings.export)}")
    output.record(index=str(settings.output), pictures=len(gallery), dimensions=gallery.features.shape[1])
    return 0


def _build(settings: argparse.Namespace, output: Output) -> Gallery:
    settings.model = settings.model or TINY_NAME
    choice = chosen_model(settings)
    if choice.model == TINY_NAME:
        output.note(_TINY_NOTE)
    model = load_model(choice, device=settings.device)
    folder = settings.folder.resolve()
    list_pictures(folder)  # nothing is written where there is nothing to index
    gallery = Gallery(model, [], torch.empty(0, model.embed_dim, dtype=_DTYPES[settings.storage or "float32"]))
    gallery.notes["model"] = choice.as_dict()
    gallery.save(settings.output)
    _encode(gallery, settings, output)
    if len(gallery) == 0:
        raise DatasetError(f"none of the pictures in {folder} can be read")
    output.say(
        f"{len(gallery)} pictures are indexed in {settings.output}; now ask:\n"
        f'promptreid search {settings.output} "a woman in a red coat" --picture found.png'
    )
    return gallery


def _update(settings: argparse.Namespace, output: Output) -> Gallery:
    if settings.storage is not None:
        raise ValueError(f"{settings.output} is there already, and keeps its storage; give --output for a new index")
    gallery = open_gallery(settings.output, settings, device=settings.device)
    changes = _encode(gallery, settings, output)
    output.say(
        f"{changes.added} new, {changes.changed} changed, {changes.unchanged} unchanged, {changes.removed} removed; "
        f"{len(gallery)} pictures in {settings.output}"
    )
    return gallery


def _encode(gallery: Gallery, settings: argparse.Namespace, output: Output) -> Changes:
    changes = gallery.update(
        settings.folder.resolve(),
        prune=settings.prune,
        batch_size=settings.batch_size,
        num_threads=settings.threads,
        progress=output.progress,
    )
    output.record(**{**asdict(changes), "unreadable": list(changes.unreadable)})
    return changes


def open_gallery(directory: Path, settings: argparse.Namespace, *, device: str) -> Gallery:
    """Load an index with the model that made it, or with the one that the arguments name.

    Raises:
        CheckpointError: The index is damaged or of another model.
        ValueError: The index does not say which model made it.
    """
    if settings.model is None:
        noted = Gallery.load(directory).notes.get("model")
        if not isinstance(noted, dict):
            raise ValueError(f"{directory} does not say which model made it; give --model")
        size = noted.get("image_size")
        choice = ModelChoice(noted["model"], noted.get("pretrained"), None if size is None else (size[0], size[1]))
    else:
        choice = chosen_model(settings)
    return Gallery.load(directory, load_model(choice, device=device))


def _picture(name: str) -> int | str:
    return int(name) if name.isdigit() else name
