"""Turns image files and queries into features, reading files while the encoder works."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from promptreid.data.images import open_image
from promptreid.errors import DatasetError
from promptreid.model.prompted_clip import PromptedCLIP

# Batches that are decoded ahead of the encoder.
_AHEAD = 2


@dataclass(frozen=True)
class EncodedPictures:
    """One batch.

    Attributes:
        places: Which of the pictures were encoded.
        features: (len(places), E) float32, of unit length, on the CPU.
        unreadable: Which could not be read.
    """

    places: list[int]
    features: Tensor
    unreadable: list[int]


def encode_pictures(
    model: PromptedCLIP,
    paths: Sequence[str],
    *,
    batch_size: int = 64,
    num_threads: int = 4,
    progress: bool = True,
) -> Generator[EncodedPictures, None, None]:
    """Encode pictures batch by batch, in their order, in eval mode on the model's device.

    Pictures are read by threads, which decoding lets run side by side. The model's modes are put back at the end.

    Args:
        model: The model.
        paths: The files.
        batch_size: Pictures at a time.
        num_threads: Threads that read ahead.
        progress: Show a progress bar.

    Raises:
        ValueError: A setting is not positive, or the model gives NaN or infinity.
    """
    if batch_size < 1 or num_threads < 1:
        raise ValueError(f"batch_size is {batch_size} and num_threads {num_threads}, expected at least 1 of each")
    transform = model.eval_transform

    def read(path: str) -> Tensor | None:
        try:
            return transform(open_image(Path(path)))
        except DatasetError:
            return None

    modes = {module: module.training for module in model.modules()}
    model.eval()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="promptreid-read")
    bar = tqdm(total=len(paths), desc="encoding pictures", unit="picture", disable=not progress, leave=False, delay=1)
    try:
        waiting: deque[Future[Tensor | None]] = deque()
        for begin in range(0, len(paths), batch_size):
            end = min(begin + batch_size, len(paths))
            ahead = min(len(paths), end + _AHEAD * batch_size)
            waiting.extend(pool.submit(read, path) for path in paths[begin + len(waiting) : ahead])
            yield _encode_images(model, begin, [waiting.popleft().result() for _ in range(end - begin)])
            bar.update(end - begin)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
        for module, training in modes.items():
            module.training = training


def _encode_images(model: PromptedCLIP, begin: int, pictures: list[Tensor | None]) -> EncodedPictures:
    places = [begin + place for place, picture in enumerate(pictures) if picture is not None]
    unreadable = [begin + place for place, picture in enumerate(pictures) if picture is None]
    features = encode_batch(model, [picture for picture in pictures if picture is not None])
    return EncodedPictures(places, features, unreadable)


def encode_batch(model: PromptedCLIP, pictures: list[Tensor]) -> Tensor:
    """Unit features of transformed pictures, (B, E) float32 on the CPU.

    Raises:
        ValueError: They hold NaN or infinity.
    """
    if not pictures:
        return torch.empty(0, model.embed_dim)
    with torch.inference_mode():
        images: Any = torch.stack(pictures).to(next(model.parameters()).device)
        features = model.encode_image(images, normalize=True).float().cpu()
    # A clone made outside of inference mode may take part in autograd later.
    return check_finite(features.clone())


def check_finite(features: Tensor) -> Tensor:
    """Return `features`, or refuse them.

    Raises:
        ValueError: They hold NaN or infinity.
    """
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite().all(dim=-1)).sum())
        raise ValueError(f"{bad} features hold NaN or infinity; did the model diverge?")
    return features


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
    return _encode_items(model, items)


def _encode_items(model: PromptedCLIP, items: Sequence[Query]) -> Tensor:
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
