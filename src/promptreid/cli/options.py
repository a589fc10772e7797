"""Arguments that several commands have, and what is made of them: a model, a split, a device."""

import argparse
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from promptreid.cli.argument_types import folder_to_read, saved_model, some_path, whole
from promptreid.cli.model_names import BARE, FOLDER, check_listed, check_names, check_not_a_file
from promptreid.cli.output import Output
from promptreid.defaults import IMAGE_SIZE, SYNTHETIC_STAMP, OnBad
from promptreid.errors import DatasetError, shell_word
from promptreid.towers.tiny import TINY_ADAPTED, TINY_IMAGE_SIZE, TINY_NAME, TINY_TAG, tiny_prompts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from promptreid.data.records import ReIDSplit
    from promptreid.model.prompted_clip import PromptedCLIP

LARGEST_SIDE = 2048
LARGEST_SEED = 2**32 - 1  # numpy takes no more
# How a message about data without splits begins to advise what only `check` and `train` do: to divide them.
_TO_DIVIDE = "Add a column split of "
_BEST_DEVICE = "cuda if there is a GPU, else cpu"


class ModelArguments(TypedDict):
    """The arguments of `add_model_arguments`."""

    model: str | None
    pretrained: str | None
    image_size: list[int] | None
    revision: str | None
    device: str | None


class DataArguments(TypedDict):
    """The arguments of `add_data_arguments`."""

    layout: str | None
    image_dir: Path | None
    table: Path | None
    on_bad: OnBad


class DividedDataArguments(DataArguments):
    """The arguments of `add_data_arguments` and `add_division_arguments`."""

    split: str | None
    split_seed: int


@dataclass(frozen=True)
class ModelChoice:
    """How to make a model again.

    Attributes:
        model: A folder that `save_prompts` wrote, a Hub repository `user/name`, `promptreid-tiny-adapted` for the
            shipped base with the shipped prompts, or an open_clip name, `hf-hub:` and `local-dir:` included.
        pretrained: open_clip's tag or a weight file, for an open_clip name.
        image_size: (height, width) for an open_clip name; `None` for the usual one.
        revision: Branch, tag or commit of a Hub repository; `None` for main.
    """

    model: str
    pretrained: str | None = None
    image_size: tuple[int, int] | None = None
    revision: str | None = None

    @property
    def is_saved(self) -> bool:
        """Whether the model was saved by promptreid, so that it knows everything of itself."""
        if self.model == TINY_ADAPTED or Path(self.model).is_dir():
            return True
        return "/" in self.model and not self.model.startswith(BARE)

    @property
    def is_shipped(self) -> bool:
        """Whether it is the small model of this package, with or without prompts, which knows drawings only."""
        return self.model in (TINY_NAME, TINY_ADAPTED)

    def as_dict(self) -> dict[str, Any]:
        """The entries for JSON."""
        return asdict(self)


def add_model_arguments(parser: argparse.ArgumentParser, *, default: str, device: str = _BEST_DEVICE) -> None:
    """Add `--model`, `--pretrained`, `--image-size`, `--revision` and `--device`.

    Args:
        parser: The command's.
        default: Which model is used without `--model`, in words.
        device: Which device is used without `--device`, in words.
    """
    parser.add_argument(
        "--model",
        type=saved_model,
        help="a folder that `promptreid train` or save_prompts wrote, a Hub repository USER/NAME, or the name of an "
        f"open_clip model or hf-hub:USER/NAME, which is then used without prompts; default: {default}",
    )
    parser.add_argument("--pretrained", help="weights of an open_clip model: a tag such as openai, or a file")
    parser.add_argument(
        "--image-size",
        type=whole(1, LARGEST_SIDE),
        nargs=2,
        metavar=("H", "W"),
        help=f"pixels, for an open_clip model; default {IMAGE_SIZE[0]} {IMAGE_SIZE[1]}",
    )
    add_revision_argument(parser)
    add_device_argument(parser, default=device)


def add_revision_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--revision`."""
    parser.add_argument("--revision", help="branch, tag or commit of the model's Hub repository; default: main")


def at_revision(model: str, revision: str | None) -> str:
    """An open_clip name, with the revision of the Hub repository if one is given.

    Raises:
        ValueError: A revision is given for a model that is not on the Hub.
    """
    if revision is None:
        return model
    if not model.startswith("hf-hub:"):
        raise ValueError(f"--revision goes with a Hub repository, and {model} is not one; leave --revision out")
    return f"{model.partition('@')[0]}@{revision}"


def add_device_argument(parser: argparse.ArgumentParser, *, default: str = _BEST_DEVICE) -> None:
    """Add `--device`; the default is said in words."""
    parser.add_argument("--device", help=f"default: {default}")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--layout`, `--image-dir`, `--table` and `--on-bad`."""
    parser.add_argument(
        "--layout", help="CUHK-PEDES, ICFG-PEDES, RSTPReid or folder; default: recognised from the files"
    )
    parser.add_argument(
        "--image-dir",
        type=folder_to_read,
        metavar="DIR",
        help="where image paths begin; default: imgs/ beside the annotation",
    )
    parser.add_argument(
        "--table",
        type=some_path,
        metavar="FILE",
        help="the .csv or .jsonl table of your own folder, by its path below that; default: the only one there",
    )
    parser.add_argument(
        "--on-bad",
        choices=get_args(OnBad),
        default="strict",
        help="refuse data with bad records or images, or skip and list those; default %(default)s",
    )


def add_division_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--split` and `--split-seed`."""
    parser.add_argument(
        "--split", metavar="80/10/10", help="divide the persons at random: percent for training, validation, test"
    )
    parser.add_argument("--split-seed", type=whole(0), default=0, help="seed of that division; default %(default)s")


def check_division(split: str | None, split_seed: int) -> None:
    """Refuse shares that are none, and the seed of a division that is not made."""
    if split is None:
        refuse_unused({"split_seed": split_seed}, "it draws the division of --split, such as --split 80/10/10")
        return
    from promptreid.data.reader import split_shares

    split_shares(split)


def load_split(console: Output, root: Path, split: str, **reading: "Unpack[DataArguments]") -> tuple[str, "ReIDSplit"]:
    """The name of the dataset in a folder, and one of its splits.

    Raises:
        ValueError: The dataset has no such split.
        DatasetError: Its records name no splits, or are malformed.
    """
    from promptreid.data.images import keep_readable
    from promptreid.data.reader import load_dataset

    on_bad = reading["on_bad"]
    try:
        data = load_dataset(root, **reading)
    except DatasetError as error:
        what, undivided, _ = str(error).partition(_TO_DIVIDE)
        if not undivided:
            raise
        raise DatasetError(
            f"{what}Add a column split of train, val, test; after train --split, split.json in the run's folder lists "
            "whom it drew for each. Or in Python: evaluate(model, load_dataset(folder, split=...).test)"
        ) from error
    splits = {found.name: found for found in data.splits}
    if split not in splits:
        raise ValueError(f"{data.name} has no {split} split; it has {', '.join(splits)}")
    found = splits[split]
    return data.name, keep_readable(found, on_bad=on_bad, progress=console.progress) if on_bad == "skip" else found


def chosen_model(options: ModelArguments) -> ModelChoice:
    """The model that the arguments name; folders and files by their full paths, to be found from anywhere.

    Raises:
        ValueError: Weights or a size are given for a model that brings its own, or open_clip has no such name or tag.
    """
    size = options["image_size"]
    choice = ModelChoice(
        options["model"] or TINY_ADAPTED,
        options["pretrained"],
        None if size is None else (size[0], size[1]),
        options["revision"],
    )
    check_not_a_file(choice.model)
    if choice.is_saved:
        if choice.pretrained or choice.image_size:
            raise ValueError(f"--pretrained and --image-size go with an open_clip name; {choice.model} brings its own")
        if choice.model == TINY_ADAPTED:
            at_revision(choice.model, choice.revision)
        elif Path(choice.model).is_dir() and choice.revision is None:
            return ModelChoice(str(Path(choice.model).resolve()))
        return choice
    at_revision(choice.model, choice.revision)
    check_listed(choice.model, choice.pretrained, without="without weights it finds nothing")
    check_names(choice.model, choice.pretrained)
    return _with_full_paths(choice)


def _with_full_paths(choice: ModelChoice) -> ModelChoice:
    from promptreid.towers.names import is_listed_tag

    model, pretrained = choice.model, choice.pretrained
    if model.startswith(FOLDER):
        model = FOLDER + str(Path(model.removeprefix(FOLDER)).resolve())
    if pretrained is not None and not is_listed_tag(model, pretrained) and Path(pretrained).exists():
        pretrained = str(Path(pretrained).resolve())
    return replace(choice, model=model, pretrained=pretrained)


def notes_of(choice: ModelChoice, model: "PromptedCLIP") -> dict[str, Any]:
    """What a gallery notes, so that the same model is made again.

    With commits, as somebody may push to a repository, and with the image size, else a warning of it would come back.
    """
    noted = {**choice.as_dict(), "revision": model.commit or choice.revision}
    if choice.is_saved or model.source is None:
        return noted
    return noted | {"pretrained": model.source.pretrained, "image_size": list(model.image_size)}


def check_apart(output: Path, root: Path, image_dir: Path | None) -> None:
    """Refuse to write figures among the images, where `promptreid index` would take them for people later.

    Args:
        output: `--output`.
        root: The dataset's folder, or its parent, where another folder of it may well be meant.
        image_dir: `--image-dir`.

    Raises:
        ValueError: `output` is one of these folders, or lies in it.
        DatasetError: The dataset's folder cannot be read.
    """
    from promptreid.data.image_files import explained_if_closed
    from promptreid.data.reader import dataset_folder

    with explained_if_closed(root):
        nouns = {dataset_folder(root): "the dataset's folder"}
    nouns |= {} if image_dir is None else {image_dir: "the folder of the images"}
    places = {folder: folder.resolve() for folder in nouns}
    place, outermost = output.resolve(), min(places.values(), key=lambda held: len(held.parts))
    for folder, held in places.items():
        if place.is_relative_to(held):
            where = "is" if place == held else "is in"
            beside = shell_word(Path(os.path.relpath(outermost.parent / "run")))
            raise ValueError(
                f"--output is {output}, which {where} {nouns[folder]}, {folder}: its figures would be taken for people "
                f"later. It needs a folder of its own, such as --output {beside}"
            )


def note_model(console: Output, choice: ModelChoice, folder: Path) -> None:
    """Say which model is used, and warn where the shipped one is about to look at what may be photographs."""
    console.say(f"model: {choice.model}")
    if choice.is_shipped and not any((place / SYNTHETIC_STAMP).is_file() for place in (folder, folder.parent)):
        console.note(
            f"note: {choice.model}, the small model that ships with promptreid, knows only drawn pedestrians. For "
            "photographs pass --model with your own model, or an open_clip name: --model ViT-B-16 --pretrained openai"
        )


def refuse_unused(given: Mapping[str, Any], reason: str) -> None:
    """Refuse options that would do nothing.

    Args:
        given: The options by their names in Python.
        reason: What they go with.

    Raises:
        ValueError: One of the options is given.
    """
    used = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if used:
        raise ValueError(f"{' and '.join(used)} would do nothing here: {reason}")


def check_file(option: str, path: Path | None) -> None:
    """Refuse an argument that is not a file, before any work.

    Raises:
        ValueError: The argument is not a file.
    """
    if path is not None and not path.is_file():
        reason = "that is a folder or a device" if path.exists() else "there is no such file"
        raise ValueError(f"{option} is {path}, but {reason}; check the path")


def check_device(device: str | None) -> str:
    """Return a device that works here; the GPU or the processor for `None`.

    Under `torchrun` it is the GPU of this process, so that no process takes memory on another one's.

    Raises:
        ValueError: The device does not work here.
    """
    import torch

    own = os.environ.get("LOCAL_RANK")
    if device in (None, "cuda") and torch.cuda.is_available() and own is not None:
        device = f"cuda:{own}"
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def joined_processes(console: Output, device: str) -> Generator[None, None, None]:
    """Join the other processes that `torchrun` started, if any; only the first prints.

    Args:
        console: Silent inside the block in every other process.
        device: What `check_device` returned: a GPU of this process's own, or the processor.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    from torch import distributed

    console.is_silent = int(os.environ.get("RANK", "0")) > 0
    on_gpu = device.startswith("cuda")
    if on_gpu:
        if device == "cuda":
            raise ValueError(
                "WORLD_SIZE says that there are several processes, but LOCAL_RANK, which gives each its GPU, is not "
                "set; start them with torchrun, or set it"
            )
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def load_model(choice: ModelChoice, *, device: str | None) -> "PromptedCLIP":
    """Make the model, in eval mode.

    Raises:
        ValueError: The name is unknown, or the weights or the device are not available.
        CheckpointError: The folder is damaged.
        FileNotFoundError: The folder does not exist.
    """
    from promptreid.model.prompted_clip import PromptedCLIP
    from promptreid.prompts.config import PromptConfig
    from promptreid.towers.loading import load_clip

    device = check_device(device)
    if choice.is_saved:
        return _load_saved(choice, device)
    tiny = choice.model == TINY_NAME
    pretrained = choice.pretrained or (TINY_TAG if tiny else None)
    size = choice.image_size or (TINY_IMAGE_SIZE if tiny else IMAGE_SIZE)
    clip = load_clip(at_revision(choice.model, choice.revision), pretrained=pretrained, image_size=size, device=device)
    return PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0)).eval()


def _load_saved(choice: ModelChoice, device: str) -> "PromptedCLIP":
    from promptreid.model.prompted_clip import load_prompts

    source = tiny_prompts() if choice.model == TINY_ADAPTED else choice.model
    return load_prompts(source, revision=choice.revision, device=device)
