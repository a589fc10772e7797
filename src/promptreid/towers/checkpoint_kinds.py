"""Whose checkpoint a file is, told by its keys: what of it are the encoders, and how the model was trained."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from promptreid.errors import WeightsError
from promptreid.towers.transformers_names import MARK, from_transformers

# What training scripts put around a state dict, and what wrappers put in front of every name in it.
_WRAPPERS = ("state_dict.", "model_state_dict.", "model.", "module.", "_orig_mod.", "base_model.")
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
_ENCODERS = re.compile(
    r"(visual|transformer|token_embedding|ln_final|text|text_decoder)\.|"
    r"(positional_embedding|text_projection|logit_scale|logit_bias)$"
)
_IN_EVERY_MODEL = (".conv1.weight", "embedding.weight", "embeddings.weight", "positional_embedding", ".pos_embed")
_CROPS = ((24, 8), (16, 8))  # rows and columns of 16-pixel patches in 384 x 128 and 256 x 128


@dataclass(frozen=True)
class CheckpointKind:
    """A kind of checkpoint.

    Attributes:
        title: Whose it is.
        mark: A regular expression that one of its names matches from the start.
        name: The name to load a weight by; `None` for what is not part of the encoders.
        convert: Brings the weights under those names into open_clip's names and layout.
        quick_gelu: Whether it was trained with QuickGELU; `None` if a file of this kind cannot say.
        preprocess: Mean, std and interpolation of its images, where they are not the architecture's.
        crops: Whether its images are pedestrian crops, so that 192 patches are 24 x 8 and 128 are 16 x 8.
    """

    title: str
    mark: str
    name: Callable[[str], str | None]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    quick_gelu: bool | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict[str, Any])
    crops: bool = False

    def image_size(self, patches: int) -> tuple[int, int] | None:
        """(height, width) that a grid of so many 16-pixel patches was trained at, where the kind tells it."""
        fits = [(16 * rows, 16 * columns) for rows, columns in _CROPS if self.crops and rows * columns == patches]
        return fits[0] if fits else None


def _encoders(name: str) -> str | None:
    return name if _ENCODERS.match(name) and name not in _OPENAI_NUMBERS else None


def _tbps_encoders(name: str) -> str | None:
    return _encoders(name.removeprefix("encode_text."))


def _weights(name: str) -> str | None:
    # Older transformers kept these in their text towers.
    return None if name.endswith("position_ids") else name


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_BILINEAR: dict[str, Any] = {"interpolation": "bilinear"}

# Tried in order; the last takes what open_clip itself names or converts.
KINDS = (
    CheckpointKind("OpenAI's CLIP", "input_resolution$", _encoders, quick_gelu=True),
    CheckpointKind("transformers", MARK, _weights, from_transformers),
    CheckpointKind(
        "RDE", "visul_emb_layer|texual_emb_layer", _encoders, quick_gelu=True, preprocess=_BILINEAR, crops=True
    ),
    CheckpointKind("TBPS-CLIP", r"encode_text\.", _tbps_encoders, quick_gelu=True, preprocess=_IMAGENET, crops=True),
    CheckpointKind(
        "IRRA",
        "cross_modal_transformer|mlm_head|base_model",
        _encoders,
        quick_gelu=True,
        preprocess=_BILINEAR,
        crops=True,
    ),
    CheckpointKind("open_clip", r"visual\.|image_encoder\.model\.", _weights),
)


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """The names that a model's own weights have without what training scripts and wrappers put around them.

    Returns:
        Short name → name in the file. Optimisers and what else stands beside the model are left out.
    """
    short = {name: name for name in names}
    while True:
        wrapper = next((each for each in _WRAPPERS if any(_wrapped_model(name, each) for name in short)), None)
        if wrapper is None:
            return short
        if wrapper in ("base_model.", "module.", "_orig_mod."):
            # These stand in front of a module's names; heads beside the module keep theirs.
            short = {name.removeprefix(wrapper): full for name, full in short.items()}
        else:
            short = {name.removeprefix(wrapper): full for name, full in short.items() if name.startswith(wrapper)}


def _wrapped_model(name: str, wrapper: str) -> bool:
    rest = name.removeprefix(wrapper)
    return rest != name and rest.endswith(_IN_EVERY_MODEL)


def kind_of(short: Iterable[str], full: Iterable[str], what: str) -> CheckpointKind:
    """The kind of a checkpoint, by its names without and with what was around them.

    Raises:
        WeightsError: It is of no known kind.
    """
    names = [*short]
    if any(name.startswith("prompt_learner.") for name in names):
        raise WeightsError(
            f"{what} is CLIP-ReID's, which holds no token embedding and so no text encoder: it cannot search by words. "
            'Start from the weights it was trained from: pretrained="openai"'
        )
    marked = [*names, *(part for name in full for part in name.split(".") if part == "base_model")]
    for kind in KINDS:
        if any(re.match(kind.mark, name) for name in marked):
            return kind
    raise WeightsError(
        f"{what} holds no model of a known kind: its first names are {', '.join(sorted(names)[:5]) or 'none'}. Known "
        f"are {', '.join(kind.title for kind in KINDS)}; others can be renamed to open_clip's names and saved as "
        "safetensors"
    )
