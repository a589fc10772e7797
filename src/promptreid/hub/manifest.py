"""What `prompt_config.json` says: which model a file of prompts belongs to."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from promptreid.errors import CheckpointError, CorruptFileError
from promptreid.hub.fingerprint import pack_fingerprint, unpack_fingerprint
from promptreid.hub.manifest_values import digests, image_size, prompt_config, shapes, text, truth
from promptreid.prompts import PromptConfig

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 2**16
# What we write is four levels deep; what walks through JSON by recursion fails at some hundreds.
_DEEPEST = 16
# From each older version to the next: what was then a file of that version is one of the next afterwards.
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

    def to_json(self) -> str:
        """The text of `prompt_config.json`, in the newest format."""
        values = {"format_version": FORMAT_VERSION, **asdict(self)}
        same = self.encoders_fingerprint == self.base_fingerprint
        # Beside fine-tuned weights the few bytes do not matter, and they differ little from the base's.
        values["base_fingerprint"] = pack_fingerprint(self.base_fingerprint, exact=not same)
        values["encoders_fingerprint"] = None if same else pack_fingerprint(self.encoders_fingerprint, exact=True)
        values["checksum"] = _checksum(values)
        return json.dumps(values, separators=(",", ":")) + "\n"


def parse_manifest(content: bytes, *, source: str) -> PromptManifest:
    """Read `prompt_config.json` strictly.

    Args:
        content: The file.
        source: Its name, for errors.

    Raises:
        CheckpointError: It is not JSON, of a newer format, damaged, or a key is missing, unknown or out of bounds.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{source} has {len(content)} bytes; a prompt configuration has a few thousand at most")
    values = parse_object(content, source=source)
    version = _check_version(values.get("format_version"), source)
    if values.pop("checksum", None) != _checksum(values):
        raise CorruptFileError(
            f"{source} is damaged or was changed by hand: its checksum is not that of its content; "
            "copy or download it again, or save the prompts again"
        )
    for older in range(version, FORMAT_VERSION):
        values = MIGRATIONS[older](values)
    _check_keys(values.keys(), {"format_version", *(item.name for item in fields(PromptManifest))}, source)
    try:
        return _build(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}; save the prompts again") from error


def parse_object(content: bytes, *, source: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is not JSON, or not an object.
    """
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = str(error)[:200]
        raise CheckpointError(f"{source} is not valid JSON ({reason}); copy or download the folder again") from error
    if _is_deeper(entries, _DEEPEST):
        raise CheckpointError(f"{source} is nested more than {_DEEPEST} levels deep; save the prompts again")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{source} holds {type(entries).__name__}, expected an object; save the prompts again")
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
    """SHA-256 of the values whatever their order and spacing: a flipped bit must not change where prompts go."""
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


def _check_keys(found: Any, known: set[str], source: str) -> None:
    missing, unknown = sorted(known - set(found)), sorted(set(found) - known)
    if missing or unknown:
        raise CheckpointError(
            f"{source}: missing keys {missing or 'none'}, unknown keys {str(unknown)[:200] if unknown else 'none'}; "
            "pip install --upgrade promptreid if a newer version wrote it, else save the prompts again"
        )


def _build(values: dict[str, Any]) -> PromptManifest:
    base = unpack_fingerprint(text(values, "base_fingerprint", longest=2**15))
    own = values["encoders_fingerprint"]
    encoders = base if own is None else unpack_fingerprint(text(values, "encoders_fingerprint", longest=2**15))
    if len(base) != len(encoders):
        raise ValueError(f"its fingerprints have {len(base)} and {len(encoders)} samples")
    height, width = image_size(values)
    return PromptManifest(
        model_name=text(values, "model_name"),
        pretrained=None if values["pretrained"] is None else text(values, "pretrained"),
        image_size=(height, width),
        quick_gelu=truth(values, "quick_gelu"),
        prompts=prompt_config(values["prompts"]),
        shapes=shapes(values["shapes"]),
        base_fingerprint=base,
        encoders_fingerprint=encoders,
        sha256=digests(values["sha256"]),
        library_version=text(values, "library_version"),
    )
