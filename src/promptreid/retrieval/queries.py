"""Turns what is asked into features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from promptreid.data.dataset import open_image
from promptreid.encoders.clip import PromptedCLIP
from promptreid.retrieval.encoding import check_finite, encode_batch

Query = str | Path | Image.Image


def is_one_query(query: object) -> bool:
    """Whether a query stands for one search and not for a list of them."""
    return isinstance(query, str | Path | Image.Image) or (isinstance(query, Tensor) and query.ndim == 1)


def encode_queries(model: PromptedCLIP | None, query: Any, *, dimensions: int) -> Tensor:
    """Unit features of a query or a list of queries, (Q, E) float32 on the CPU.

    Args:
        model: Encodes sentences and pictures.
        query: A sentence, a picture (a `Path` or a PIL image), a list of these, or features (E,) or (Q, E).
        dimensions: E.

    Raises:
        ValueError: There is no model, no query, a sentence is empty, or features are of the wrong shape or not finite.
        TypeError: A query is of another kind.
        DatasetError: A picture cannot be read.
    """
    if isinstance(query, Tensor):
        return _check_features(query, dimensions)
    queries = [query] if is_one_query(query) else query
    if not isinstance(queries, Sequence):
        raise TypeError(_wrong_kind(query))
    items = cast("Sequence[Any]", queries)
    if len(items) == 0:
        raise ValueError("the list of queries is empty; give at least one")
    for item in items:
        if not isinstance(item, str | Path | Image.Image):
            raise TypeError(_wrong_kind(item))
        if isinstance(item, str) and not item.strip():
            raise ValueError("the query is empty; describe the person, such as 'a man in a blue jacket'")
    if model is None:
        raise ValueError(
            "this gallery was loaded without a model, so it can only be searched by features; load it with the model "
            "that encoded it: Gallery.load(directory, model)"
        )
    return _encode(model, items)


def _encode(model: PromptedCLIP, items: Sequence[Query]) -> Tensor:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        features: list[Tensor | None] = [None] * len(items)
        sentences = [place for place, item in enumerate(items) if isinstance(item, str)]
        if sentences:
            tokens = model.tokenizer([cast(str, items[place]) for place in sentences])
            with torch.inference_mode():
                encoded = model.encode_text(tokens.to(next(model.parameters()).device), normalize=True)
            for place, row in zip(sentences, check_finite(encoded.float().cpu().clone()), strict=True):
                features[place] = row
        for place, item in enumerate(items):
            if not isinstance(item, str):
                picture = open_image(item) if isinstance(item, Path) else item.convert("RGB")
                features[place] = encode_batch(model, [model.eval_transform(picture)])[0]
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.stack([row for row in features if row is not None])


def _check_features(features: Tensor, dimensions: int) -> Tensor:
    rows = features.unsqueeze(0) if features.ndim == 1 else features
    if rows.ndim != 2 or rows.shape[1] != dimensions or len(rows) == 0 or not rows.is_floating_point():
        raise ValueError(
            f"query features have shape {tuple(features.shape)} and dtype {features.dtype}, expected floating point "
            f"({dimensions},) or (queries, {dimensions})"
        )
    return normalize(check_finite(rows.detach().float().cpu()), dim=-1)


def _wrong_kind(query: object) -> str:
    return f"query is {type(query).__name__}, expected a sentence, a Path, a PIL image, features, or a list of these"
