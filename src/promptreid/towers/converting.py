"""Writes a model of any origin as an ordinary folder of open_clip's, or of transformers'."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from open_clip import SimpleTokenizer
from open_clip.tokenizer import HFTokenizer
from torch import nn

from promptreid.files import write_bytes_atomically, write_json_atomically, write_tensors_atomically
from promptreid.towers.downloading import (
    CONFIG_NAME,
    FOREIGN_CONFIG_NAME,
    FOREIGN_IMAGES_NAME,
    SAFE_WEIGHTS,
    download_model,
    names_repository,
)
from promptreid.towers.empty_models import loads_in_plain_open_clip
from promptreid.towers.loading import load_clip, model_config, preprocess_config
from promptreid.towers.names import is_listed_tag, is_repository, names_that_fit
from promptreid.towers.tower import image_preprocessing_of, image_size_of, uses_quick_gelu
from promptreid.towers.transformers_names import to_transformers
from promptreid.towers.weights import Checkpoint, read_checkpoint, weights_in
from promptreid.values import given_path

Target = Literal["open_clip", "transformers"]

# Of a folder that `save_prompts` wrote, as `promptreid.hub` names them.
PROMPTS_CONFIG, PROMPTS = "prompt_config.json", "prompts.safetensors"


@dataclass(frozen=True)
class Conversion:
    """The result of `convert_weights`.

    Attributes:
        folder: Where.
        title: Whose kind of checkpoint the source is.
        name: open_clip's name of the architecture, or `local-dir:` where the configuration of the source made it.
        image_size: (height, width) in pixels.
        trained_size: The size that the project which trained it used, where that is known.
        quick_gelu: Whether the model computes QuickGELU.
        left_out: Names in the source that are not weights of the two encoders; `prompts.safetensors` where the source
            is a folder that `save_prompts` wrote.
        loads_in_open_clip: Whether plain open_clip loads the folder too, at this image size.
    """

    folder: Path
    title: str
    name: str
    image_size: tuple[int, int]
    trained_size: tuple[int, int] | None
    quick_gelu: bool
    left_out: tuple[str, ...]
    loads_in_open_clip: bool


def convert_weights(
    source: str,
    folder: str | Path,
    *,
    name: str | None = None,
    to: Target = "open_clip",
    overwrite: bool = False,
    image_size: tuple[int, int] | None = None,
    weights_size: tuple[int, int] | None = None,
    quick_gelu: bool | None = None,
) -> Conversion:
    """Read weights of any kind that `load_clip` reads, and write an ordinary folder that loads everywhere.

    Args:
        source: A file, a folder, a Hub repository `"user/repo"` or `"user/repo@revision"`, or a tag of `name`.
        folder: Gets `open_clip_model.safetensors` and `open_clip_config.json`, or what transformers writes.
        name: open_clip's name of the architecture; `None` for what the configuration beside the weights says, or else
            for the listed architecture with OpenAI's towers that has weights of these shapes.
        to: Whose layout is written: `"open_clip"` or `"transformers"`.
        overwrite: Replace a model that the folder holds already.
        image_size: (height, width) in pixels; `None` for that of the weights.
        weights_size: As of `load_clip`.
        quick_gelu: As of `load_clip`.

    Returns:
        What was written.

    Raises:
        FileExistsError: The folder holds a model already.
        NotADirectoryError: `folder` is a file.
        FileNotFoundError: There is no such file, and it is not the name of a repository; or a folder has no weights.
        ValueError: The architecture is not known, or an argument does not fit it, or a path is empty.
        WeightsError: The weights are damaged, of an unknown kind, or not the architecture's.
        HubError: A repository cannot be downloaded.
        UnsupportedTowerError: transformers has no such towers.
        MissingExtraError: transformers is needed and not installed.
        OSError: The disk is full, or the folder cannot be written. After every other error nothing was written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> convert_weights("generated_v3", folder, name="promptreid-tiny").title
        "the tag 'generated_v3'"
        >>> load_clip(f"local-dir:{folder}", image_size=(96, 48)).visual.image_size
        (96, 48)
    """
    folder = given_path("folder", folder)
    given_path("source", source)
    if to not in ("open_clip", "transformers"):
        raise ValueError(f'to is {to!r}, expected "open_clip" or "transformers"')
    if (folder / (CONFIG_NAME if to == "open_clip" else FOREIGN_CONFIG_NAME)).exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already; choose another folder, or pass overwrite=True")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder to write the model into")
    if name is not None and is_repository(name):
        raise ValueError(f"name is {name}, which brings its own weights; give it as source, and leave name out")
    checkpoint = _find(source, name)
    name = name or _name_of(checkpoint, source)
    pretrained = None if is_repository(name) else source if checkpoint is None else str(checkpoint.path)
    clip = load_clip(
        name, pretrained=pretrained, image_size=image_size, weights_size=weights_size, quick_gelu=quick_gelu
    )
    config = {"model_cfg": model_config(clip), "preprocess_cfg": preprocess_config(clip)}
    foreign = to_transformers(clip) if to == "transformers" else None  # first, since it may be refused
    folder.mkdir(parents=True, exist_ok=True)
    if foreign is not None:
        _write_foreign(foreign, clip, folder)
    else:
        write_tensors_atomically(folder / SAFE_WEIGHTS, clip.state_dict())
        write_json_atomically(folder / CONFIG_NAME, config)
    _write_tokenizer(config["model_cfg"]["text_cfg"], folder, checkpoint, foreign=foreign is not None)
    shapes = {key: tuple(value.shape) for key, value in clip.state_dict().items()}
    return Conversion(
        folder,
        title=f"the tag {source!r}" if checkpoint is None else checkpoint.title,
        name=name,
        image_size=image_size_of(clip),
        trained_size=None if checkpoint is None else checkpoint.trained_size,
        quick_gelu=uses_quick_gelu(clip),
        left_out=() if checkpoint is None else (*checkpoint.left_out, *_prompts_in(Path(_location(source)))),
        loads_in_open_clip=loads_in_plain_open_clip(config["model_cfg"], shapes),
    )


def _prompts_in(folder: Path) -> tuple[str, ...]:
    """The prompts of a folder that `save_prompts` wrote, which an ordinary one has no place for."""
    return (PROMPTS,) if all((folder / name).is_file() for name in (PROMPTS_CONFIG, PROMPTS)) else ()


def _location(source: str) -> str:
    """The folder, file or Hub repository that a source names."""
    return source.split(":", 1)[1] if is_repository(source) else source


def _find(source: str, name: str | None) -> Checkpoint | None:
    """The weights that a source names, on this machine; `None` for a tag."""
    if name is not None and is_listed_tag(name, source):
        return None
    location = _location(source)
    if Path(location).exists():
        return read_checkpoint(Path(location))
    if not names_repository(location):
        raise FileNotFoundError(
            f"there is no {location}, and it is not the name of a Hub repository, USER/NAME; check the path"
            + (
                ". For a tag of open_clip name the architecture too"
                if name is None
                else f", or the tag: open_clip.list_pretrained_tags_by_model({name!r}) lists them"
            )
        )
    return read_checkpoint(download_model(location))


def _name_of(checkpoint: Checkpoint | None, source: str) -> str:
    """The configuration of a checkpoint's model: the one beside it, or else the architecture of these shapes."""
    if checkpoint is not None:
        beside = checkpoint.path.parent
        configs = {CONFIG_NAME, *([FOREIGN_CONFIG_NAME] if checkpoint.title == "transformers" else [])}
        if any((beside / config).is_file() for config in configs) and weights_in(beside) == checkpoint.path:
            return f"local-dir:{beside}"
        if fits := names_that_fit(checkpoint.shapes()):
            return fits[0]
    raise ValueError(
        f"{source} does not say of which architecture it is, and its shapes are not those of a listed one with "
        "OpenAI's towers; name it: name=, one of open_clip.list_models(), such as 'ViT-B-16'"
    )


def _write_foreign(model: Any, clip: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)
    stated, (height, width) = image_preprocessing_of(clip), image_size_of(clip)
    # transformers' numbers of Pillow's filters; images are squashed as here, and a person is never cropped.
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": {"bilinear": 2, "bicubic": 3}[stated["interpolation"]],
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": stated["mean"],
        "image_std": stated["std"],
    }
    write_json_atomically(folder / FOREIGN_IMAGES_NAME, processor)


def _write_tokenizer(text: Mapping[str, Any], folder: Path, checkpoint: Checkpoint | None, *, foreign: bool) -> None:
    """Put the tokenizer beside the weights where it is not open_clip's own, or where transformers is to use it."""
    named = text.get("hf_tokenizer_name")
    if not named:
        if foreign and text.get("vocab_size", 49408) == 49408:
            _write_clip_tokenizer(folder, int(text.get("context_length", 77)))
        return
    beside = None if checkpoint is None else checkpoint.path.parent
    own = beside is not None and (beside / "tokenizer_config.json").is_file()
    try:
        HFTokenizer(str(beside) if own else named, trust_remote_code=False).tokenizer.save_pretrained(folder)
    except (OSError, ImportError, ValueError) as error:  # the last of transformers, where it knows no such tokenizer
        warnings.warn(
            f"the tokenizer of {named} could not be loaded ({str(error).splitlines()[0][:200]}); put its files into "
            f"{folder}, else captions cannot be read",
            stacklevel=3,
        )


def _write_clip_tokenizer(folder: Path, context_length: int) -> None:
    """open_clip's byte-pair encoding of OpenAI's, in the files of transformers' CLIPTokenizer."""
    tokenizer: Any = SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {"<start_of_text>": start, "<end_of_text>": end}
    vocabulary = {names.get(token, token): number for token, number in tokenizer.encoder.items()}
    write_json_atomically(folder / "vocab.json", vocabulary, indent=None)
    merges = "\n".join(" ".join(pair) for pair in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__))
    write_bytes_atomically(folder / "merges.txt", f"#version: 0.2\n{merges}\n".encode())
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    write_json_atomically(folder / "tokenizer_config.json", settings)
