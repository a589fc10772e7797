"""Encodes picture files as fast as the encoder goes: files are read and decoded meanwhile."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from promptreid.data.dataset import open_image
from promptreid.encoders.clip import PromptedCLIP
from promptreid.errors import DatasetError

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
            yield _encode(model, begin, [waiting.popleft().result() for _ in range(end - begin)])
            bar.update(end - begin)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
        for module, training in modes.items():
            module.training = training


def _encode(model: PromptedCLIP, begin: int, pictures: list[Tensor | None]) -> EncodedPictures:
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
