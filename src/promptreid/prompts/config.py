"""How prompts are set up, and the checks of such options."""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from promptreid.values import check_choice, optional_whole_number, shown, whole_number

PromptForm = Literal["independent", "coupled", "prefix", "grouped"]
PROMPT_FORMS: tuple[str, ...] = ("independent", "coupled", "prefix", "grouped")
Initialization = Literal["start_state", "mean_state", "normal"]
INITIALIZATIONS: tuple[str, ...] = ("start_state", "mean_state", "normal")
TextSlot = Literal["after_start", "before_end"]
TEXT_SLOTS: tuple[str, ...] = ("after_start", "before_end")
VisionPlace = Literal["auto", "attention_pool"]
VISION_PLACES: tuple[str, ...] = ("auto", "attention_pool")
NORMAL_STD = 0.02
MOST_LAYERS = 1024
# Far more than anybody needs: what is refused here is refused in a file of prompts, which may come from a stranger.
_MOST = {"text_length": 4096, "vision_length": 65536}
_MOST_GROUPS, _LONGEST_GROUP, _MOST_GROUP_BYTES = 4096, 512, 2**15
# Equal prompts would be given equal gradients and stay equal; this share of noise makes them differ.
NOISE_SHARE = 0.2


@dataclass(frozen=True)
class PromptConfig:
    """Which prompts a model carries; saved with them.

    Args:
        text_length: P, prompts before the caption's first word in each block; 0 leaves the text tower bare.
        vision_length: P, prompts after the class token in each block; 0 leaves the image tower bare. In towers
            without a token sequence it is the width in pixels of the learnable border.
        text_depth: Number of first blocks that own prompts; those of the last continue to the end. `None`: every block.
        vision_depth: The same for images.
        position_embedding: Add the tower's own position embedding to prompts (the paper's ablation).
        text_initialization: `"start_state"`, each block's own hidden state of the start token with a little noise;
            `"mean_state"`, each block's own mean hidden state; or `"normal"`, N(0, 0.02).
        vision_initialization: The same for images. The defaults are those that change the features of the bare
            model least, as `benchmarks/prompt_initialization.py` measures. A border of pixels starts at zero.
        text_slot: `"after_start"`, before the caption's first word, or `"before_end"`, after its last one.
        vision_place: `"auto"`: in the blocks, or on the image's border where there are none; `"attention_pool"`: in
            the attention pool of a ModifiedResNet (RN50, RN101, …).
        kind: `"independent"`, separate tokens in both towers; `"coupled"`, image prompts of each block are a
            learned linear projection of the text prompts of that block (MaPLe). Coupled prompts have one length and
            one depth for both towers, by default the number of blocks that both have. `"prefix"`, keys and values of
            the attention of each block, and no tokens (prefix tuning). `"grouped"`, image prompts for each group of
            images, and text prompts of their own.
        groups: Names of the groups of grouped prompts, such as the cameras of the training images.

    Raises:
        ValueError: A length is negative, above 4,096 for text or above 65,536 for images; a depth is below 1 or above
            1,024; a name is unknown; prompts are coupled, and lengths or depths differ; an option is set that the kind
            does not have; or grouped prompts have no groups, more than 4,096, a name of more than 512 letters, names
            of more than 32,768 bytes in all, as JSON writes them, or some that a file of prompts cannot hold, such as
            one with a no-break space.
        TypeError: A length or depth is not a whole number, `position_embedding` not a bool, or a group's name not text.

    Example:
        >>> PromptConfig(text_length=4, vision_length=4).text_length
        4

    Source:
        Khattak et al. 2023, MaPLe: Multi-modal Prompt Learning, arXiv 2210.03117, section 3.2, for coupled prompts; Li
        and Liang 2021, Prefix-Tuning, arXiv 2101.00190, for prefixes.
    """

    text_length: int = 4
    vision_length: int = 4
    text_depth: int | None = None
    vision_depth: int | None = None
    position_embedding: bool = False
    text_initialization: Initialization = "start_state"
    vision_initialization: Initialization = "normal"
    text_slot: TextSlot = "after_start"
    vision_place: VisionPlace = "auto"
    kind: PromptForm = "independent"
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", check_groups(self.groups))  # JSON gives a list
        for name in ("text_length", "vision_length"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), minimum=0, maximum=_MOST[name]))
        for name in ("text_depth", "vision_depth"):
            depth = optional_whole_number(name, getattr(self, name), minimum=1, maximum=MOST_LAYERS)
            object.__setattr__(self, name, depth)
        if not isinstance(self.position_embedding, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"position_embedding is {shown(self.position_embedding)}, expected True or False")
        for name in ("text_initialization", "vision_initialization"):
            check_choice(name, getattr(self, name), INITIALIZATIONS)
        check_choice("text_slot", self.text_slot, TEXT_SLOTS)
        check_choice("vision_place", self.vision_place, VISION_PLACES)
        check_choice("kind", self.kind, PROMPT_FORMS)
        if self.kind == "coupled":
            self._check_coupled()
        if self.kind == "grouped" and not self.groups:
            raise ValueError(
                'kind is "grouped" and groups is empty; name them, such as the cameras of the training images: '
                "groups=data.train.cameras"
            )
        for name, reason in _NOT_OF_KIND.get(self.kind, {}).items():
            if (value := getattr(self, name)) != _DEFAULTS[name]:
                raise ValueError(f'{name} is {shown(value)}, but kind is "{self.kind}", and {reason}. Leave {name} out')

    def _check_coupled(self) -> None:
        for name in ("length", "depth"):
            text, vision = getattr(self, f"text_{name}"), getattr(self, f"vision_{name}")
            if text != vision:
                raise ValueError(
                    f'kind is "coupled", text_{name} is {text} and vision_{name} is {vision}, but each image prompt is '
                    f"made of one text prompt; give both the same {name}"
                )

    def as_dict(self) -> dict[str, Any]:
        """The settings by name; without `kind` where it is the first one, and `groups` where there are none.

        So files of such prompts are as they have always been.
        """
        values = asdict(self)
        if self.kind == "independent":
            del values["kind"]
        if not self.groups:
            del values["groups"]
        return values


_ONE_FOR_ALL = "its prompts are the same for all images"
_PROJECTED = "image prompts are projections of the text prompts, in the blocks"
_NO_PLACE = "keys and values of attention have no place in the sequence"
# Options that a kind does not have, and why.
_NOT_OF_KIND: dict[str, dict[str, str]] = {
    "independent": {"groups": _ONE_FOR_ALL},
    "coupled": {"vision_initialization": _PROJECTED, "vision_place": _PROJECTED, "groups": _ONE_FOR_ALL},
    "prefix": {
        "position_embedding": _NO_PLACE,
        "text_slot": _NO_PLACE,
        "vision_place": _NO_PLACE,
        "groups": _ONE_FOR_ALL,
    },
    "grouped": {"vision_place": "image prompts are tokens in the blocks"},
}
_DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(PromptConfig)}


def check_groups(groups: object) -> tuple[str, ...]:
    """Names of groups as a tuple: a list of different short texts of printable letters, as a file of prompts has them.

    Raises:
        ValueError: A name is empty, too long, there twice or holds another character, or there are too many.
        TypeError: It is not a list of texts.
    """
    if not isinstance(groups, tuple | list):
        raise TypeError(f"groups is {shown(groups)}, expected a list of names")
    names = tuple(cast("Sequence[Any]", groups))
    for name in names:
        _check_group(name)
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise ValueError(f"groups has {shown(twice)} more than once, expected names that are all different")
    size = len(json.dumps(names))
    if len(names) > _MOST_GROUPS or size > _MOST_GROUP_BYTES:
        raise ValueError(
            f"groups has {len(names):,} names of {size:,} bytes in all, expected at most {_MOST_GROUPS:,} of "
            f"{_MOST_GROUP_BYTES:,}; give fewer groups, or shorter names"
        )
    return names


def _check_group(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"groups holds {shown(name)}, expected names, such as 'cam_a'")
    if not 1 <= len(name) <= _LONGEST_GROUP:
        raise ValueError(f"groups holds {shown(name)} of {len(name)} letters, expected 1 to {_LONGEST_GROUP}")
    odd = next((letter for letter in name if not letter.isprintable()), None)
    if odd is not None:
        better = "".join(letter if letter.isprintable() else "_" for letter in name)
        raise ValueError(
            f"the group {shown(name)} holds U+{ord(odd):04X} ({unicodedata.name(odd, 'a control character')}), "
            "expected printable letters and plain spaces, as a file of prompts has them; rename it, in the annotations "
            f"where it is a camera, such as {shown(better)}"
        )
