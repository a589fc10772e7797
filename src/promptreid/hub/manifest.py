"""The contents of `prompt_config.json`: the model that prompts belong to, and the check of every value."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from promptreid.errors import CheckpointError, CorruptFileError
from promptreid.prompts.config import PromptConfig
from promptreid.towers.downloading import CONFIG_NAME, SAFE_WEIGHTS
from promptreid.towers.fingerprint import check_weight_checks, pack_fingerprint, unpack_fingerprint
from promptreid.towers.loading import ClipSource
from promptreid.towers.names import is_listed_tag, is_repository

# The files that a digest can be of; only the first is always there.
PROMPTS = "prompts.safetensors"
ENCODERS: str = SAFE_WEIGHTS
ENCODERS_CONFIG: str = CONFIG_NAME

_LONGEST_SIDE = 65536
_MOST_PIXELS = 2**22  # of an image; what a tower keeps by position grows with it, to 67 MB in a ViT-L/16
_MOST_ELEMENTS = 2**23  # 32 MB of prompts: the largest open_clip model with 64 prompts in every block has a third
# Of a projection for each block, of which the largest open_clip model has half, and of prompts for many groups.
_MOST_ELEMENTS_OF = {"coupled": 2**27, "grouped": 2**27}
_MOST_TENSORS = 256  # one for each block of both towers and more; built-in kinds have at most three a tower

# Pixels are from 0 to 1 when the mean is taken off and the standard deviation divides.
_STATISTICS = {"mean": (-10.0, 10.0), "std": (1e-3, 10.0)}

_PREPROCESSING_CHOICES = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "nearest", "random"),
    "resize_mode": ("shortest", "longest", "squash"),
}

_TENSOR_NAME = re.compile(r"(vision|text)\.prompts\.[A-Za-z0-9_.]{1,128}")
_TOWERS = ("vision", "text")
_OPTIONAL = {"kinds", "weights", "weights_size"}  # left out where there are none, as in older files


def text(values: Mapping[str, Any], name: str, *, longest: int = 512) -> str:
    """A short line."""
    value = values[name]
    if not isinstance(value, str) or not value or len(value) > longest or not value.isprintable():
        raise TypeError(f"{name} is {str(value)[:60]!r}, expected a short line of text")
    return value


def truth(values: Mapping[str, Any], name: str) -> bool:
    """True or false."""
    value = values[name]
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {str(value)[:60]!r}, expected true or false")
    return value


def integers(
    values: Mapping[str, Any], name: str, *, counts: tuple[int, ...], lowest: int, highest: int = _LONGEST_SIDE
) -> tuple[int, ...]:
    """A list of integers, as many as one of `counts`."""
    value = values[name]
    if not isinstance(value, list) or len(cast("list[Any]", value)) not in counts:
        raise TypeError(f"{name} is {str(value)[:60]!r}, expected {' or '.join(map(str, counts))} integers")
    numbers = cast("list[Any]", value)
    if not all(isinstance(n, int) and not isinstance(n, bool) and lowest <= n <= highest for n in numbers):
        raise ValueError(f"{name} is {str(numbers)[:60]}, expected integers from {lowest} to {highest}")
    return tuple(numbers)


def image_size(values: Mapping[str, Any], name: str = "image_size") -> tuple[int, int]:
    """(height, width) in pixels."""
    height, width = integers(values, name, counts=(2,), lowest=1)
    if height * width > _MOST_PIXELS:
        raise ValueError(f"{name} is {[height, width]}, expected at most {_MOST_PIXELS} pixels, as 2048 x 2048")
    return height, width


def prompt_config(value: Any) -> PromptConfig:
    """How prompts are set up."""
    if not isinstance(value, dict):
        raise TypeError(f"prompts is {str(value)[:60]!r}, expected an object")
    settings = cast("dict[str, Any]", value)
    unknown = sorted(settings.keys() - {item.name for item in fields(PromptConfig)})
    if unknown:
        raise ValueError(f"prompts has unknown keys {str(unknown)[:200]}; pip install --upgrade promptreid")
    return PromptConfig(**settings)


def check_elements(shapes: Iterable[tuple[int, ...]], kind: str) -> None:
    """Refuse tensors of more numbers than a file of prompts of this kind may have.

    Raises:
        ValueError: There are more.
    """
    elements, most = sum(map(math.prod, shapes)), _MOST_ELEMENTS_OF.get(kind, _MOST_ELEMENTS)
    if elements > most:
        raise ValueError(
            f"the prompts have {elements:,} numbers, expected at most {most:,}; give fewer groups, or a smaller length "
            "or depth"
        )


def shapes(value: Any, kind: str) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of prompts of a kind."""
    if not isinstance(value, dict) or not 0 < len(cast("dict[str, Any]", value)) <= _MOST_TENSORS:
        raise TypeError(f"shapes is {str(value)[:60]!r}, expected the shapes of 1 to {_MOST_TENSORS} tensors")
    counts, names = (0, 1, 2, 3, 4), cast("dict[str, Any]", value)
    # A border may have as many rows as an image has pixels.
    found = {name: integers(names, name, counts=counts, lowest=0, highest=_MOST_PIXELS) for name in names}
    strange = [name for name in found if not _TENSOR_NAME.fullmatch(name)]
    if strange:
        raise ValueError(f"shapes names {str(strange)[:200]}, which are not prompt tensors")
    check_elements(found.values(), kind)
    return found


def kinds(value: Any) -> dict[str, str]:
    """The kind of prompts of each tower that has none of the built-in ones."""
    entries = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if not entries or entries.keys() - set(_TOWERS):
        raise TypeError(f"kinds is {str(value)[:60]!r}, expected the kind of prompts of {' or '.join(_TOWERS)}")
    return {tower: text(entries, tower) for tower in entries}


def weights(value: Any) -> dict[str, str]:
    """Checksums of the weights."""
    if not isinstance(value, dict):
        raise TypeError(f"weights is {str(value)[:60]!r}, expected an object")
    check_weight_checks(cast("dict[str, Any]", value))
    return dict(cast("dict[str, str]", value))


def digests(value: Any) -> dict[str, str]:
    """SHA-256 of each file."""
    entries = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    with_encoders = {PROMPTS, ENCODERS, ENCODERS_CONFIG}
    if entries.keys() not in ({PROMPTS}, with_encoders) or not all(
        isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in entries.values()
    ):
        raise ValueError(
            f"sha256 does not hold one digest for {PROMPTS}, or for each of {', '.join(sorted(with_encoders))}"
        )
    return dict(entries)


def check_preprocessing(values: Mapping[str, Any]) -> None:
    """Refuse a `preprocess_cfg` that open_clip would not write: images go through it before the model sees them."""
    unknown = sorted(values.keys() - {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"})
    if unknown:
        raise ValueError(f"preprocess_cfg has unknown keys {str(unknown)[:200]}")
    for name, (lowest, highest) in _STATISTICS.items():
        value = values.get(name)
        numbers = cast("list[Any]", value) if isinstance(value, list) else []
        right = [
            n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and lowest <= n <= highest
        ]
        if value is not None and not len(numbers) == len(right) == 3:
            raise ValueError(f"{name} is {str(value)[:60]}, expected 3 numbers from {lowest} to {highest}")
    for name, choices in _PREPROCESSING_CHOICES.items():
        value = values.get(name)
        if value is not None and value not in choices:
            raise ValueError(f"{name} is {str(value)[:60]!r}, expected one of {', '.join(choices)}")
    fill = values.get("fill_color")
    if fill is not None and not (isinstance(fill, int) and 0 <= fill <= 255):
        raise ValueError(f"fill_color is {str(fill)[:60]!r}, expected 0 to 255")
    if values.get("size") is not None:
        image_size({"image_size": values["size"]})


FORMAT_VERSION = 1

MAX_MANIFEST_BYTES = 2**16

# What we write is four levels deep; what walks through JSON by recursion fails at some hundreds.
_DEEPEST = 16

# From each older version to the next: how the values of a file of that version are changed into those of the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


@dataclass(frozen=True)
class PromptManifest:
    """Description of a folder of prompts.

    Attributes:
        model_name: open_clip's name of the architecture.
        pretrained: open_clip's tag of the base's weights, or a file's path; `None` for random ones.
        image_size: (height, width) in pixels.
        quick_gelu: Whether the model computes QuickGELU.
        prompts: How the prompts are set up.
        shapes: Shape of each tensor of prompts, by its name.
        base_fingerprint: Samples of the base's weights.
        encoders_fingerprint: Samples of the weights that the prompts were saved with.
        sha256: Digest of each file, by its name.
        library_version: promptreid's version that wrote it.
        kinds: Qualified name of the kind of prompts, for each tower whose prompts are not built in.
        weights: Checksums of all weights that the prompts were saved with; none in older files.
        weights_size: (height, width) in pixels of the base's weights, where they are a file that does not state it.
    """

    model_name: str
    pretrained: str | None
    image_size: tuple[int, int]
    quick_gelu: bool
    prompts: PromptConfig
    shapes: Mapping[str, tuple[int, ...]]
    base_fingerprint: tuple[float, ...]
    encoders_fingerprint: tuple[float, ...]
    sha256: Mapping[str, str]
    library_version: str
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    weights: Mapping[str, str] = field(default_factory=dict[str, str])
    weights_size: tuple[int, int] | None = None

    def to_json(self) -> str:
        """The text of `prompt_config.json`, in the newest format."""
        values = self._values()
        return _as_text({**values, "checksum": _checksum(values)})

    def check_readable(self) -> None:
        """Refuse what `parse_manifest` would refuse.

        Raises:
            CheckpointError: A value is out of bounds, or the text is too long.
        """
        _build(
            _parse_values(_as_text(self._values()).encode(), source="prompt_config.json"), source="prompt_config.json"
        )

    def _values(self) -> dict[str, Any]:
        values = {"format_version": FORMAT_VERSION, **asdict(self), "prompts": self.prompts.as_dict()}
        for name in _OPTIONAL:
            if not values[name]:
                del values[name]
        same = self.encoders_fingerprint == self.base_fingerprint
        # Beside fine-tuned weights the few bytes do not matter, and they differ little from the base's.
        values["base_fingerprint"] = pack_fingerprint(self.base_fingerprint, exact=not same)
        values["encoders_fingerprint"] = None if same else pack_fingerprint(self.encoders_fingerprint, exact=True)
        return values

    @property
    def source(self) -> ClipSource:
        """Where the model of the prompts came from."""
        named = is_repository(self.model_name) or self.pretrained is None
        is_file = not named and not is_listed_tag(self.model_name, str(self.pretrained))
        quick_gelu = self.quick_gelu if is_file else None
        return ClipSource(self.model_name, self.pretrained, self.image_size, self.weights_size, quick_gelu)


def parse_manifest(content: bytes, *, source: str) -> PromptManifest:
    """Read `prompt_config.json` strictly.

    Args:
        content: The file.
        source: Its name, for errors.

    Raises:
        CheckpointError: It is of a newer format, or a key is missing, unknown or out of bounds; `CorruptFileError` if
            it is damaged or not JSON.
    """
    values = _parse_values(content, source=source)
    version = _check_version(values.get("format_version"), source)
    if values.pop("checksum", None) != _checksum(values):
        raise CorruptFileError(
            f"{source} is damaged or was changed by hand: its checksum is not that of its content; "
            "copy or download it again, or save the prompts again"
        )
    for older in range(version, FORMAT_VERSION):
        values = MIGRATIONS[older](values)
    return _build(values, source=source)


def _parse_values(content: bytes, *, source: str) -> dict[str, Any]:
    if len(content) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{source} has {len(content)} bytes; a prompt configuration has a few thousand at most")
    return parse_object(content, source=source)


def _as_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":")) + "\n"


def parse_object(content: bytes, *, source: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is nested too deeply; `CorruptFileError` if it is not JSON, or not an object.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
        raise CorruptFileError(f"{source} is not valid JSON ({reason}); copy or download the folder again") from error
    if _is_deeper(entries, _DEEPEST):
        raise CheckpointError(f"{source} is nested more than {_DEEPEST} levels deep; save the prompts again")
    if not isinstance(entries, dict):
        raise CorruptFileError(f"{source} holds {type(entries).__name__}, expected an object; save the prompts again")
    return cast("dict[str, Any]", entries)


def _is_deeper(value: object, levels: int) -> bool:
    layer: list[Any] = [value]
    for _ in range(levels):
        inside = [item.values() if isinstance(item, dict) else item for item in layer if isinstance(item, dict | list)]
        layer = [item for part in inside for item in cast("Any", part)]
        if not layer:
            return False
    return True


def _checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of the values, independent of order and spacing: a flipped bit must not change where prompts go."""
    try:
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    except (RecursionError, ValueError):
        return ""
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_version(version: object, source: str) -> int:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(
            f"{source}: format_version is {str(version)[:60]!r}, expected 1 to {FORMAT_VERSION}; "
            "give a folder that save_prompts wrote"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} has format version {version}, this library reads up to {FORMAT_VERSION}; "
            "pip install --upgrade promptreid"
        )
    return version


def _check_keys(found: Set[str], source: str) -> None:
    known = {"format_version", *(item.name for item in fields(PromptManifest))}
    missing, unknown = sorted(known - found - _OPTIONAL), sorted(found - known)
    if missing or unknown:
        raise CheckpointError(
            f"{source}: missing keys {missing or 'none'}, unknown keys {str(unknown)[:200] if unknown else 'none'}; "
            "pip install --upgrade promptreid if a newer version wrote it, else save the prompts again"
        )


def _build(values: dict[str, Any], *, source: str) -> PromptManifest:
    _check_keys(values.keys(), source)
    try:
        base = unpack_fingerprint(text(values, "base_fingerprint", longest=2**15))
        own = values["encoders_fingerprint"]
        encoders = base if own is None else unpack_fingerprint(text(values, "encoders_fingerprint", longest=2**15))
        if len(base) != len(encoders):
            raise ValueError(f"its fingerprints have {len(base)} and {len(encoders)} samples")
        config = prompt_config(values["prompts"])
        return PromptManifest(
            model_name=text(values, "model_name"),
            pretrained=None if values["pretrained"] is None else text(values, "pretrained"),
            image_size=image_size(values),
            quick_gelu=truth(values, "quick_gelu"),
            prompts=config,
            shapes=shapes(values["shapes"], config.kind),
            base_fingerprint=base,
            encoders_fingerprint=encoders,
            sha256=digests(values["sha256"]),
            library_version=text(values, "library_version"),
            kinds=kinds(values["kinds"]) if "kinds" in values else {},
            weights=weights(values.get("weights", {})),
            weights_size=image_size(values, "weights_size") if "weights_size" in values else None,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}; save the prompts again") from error
