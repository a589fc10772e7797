"""Which model a command uses."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from promptreid.model.prompted_clip import PromptedCLIP, load_prompts
from promptreid.prompts.config import PromptConfig
from promptreid.towers.loading import load_clip
from promptreid.towers.names import TINY_NAME, TINY_TAG

_TINY_SIZE = (96, 48)


@dataclass(frozen=True)
class ModelChoice:
    """How to make a model again.

    Attributes:
        model: A folder that `save_prompts` wrote, a Hub repository `user/name`, or an open_clip name.
        pretrained: open_clip's tag or a weight file, for an open_clip name.
        image_size: (height, width) for an open_clip name; `None` for the usual one.
    """

    model: str = TINY_NAME
    pretrained: str | None = None
    image_size: tuple[int, int] | None = None

    @property
    def is_saved(self) -> bool:
        """Whether the model was saved by promptreid, so that it knows everything of itself."""
        return Path(self.model).is_dir() or "/" in self.model

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        return asdict(self)


def add_model_arguments(parser: argparse.ArgumentParser, *, default: str | None = TINY_NAME) -> None:
    """Add `--model`, `--pretrained`, `--image-size` and `--device`."""
    parser.add_argument(
        "--model",
        default=default,
        help="a folder that `promptreid train` or save_prompts wrote, a Hub repository USER/NAME, or the name of an "
        "open_clip model, which is then used without prompts" + (f"; default {default}" if default else ""),
    )
    parser.add_argument("--pretrained", help="weights of an open_clip model: a tag such as openai, or a file")
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"), help="pixels, for an open_clip model; default 384 128"
    )
    add_device_argument(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def chosen_model(settings: argparse.Namespace) -> ModelChoice:
    """The model that the arguments name; a folder by its full path, so that it is found from anywhere.

    Raises:
        ValueError: Weights or a size are given for a model that brings its own.
    """
    size = None if settings.image_size is None else (settings.image_size[0], settings.image_size[1])
    choice = ModelChoice(settings.model, settings.pretrained, size)
    if choice.is_saved:
        if choice.pretrained or choice.image_size:
            raise ValueError(f"--pretrained and --image-size go with an open_clip name; {choice.model} brings its own")
        if Path(choice.model).is_dir():
            return ModelChoice(str(Path(choice.model).resolve()))
    return choice


def check_device(device: str) -> str:
    """Return a device that works here.

    Raises:
        ValueError: It does not.
    """
    try:
        torch.empty(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def load_model(choice: ModelChoice, *, device: str) -> PromptedCLIP:
    """Make the model, in eval mode.

    Raises:
        ValueError: The name, the weights or the device cannot be had.
        CheckpointError: The folder is damaged.
        FileNotFoundError: There is no such folder.
    """
    check_device(device)
    if choice.is_saved:
        return load_prompts(choice.model, device=device)
    tiny = choice.model == TINY_NAME
    pretrained = choice.pretrained or (TINY_TAG if tiny else None)
    if pretrained is None:
        raise ValueError(
            f"--model {choice.model} needs --pretrained TAG, such as openai; without weights it finds nothing. If "
            f"{choice.model} is meant to be a folder: there is none of that name here"
        )
    size = choice.image_size or (_TINY_SIZE if tiny else (384, 128))
    clip = load_clip(choice.model, pretrained=pretrained, image_size=size, device=device)
    return PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0)).eval()
