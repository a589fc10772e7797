"""Turns queries into features; and says which model made those of a gallery."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from promptreid.errors import CheckpointError, DatasetError, ModelMismatchError
from promptreid.model.encoding import check_finite, check_words
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.fingerprint import fingerprint, same_fingerprint

Query = str | Path | Image.Image

# Rounding to float16 changes a feature's length by less.
_LENGTH_ERROR = 1e-2

# How the error of an image ends that advises what to do with its record in a dataset.
_OF_A_RECORD = re.compile(r"; [^;]*\brecord( out)?$")


def is_one_query(query: object) -> bool:
    """Whether a query is one search and not a list of them."""
    return isinstance(query, str | Path | Image.Image) or (isinstance(query, Tensor) and query.ndim == 1)


def encode_queries(model: PromptedCLIP | None, query: Any, *, dimensions: int) -> Tensor:
    """Unit features of a query or a list of queries, (Q, E) float32 on the CPU.

    Args:
        model: Encodes sentences and images.
        query: A sentence, an image (a `Path` or a PIL image), a list of these, or features (E,) or (Q, E).
        dimensions: E.
    """
    if isinstance(query, Tensor):
        return _check_query_features(query, dimensions)
    queries = [query] if is_one_query(query) else query
    if not isinstance(queries, Sequence):
        raise TypeError(_wrong_kind(query))
    items = cast("Sequence[Any]", queries)
    if len(items) == 0:
        raise ValueError("the list of queries is empty; give at least one")
    for item in items:
        if not isinstance(item, str | Path | Image.Image):
            raise TypeError(_wrong_kind(item))
        check_words(item, name="the query")
    return _query_features(needed(model), items)


def needed(model: PromptedCLIP | None) -> PromptedCLIP:
    """Return the model, or say how to load a gallery with one."""
    if model is None:
        raise ValueError(
            "this gallery was loaded without a model, so it can only be searched by features; load it with the model "
            "that encoded it: Gallery.load(directory, model)"
        )
    return model


def _query_features(model: PromptedCLIP, items: Sequence[Query]) -> Tensor:
    features = torch.empty(len(items), model.embed_dim)
    sentences = [position for position, item in enumerate(items) if isinstance(item, str)]
    images = [position for position, item in enumerate(items) if not isinstance(item, str)]
    for positions in (sentences, images):
        if positions:
            try:
                features[positions] = model.encode([items[position] for position in positions], progress=False)
            except DatasetError as error:
                raise unusable_query(error) from error
    return features


def unusable_query(error: DatasetError) -> DatasetError:
    """The error of an image that is searched by, whose advice is for one that a dataset has a record of."""
    return DatasetError(_OF_A_RECORD.sub("; give another image", str(error)))


def _check_query_features(features: Tensor, dimensions: int) -> Tensor:
    rows = features.unsqueeze(0) if features.ndim == 1 else features
    if rows.ndim != 2 or rows.shape[1] != dimensions or len(rows) == 0 or not rows.is_floating_point():
        raise ValueError(
            f"query features have shape {tuple(features.shape)} and dtype {features.dtype}, expected floating point "
            f"({dimensions},) or (queries, {dimensions})"
        )
    return normalize(check_finite(rows.detach().float().cpu()), dim=-1)


def _wrong_kind(query: object) -> str:
    return f"query is {type(query).__name__}, expected a sentence, a Path, a PIL image, features, or a list of these"


def rows_of_other_length(features: Tensor) -> list[int]:
    """Rows of features (N, E) that are not of unit length, or not numbers."""
    lengths = torch.linalg.vector_norm(features, dim=1, dtype=torch.float32)
    return (~((lengths - 1).abs() <= _LENGTH_ERROR)).nonzero().flatten().tolist()


def check_features(features: Tensor, rows: int, dimensions: int | None = None) -> Tensor:
    """Return features that images can be found by: (rows, dimensions), of unit length, float32 or float16.

    Other floating point is returned as float32; anything else is refused.
    """
    fits = features.ndim == 2 and len(features) == rows and features.shape[1] == (dimensions or features.shape[1])
    if not fits or not features.is_floating_point():
        found = f"shape {tuple(features.shape)} and dtype {features.dtype}"
        expected = f"floating point ({rows}, {dimensions or 'dimensions'}), a row for each image"
        raise ValueError(f"features have {found}, expected {expected}")
    return check_unit_length(features)


def in_kept_precision(features: Tensor) -> Tensor:
    """Features in a precision that galleries and stores keep: float16 as it is, any other as float32."""
    return features if features.dtype == torch.float16 else features.float()


def check_unit_length(features: Tensor) -> Tensor:
    """Return features (N, E) of unit length, in a precision that is kept; refuse others, or NaN."""
    features = check_finite(in_kept_precision(features))
    if wrong := rows_of_other_length(features):
        length = float(torch.linalg.vector_norm(features[wrong[0]], dtype=torch.float32))
        raise ValueError(
            f"{len(wrong)} of {len(features)} features are not of unit length, such as number {wrong[0]} of "
            f"length {length:.3g}; scores are cosine similarities: give torch.nn.functional.normalize(features, dim=-1)"
        )
    return features


# What is compared by samples of its weights, and how an error names it. The prompts are so few beside the base that
# samples of the whole model would miss them, so each tower's prompts are sampled separately.
_WEIGHTS = {"clip": "open_clip weights", "vision_prompts": "image prompts", "text_prompts": "text prompts"}
_SETTINGS = {
    "image_size": "image size",
    "position_embedding": "position embedding of prompts",
    "text_slot": "position of text prompts",
    "vision_place": "position of image prompts",
    "groups": "groups of image prompts",
}


def model_identity(model: PromptedCLIP) -> dict[str, Any]:
    """The identity of the model that encoded a gallery: samples of its weights and prompts, for JSON."""
    # Only where there are any, so that a gallery of another kind of prompts is the same as it has always been.
    groups = {"groups": list(model.groups)} if model.groups else {}
    return {
        **groups,
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
    differing += [words for name, words in _SETTINGS.items() if stored.get(name) != own.get(name)]
    if differing:
        raise ModelMismatchError(
            f"{source} was encoded by another model ({stored['name'] or 'of unknown name'}; different: "
            f"{', '.join(differing)})"
        )
