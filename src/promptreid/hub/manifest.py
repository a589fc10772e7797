"""What `prompt_config.json` says: which model a file of prompts belongs to."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from promptreid.errors import CheckpointError
from promptreid.prompts import PromptConfig

FORMAT_VERSION = 1
_MAX_JSON_BYTES = 2**20
_LIMITS = {"text_length": 4096, "vision_length": 65536, "text_depth": 1024, "vision_depth": 1024}


@dataclass(frozen=True)
class PromptManifest:
    """Description of a folder of prompts.

    Attributes:
        model_name: open_clip's name of the architecture.
        pretrained: open_clip's tag of the base's weights, or `None` for random ones.
        image_size: (height, width) in pixels.
        prompts: How the prompts are set up.
        text_shape: (blocks, prompts, width) of the text prompts.
        vision_shape: The same for images.
        base_fingerprint: Samples of the base's weights.
        encoders_fingerprint: Samples of the weights that the prompts were saved with.
        sha256: Digest of each weight file, by its name.
        library_version: promptreid's version that wrote it.
        format_version: Version of this format.
    """

    model_name: str
    pretrained: str | None
    image_size: tuple[int, int]
    prompts: PromptConfig
    text_shape: tuple[int, int, int]
    vision_shape: tuple[int, int, int]
    base_fingerprint: tuple[float, ...]
    encoders_fingerprint: tuple[float, ...]
    sha256: Mapping[str, str]
    library_version: str
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> str:
        """The text of `prompt_config.json`."""
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"


def parse_manifest(content: bytes, *, source: str) -> PromptManifest:
    """Read `prompt_config.json` strictly.

    Args:
        content: The file.
        source: Its name, for errors.

    Raises:
        CheckpointError: It is not JSON, of a newer format, or a key is missing, unknown or out of bounds.
    """
    if len(content) > _MAX_JSON_BYTES:
        raise CheckpointError(f"{source} has {len(content)} bytes; a prompt configuration has a few thousand at most")
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is not valid JSON ({error}); copy or download the folder again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{source} holds {type(entries).__name__}, expected an object")
    values = cast("dict[str, Any]", entries)
    _check_version(values.get("format_version"), source)
    known = {item.name for item in fields(PromptManifest)}
    _check_keys(values.keys(), known, source)
    try:
        return _build(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}; the file is damaged; save the prompts again") from error


def _check_version(version: object, source: str) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{source}: format_version is {version!r}, expected {FORMAT_VERSION}; is it ours?")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} has format version {version}, this library reads up to {FORMAT_VERSION}; "
            "pip install --upgrade promptreid"
        )


def _check_keys(found: Any, known: set[str], source: str) -> None:
    missing, unknown = sorted(known - set(found)), sorted(set(found) - known)
    if missing or unknown:
        raise CheckpointError(
            f"{source}: missing keys {missing or 'none'}, unknown keys {unknown or 'none'}; "
            "pip install --upgrade promptreid if a newer version wrote it, else save the prompts again"
        )


def _build(values: dict[str, Any]) -> PromptManifest:
    settings = values["prompts"]
    if not isinstance(settings, dict):
        raise TypeError(f"prompts is {settings!r}, expected an object")
    unknown = sorted(set(cast("dict[str, Any]", settings)) - {item.name for item in fields(PromptConfig)})
    if unknown:
        raise ValueError(f"prompts has unknown keys {unknown}; pip install --upgrade promptreid")
    for name, limit in _LIMITS.items():
        value = cast("dict[str, Any]", settings).get(name)
        if isinstance(value, int) and value > limit:
            raise ValueError(f"{name} is {value}, more than {limit}")
    if not isinstance(cast("dict[str, Any]", settings).get("position_embedding", False), bool):
        raise TypeError("position_embedding is not true or false")
    return PromptManifest(
        model_name=_text(values, "model_name"),
        pretrained=None if values["pretrained"] is None else _text(values, "pretrained"),
        image_size=cast("tuple[int, int]", _integers(values, "image_size", 2, lowest=1, highest=65536)),
        prompts=PromptConfig(**cast("dict[str, Any]", settings)),
        text_shape=cast("tuple[int, int, int]", _integers(values, "text_shape", 3, lowest=0, highest=65536)),
        vision_shape=cast("tuple[int, int, int]", _integers(values, "vision_shape", 3, lowest=0, highest=65536)),
        base_fingerprint=_samples(values, "base_fingerprint"),
        encoders_fingerprint=_samples(values, "encoders_fingerprint"),
        sha256=_digests(values["sha256"]),
        library_version=_text(values, "library_version"),
        format_version=values["format_version"],
    )


def _text(values: dict[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str) or not value or len(value) > 512 or not value.isprintable():
        raise TypeError(f"{name} is {str(value)[:60]!r}, expected a short line of text")
    return value


def _integers(values: dict[str, Any], name: str, count: int, *, lowest: int, highest: int) -> tuple[int, ...]:
    value = values[name]
    if not isinstance(value, list) or len(cast("list[Any]", value)) != count:
        raise TypeError(f"{name} is {str(value)[:60]!r}, expected {count} integers")
    numbers = cast("list[Any]", value)
    if not all(isinstance(n, int) and not isinstance(n, bool) and lowest <= n <= highest for n in numbers):
        raise ValueError(f"{name} is {str(numbers)[:60]}, expected {count} integers from {lowest} to {highest}")
    return tuple(numbers)


def _samples(values: dict[str, Any], name: str) -> tuple[float, ...]:
    value = values[name]
    if not isinstance(value, list) or not 0 < len(cast("list[Any]", value)) <= 4096:
        raise TypeError(f"{name} is not a list of samples")
    numbers = cast("list[Any]", value)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e30 for n in numbers):
        raise ValueError(f"{name} holds something that is no finite number")
    return tuple(float(n) for n in numbers)


def _digests(value: Any) -> dict[str, str]:
    entries = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    names = {"prompts.safetensors", "open_clip_model.safetensors"}
    fits = "prompts.safetensors" in entries and entries.keys() <= names
    if not fits or not all(
        isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
        for digest in entries.values()
    ):
        raise ValueError("sha256 does not hold one digest for each weight file")
    return dict(entries)
