"""Which model made the features of a gallery."""

from collections.abc import Mapping
from typing import Any, cast

from promptreid.errors import CheckpointError
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.fingerprint import fingerprint, same_fingerprint

# What is compared by samples of its weights, and how an error names it. The prompts are so few beside the base that
# samples of the whole model would miss them, so each tower's prompts are sampled separately.
_WEIGHTS = {"clip": "open_clip weights", "vision_prompts": "image prompts", "text_prompts": "text prompts"}
_SETTINGS = {
    "image_size": "image size",
    "position_embedding": "position embedding of prompts",
    "text_slot": "position of text prompts",
    "vision_place": "position of image prompts",
}


def model_identity(model: PromptedCLIP) -> dict[str, Any]:
    """What a gallery keeps of the model that encoded it: samples of its weights and prompts, as JSON holds them."""
    return {
        "name": None if model.source is None else model.source.name,
        "image_size": list(model.image_size),
        "position_embedding": model.config.position_embedding,
        "text_slot": model.config.text_slot,
        "vision_place": model.config.vision_place,
        "clip": list(fingerprint(model.clip)),
        "vision_prompts": list(fingerprint(model.vision)),
        "text_prompts": list(fingerprint(model.text)),
    }


def check_identity(saved: Any, model: PromptedCLIP, *, source: str) -> None:
    """Refuse a model whose identity is not the `saved` one of the gallery `source`; says what differs."""
    own = model_identity(model)
    if not isinstance(saved, Mapping) or not own.keys() <= cast("Mapping[str, Any]", saved).keys():
        raise CheckpointError(f"{source} does not say which model encoded it; build it again")
    stored = cast("Mapping[str, Any]", saved)
    try:
        differing = [words for name, words in _WEIGHTS.items() if not same_fingerprint(stored[name], own[name])]
    except TypeError as error:
        raise CheckpointError(f"{source} has a damaged model fingerprint ({error}); build it again") from error
    differing += [words for name, words in _SETTINGS.items() if stored[name] != own[name]]
    if differing:
        raise CheckpointError(
            f"{source} was encoded by another model ({stored['name'] or 'of unknown name'}; different: "
            f"{', '.join(differing)}); load that model, or build the gallery again"
        )
