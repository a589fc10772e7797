"""Recognises which project wrote a checkpoint, from its keys, and how to extract its encoders."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
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
_SIZES = ((384, 128), (256, 128), (224, 224))  # of images, in the field's configurations


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
        crops: Whether its images are of one of the field's sizes, so that 192 patches are 24 x 8 and 128 are 16 x 8.
        refuse: From its names, why the weights cannot be used; `None` if they can.
        base: Tag of the weights that it was trained from, which lend what it `lacks`; `None` if it is whole.
        lacks: The weights that are the base's.
    """

    title: str
    mark: str
    name: Callable[[str], str | None]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    quick_gelu: bool | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict[str, Any])
    crops: bool = False
    refuse: Callable[[Sequence[str]], str | None] = lambda _: None
    base: str | None = None
    lacks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.lacks and self.base is None:
            raise ValueError(
                f"{self.title!r} lacks {', '.join(self.lacks)}, but base is None: name the tag of the weights that it "
                "was trained from, which lend them"
            )
        try:
            re.compile(self.mark)
        except re.error as error:
            raise ValueError(f"mark of {self.title!r} is not a regular expression: {error}") from error

    def image_size(self, patches: int, what: str) -> tuple[int, int] | None:
        """(height, width) that a grid of so many 16-pixel patches was trained at, where the kind tells it.

        Raises:
            WeightsError: The patches overlap, as `--stride_size` below 16 makes them.
        """
        if not self.crops:
            return None
        for stride, (height, width) in product(range(16, 7, -1), _SIZES):
            if ((height - 16) // stride + 1) * ((width - 16) // stride + 1) != patches:
                continue
            if stride < 16:
                raise WeightsError(
                    f"{what} holds {patches} patches, as images of ({height}, {width}) give at a stride of {stride}: "
                    "they overlap, which no tower of open_clip does. Take a checkpoint that was trained at a stride of "
                    "16, the default"
                )
            return height, width
        return None


def _encoders(name: str) -> str | None:
    return name if _ENCODERS.match(name) and name not in _OPENAI_NUMBERS else None


def _tbps_encoders(name: str) -> str | None:
    return _encoders(name.removeprefix("encode_text."))


def _clip_reid_encoders(name: str) -> str | None:
    for part, own in (("image_encoder.", "visual."), ("text_encoder.", "")):
        if name.startswith(part):
            return own + name.removeprefix(part)
    return None


def _refuse_clip_reid(names: Sequence[str]) -> str | None:
    if "cv_embed" in names:
        return "its image encoder was trained with an embedding of the camera (SIE_CAMERA), which no search has"
    if any(name.startswith("image_encoder.layer4.") for name in names):
        return "its ResNet's last stage has a stride of 1, which no tower of open_clip has"
    if not any(name.startswith("text_encoder.") for name in names):
        return "it holds only an image encoder"
    return None


def _weights(name: str) -> str | None:
    # Older transformers kept these in their text towers.
    return None if name.endswith("position_ids") else name


_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_BILINEAR: dict[str, Any] = {"interpolation": "bilinear"}

# Names and settings of the field's own are those of their public code, read in November 2026:
# https://github.com/anosorae/IRRA, https://github.com/QinYang79/RDE, https://github.com/Flame-Chasers/TBPS-CLIP and
# https://github.com/Syliz517/CLIP-ReID. CLIP-ReID keeps the text encoder of OpenAI's weights frozen and stores all of
# it but the token embedding. Tried in order; the last takes what open_clip itself names or converts. For a format of
# your own: `KINDS.insert(0, CheckpointKind(...))`.
KINDS: list[CheckpointKind] = [
    CheckpointKind("OpenAI's CLIP", "input_resolution$", _encoders, quick_gelu=True),
    CheckpointKind("transformers", MARK, _weights, from_transformers),
    CheckpointKind(
        "CLIP-ReID",
        r"prompt_learner\.|image_encoder\.(class_embedding|layer4\.)",
        _clip_reid_encoders,
        quick_gelu=True,
        preprocess={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), **_BILINEAR},
        crops=True,
        refuse=_refuse_clip_reid,
        base="openai",
        lacks=("token_embedding.weight",),
    ),
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
]


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """The names that a model's own weights have without what training scripts and wrappers put around them.

    Returns:
        Short name → name in the file. Optimisers and anything else beside the model are left out.
    """
    short = {name: name for name in names}
    while True:
        wrapper = next((each for each in _WRAPPERS if any(_wrapped_model(name, each) for name in short)), None)
        if wrapper is None:
            return short
        if wrapper in ("base_model.", "module.", "_orig_mod."):
            # These are prefixes of a module's names; heads beside the module keep theirs.
            short = {name.removeprefix(wrapper): full for name, full in short.items()}
        else:
            short = {name.removeprefix(wrapper): full for name, full in short.items() if name.startswith(wrapper)}


def _wrapped_model(name: str, wrapper: str) -> bool:
    rest = name.removeprefix(wrapper)
    return rest != name and rest.endswith(_IN_EVERY_MODEL)


def kind_of(short: Iterable[str], full: Iterable[str], what: str) -> CheckpointKind:
    """The kind of a checkpoint, by its names without and with what was around them.

    Raises:
        WeightsError: It is of no known kind, or `CheckpointKind.refuse` says why its encoders cannot search by words.
    """
    names = [*short]
    marked = [*names, *(part for name in full for part in name.split(".") if part == "base_model")]
    for kind in KINDS:
        if any(re.match(kind.mark, name) for name in marked):
            reason = kind.refuse(names)
            if reason is not None:
                start = f'. Start from the weights it was trained from: pretrained="{kind.base}"' if kind.base else ""
                raise WeightsError(f"{what} is {kind.title}'s, and cannot search by words: {reason}{start}")
            return kind
    held = f"only {', '.join(sorted(names)[:5])}" if names else "no tensors"
    raise WeightsError(
        f"{what} holds no image encoder of a known kind: {held}. Expected the whole model's weights, not a head or an "
        f"adapter, with the names of {', '.join(kind.title for kind in KINDS)}"
    )
