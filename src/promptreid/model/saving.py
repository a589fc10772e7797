"""Saves a prompted model to a folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from promptreid.errors import listed
from promptreid.hub.manifest import PromptManifest
from promptreid.hub.prompt_files import FILES, MANIFEST, check_replaceable, is_finite, write_prompt_files
from promptreid.model.base_lookup import make_base
from promptreid.model.encoding import check_prompted
from promptreid.towers.adapters import merge_adapters
from promptreid.towers.empty_models import unlike_source
from promptreid.towers.fingerprint import (
    WeightDigests,
    fingerprint,
    weight_checks,
    weight_digests,
    weights_changed,
    without_tensors,
)
from promptreid.towers.loading import ClipSource, model_config, preprocess_config, source_of
from promptreid.towers.names import is_listed_tag
from promptreid.towers.tower import uses_quick_gelu
from promptreid.values import given_path
from promptreid.version import __version__

if TYPE_CHECKING:
    from promptreid.model.prompted_clip import PromptedCLIP

Encoders = Literal["auto", "always"]


def save_prompts(
    model: "PromptedCLIP",
    directory: str | Path,
    *,
    encoders: Encoders = "auto",
    overwrite: bool = False,
) -> Path:
    """Save a model's prompts, and its encoders where they are no longer the base's; also `model.save_pretrained`.

    After stage 1 the folder holds `prompts.safetensors` and `prompt_config.json`, some hundred kilobytes. After stage
    2 the encoders have changed, and the prompts would be useless on the base: the weights are then saved too, as
    open_clip's own `open_clip_model.safetensors` and `open_clip_config.json`. Killed at any moment, a save over an
    older one leaves the older or the newer one; other files in the folder are not touched.

    Layers of PEFT, such as LoRA's, are merged into the weights that are written; the model keeps them.

    Args:
        model: What to save.
        directory: The folder; made if it is not there.
        encoders: `"auto"` saves the weights if they differ from the base's, `"always"` in any case.
        overwrite: Replace prompts that the folder holds already.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds prompts already; or another model, or the weights that the prompts are for,
            which are not overwritten in any case.
        NotADirectoryError: `directory` is a file.
        OSError: The disk is full, or the folder cannot be written.
        TypeError: `model` is not a `PromptedCLIP`.
        ValueError: It is not known where the open_clip model came from, something to be saved is not finite, or
            `encoders` is unknown or `directory` empty; or PEFT's layers cannot be merged, or others were added; or
            prompts were detached.

    Example:
        >>> import tempfile
        >>> from promptreid import PromptedCLIP, load_clip, load_prompts
        >>> clip = load_clip("promptreid-tiny", pretrained="generated_v3", image_size=(96, 48))
        >>> folder = save_prompts(PromptedCLIP(clip), tempfile.mkdtemp())
        >>> sorted(path.name for path in folder.glob("[!.]*"))
        ['prompt_config.json', 'prompts.safetensors']
        >>> load_prompts(folder).image_size
        (96, 48)
    """
    source = _check_saveable(model, encoders)
    directory = given_path("directory", directory)
    check_destination(directory, source, overwrite=overwrite)
    clip = _plain_clip(model, source)
    digests = weight_digests(clip)
    changed = _has_changed(model, clip, source, digests)
    tensors = {name: value.float() for name, value in model.prompt_state_dict().items()}
    manifest = _describe(model, clip, source, tensors, changed=changed, digests=digests)
    weights: dict[str, Tensor] | None = None
    config: dict[str, Any] | None = None
    if changed or encoders == "always":
        weights = clip.state_dict()
        config = {"model_cfg": model_config(clip), "preprocess_cfg": preprocess_config(clip)}
    if not is_finite({**tensors, **(weights or {})}):
        raise ValueError("the model holds NaN or infinity; training diverged, so nothing was saved")
    write_prompt_files(directory, manifest, tensors, encoders=weights, open_clip_config=config)
    return directory


def check_destination(directory: Path, source: ClipSource | None, *, overwrite: bool) -> None:
    """Refuse a folder in which a save would destroy something; see `save_prompts`."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; give a folder to save prompts in")
    own = {(directory / name).resolve() for name in ("", *FILES)}
    if source is not None and any(base.resolve() in own for base in _local_bases(source)):
        raise FileExistsError(f"{directory} holds the weights that these prompts are for; choose another folder")
    if (directory / MANIFEST).exists() and not overwrite:
        raise FileExistsError(f"{directory} holds prompts already; choose another folder, or pass overwrite=True")
    check_replaceable(directory)


def _local_bases(source: ClipSource) -> list[Path]:
    """The folder or the file of this machine that a model came from."""
    if source.name.startswith("local-dir:"):
        return [Path(source.name.removeprefix("local-dir:"))]
    if source.pretrained is None or is_listed_tag(source.name, source.pretrained):
        return []
    return [Path(source.pretrained)]


def _check_saveable(model: "PromptedCLIP", encoders: str) -> ClipSource:
    check_prompted(model)
    if encoders not in ("auto", "always"):
        raise ValueError(f'encoders is {encoders!r}, expected "auto" or "always"')
    towers = {"image prompts": model.vision, "text prompts": model.text}
    if away := [name for name, encoder in towers.items() if not encoder.prompts.attached]:
        raise ValueError(
            f"the {' and '.join(away)} are not in the open_clip model, since detach() took them out; save before, or "
            "put them back: model.vision.attach() and model.text.attach()"
        )
    if model.source is None:
        raise ValueError(
            "it is not known which open_clip model this is; make it with promptreid.load_clip(name, ...), or pass "
            "source=ClipSource(name, pretrained, image_size) to PromptedCLIP"
        )
    return model.source


def _plain_clip(model: "PromptedCLIP", source: ClipSource) -> nn.Module:
    """The open_clip model as open_clip would make it, PEFT's layers merged; refuses what else was added."""
    clip = merge_adapters(model.clip)
    gained, lost = unlike_source(clip, source)
    if gained and (not lost or source == source_of(model.clip)):
        raise ValueError(
            f"the open_clip model has gained {listed(gained)} since it was made, and open_clip could not load what "
            "would be saved. Take them out first; layers of PEFT are merged by themselves where they were put in by "
            "get_peft_model(model.clip, config)"
        )
    if gained or lost:
        raise ValueError(
            f"this model is said to be {source.name}, but has gained {listed(gained) or 'nothing'} and lacks "
            f"{listed(lost) or 'nothing'}, so nobody could load what would be saved. Give PromptedCLIP the source that "
            "the model is from, or make it with promptreid.load_clip, and take out what was put into it"
        )
    return clip


def _has_changed(model: "PromptedCLIP", clip: nn.Module, source: ClipSource, digests: WeightDigests) -> bool:
    """Whether the encoders differ from those that anybody can make from the source."""
    if model.base_digests is None:
        return True
    try:
        return weights_changed(model.base_digests, clip, partial(make_base, source), now=digests)
    except Exception:  # of any kind: the base is not available for comparison, and saving the encoders is safe
        return True


def _describe(
    model: "PromptedCLIP",
    clip: nn.Module,
    source: ClipSource,
    tensors: Mapping[str, Tensor],
    *,
    changed: bool,
    digests: WeightDigests,
) -> PromptManifest:
    # Where the encoders changed, the few bytes of the whole fingerprint do not matter.
    base = model.base_fingerprint if changed else without_tensors(model.base_fingerprint)
    return PromptManifest(
        model_name=source.name,
        pretrained=source.pretrained,
        image_size=model.image_size,
        quick_gelu=uses_quick_gelu(clip),
        prompts=model.config,
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        base_fingerprint=base,
        encoders_fingerprint=fingerprint(clip)[: len(base)] if changed else base,
        sha256={},
        library_version=__version__,
        kinds=model.prompt_kinds,
        weights=weight_checks(clip, digests),
        weights_size=source.weights_size,
    )
