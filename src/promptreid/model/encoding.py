"""Turns sentences and images into features, reading files while the encoder works."""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from tqdm import tqdm

from promptreid.data.annotation import caption_problem
from promptreid.data.image_files import IMAGE_ENDINGS
from promptreid.data.images import open_image, to_rgb
from promptreid.defaults import BATCH_SIZE, NUM_THREADS
from promptreid.errors import DatasetError
from promptreid.towers.modes import evaluating
from promptreid.values import whole_number

if TYPE_CHECKING:
    from promptreid.model.prompted_clip import PromptedCLIP

# Batches that are decoded ahead of the encoder.
_AHEAD = 2

_KINDS = (
    "sentences (str), or images: pathlib.Path, PIL images, uint8 arrays (H, W, 3), uint8 tensors (3, H, W), or what "
    "model.eval_transform made of them"
)


class EncodingOptions(TypedDict, total=False):
    """How images are encoded; `encode_images` has the defaults."""

    batch_size: int
    num_threads: int
    progress: bool


@dataclass(frozen=True)
class EncodedImages:
    """One batch.

    Attributes:
        positions: Which of the images were encoded.
        features: (len(positions), E) float32, on the CPU.
        unreadable: Which could not be read, and why.
    """

    positions: list[int]
    features: Tensor
    unreadable: dict[int, DatasetError]


def encode(
    model: "PromptedCLIP",
    inputs: Any,
    *,
    batch_size: int = BATCH_SIZE,
    normalize: bool = True,
    num_threads: int = NUM_THREADS,
    progress: bool = True,
    groups: Sequence[str | None] | None = None,
) -> Tensor:
    """Features of sentences or of images, in their order; a method of `PromptedCLIP`.

    In eval mode, on the model's device, without gradients. A dot product of two unit features is their cosine
    similarity.

    Args:
        model: The model.
        inputs: One sentence or image, or several of one kind. Text is always a sentence; the file of an image is a
            `pathlib.Path`.
        batch_size: How many at a time.
        normalize: Give features of unit length.
        num_threads: Threads that read images ahead.
        progress: Show a progress bar where it takes longer than a second.
        groups: With grouped prompts, the group of each image; without them every image gets the mean prompts.

    Shape:
        - inputs: N sentences, paths or PIL images; arrays uint8 (H, W, 3) or (N, H, W, 3) of any size; tensors uint8
          (3, H, W) or (N, 3, H, W) of any size, or floating point as `model.eval_transform` makes them
        - returns: (N, E) float32 on the CPU; (E,) for one input

    Raises:
        TypeError: An input is of another kind, or sentences and images are mixed.
        ValueError: A sentence is empty or the name of an image, an array has another shape, `batch_size` or
            `num_threads` is less than 1, or features are not finite; or `groups` are given for sentences, not one for
            each image, or to prompts that have none.
        DatasetError: An image is missing or cannot be read.

    Example:
        >>> from promptreid import PromptedCLIP, load_clip
        >>> model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated_v3", image_size=(96, 48)))
        >>> model.encode(["a woman in a red coat", "a man with a bag"]).shape
        torch.Size([2, 128])
        >>> (model.encode("a man") @ model.encode(np.zeros((90, 40, 3), dtype=np.uint8))).shape
        torch.Size([])
    """
    items, single = _listed(inputs)
    texts = _are_sentences(items)
    batch_size, num_threads = _checked_options(batch_size, num_threads)
    if groups is not None and (texts or len(groups) != len(items)):
        what = "sentences, which have none" if texts else f"{len(items)} images"
        raise ValueError(f"groups are given for {len(groups)} images, but inputs are {what}")
    if texts:
        sentences = cast("list[str]", items)
        batches = _encode_sentences(model, sentences, batch_size=batch_size, progress=progress, normalize=normalize)
    else:
        options = EncodingOptions(batch_size=batch_size, num_threads=num_threads, progress=progress)
        batches = encode_images(model, items, normalize=normalize, groups=groups, **options)
    features = torch.empty(len(items), model.embed_dim)
    with closing(batches):  # else whoever keeps the error keeps the threads that read
        for batch in batches:
            for error in batch.unreadable.values():
                raise error
            features[batch.positions] = batch.features
    return features[0] if single else features


def check_prompted(model: object) -> None:
    """Refuse what is not a `PromptedCLIP` (compiled or not), as when arguments are swapped.

    Raises:
        TypeError: It is something else; says what to write.
    """
    if not hasattr(model, "prompt_state_dict"):
        advice = "; wrap it: PromptedCLIP(clip)" if hasattr(model, "encode_text") else ", as load_prompts makes"
        raise TypeError(f"model is {type(model).__name__}, expected a PromptedCLIP{advice}")


def _checked_options(batch_size: int, num_threads: int) -> tuple[int, int]:
    return whole_number("batch_size", batch_size, minimum=1), whole_number("num_threads", num_threads, minimum=1)


def encode_images(
    model: "PromptedCLIP",
    images: Sequence[Any],
    *,
    batch_size: int = BATCH_SIZE,
    num_threads: int = NUM_THREADS,
    progress: bool = True,
    normalize: bool = True,
    groups: Sequence[str | None] | None = None,
) -> Generator[EncodedImages, None, None]:
    """Encode images batch by batch, in their order, in eval mode on the model's device.

    Files are read by `num_threads` threads, since decoding does not hold Python's lock. Here a `str` is a path. Between
    batches the model is in its own mode: nobody knows when, or whether, the next one is asked for.
    """
    batch_size, num_threads = _checked_options(batch_size, num_threads)
    transform = model.eval_transform

    def read(image: Any) -> Tensor | DatasetError:
        try:
            return _pixels(image, transform)
        except DatasetError as error:
            return error

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="promptreid-read")
    bar = tqdm(total=len(images), desc="encoding images", unit="image", disable=not progress, leave=False, delay=1)
    waiting: deque[Future[Tensor | DatasetError]] = deque()
    try:
        for begin in range(0, len(images), batch_size):
            end = min(begin + batch_size, len(images))
            ahead = min(len(images), end + _AHEAD * batch_size)
            waiting.extend(pool.submit(read, image) for image in images[begin + len(waiting) : ahead])
            found = {position: waiting.popleft().result() for position in range(begin, end)}
            yield _encode_batch(model, found, normalize=normalize, groups=groups)
            bar.update(end - begin)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)


def _encode_batch(
    model: "PromptedCLIP",
    found: Mapping[int, Tensor | DatasetError],
    *,
    normalize: bool,
    groups: Sequence[str | None] | None,
) -> EncodedImages:
    images = {position: image for position, image in found.items() if isinstance(image, Tensor)}
    unreadable = {position: error for position, error in found.items() if isinstance(error, DatasetError)}
    if not images:
        return EncodedImages([], torch.empty(0, model.embed_dim), unreadable)
    own = None if groups is None else [groups[position] for position in images]
    with evaluating(model), torch.inference_mode():
        batch = torch.stack(list(images.values())).to(_device(model))
        features = finished_features(model.encode_image(batch, groups=own), normalize=normalize)
    return EncodedImages(list(images), _checked_copy(features), unreadable)


def _encode_sentences(
    model: "PromptedCLIP", sentences: list[str], *, batch_size: int, progress: bool, normalize: bool
) -> Generator[EncodedImages, None, None]:
    """Encode sentences batch by batch, the longest first: those of one batch are cut to its longest."""
    order = sorted(range(len(sentences)), key=lambda position: -len(sentences[position]))
    bar = tqdm(total=len(order), desc="encoding sentences", unit="sentence", disable=not progress, leave=False, delay=1)
    with bar:
        for begin in range(0, len(order), batch_size):
            positions = order[begin : begin + batch_size]
            tokens = model.tokenizer([sentences[position] for position in positions])
            with evaluating(model), torch.inference_mode():
                features = finished_features(model.encode_text(tokens.to(_device(model))), normalize=normalize)
            yield EncodedImages(positions, _checked_copy(features), {})
            bar.update(len(positions))


def finished_features(features: Tensor, *, normalize: bool) -> Tensor:
    """Features as they are handed out: float32, on the CPU, and of unit length if `normalize`.

    It is made after they are float32, since half precision would miss unit length by up to 0.4 %.
    """
    features = features.float()
    return (unit_length(features, dim=-1) if normalize else features).cpu()


def _checked_copy(features: Tensor) -> Tensor:
    # A clone made outside of inference mode may take part in autograd later.
    return check_finite(features.clone())


def check_finite(features: Tensor) -> Tensor:
    """Return `features`, or refuse them because they hold NaN or infinity."""
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite().all(dim=-1)).sum())
        raise ValueError(f"{bad} features hold NaN or infinity; did the model diverge?")
    return features


_AROUND = " \t\r\n'\""  # what comes along when a path is copied


def check_words(text: object, *, name: str) -> None:
    """Refuse a sentence that says nothing, is no text or names an image, and a path of nothing.

    Args:
        text: The sentence; anything that is neither text nor a path passes.
        name: What to call it.
    """
    if isinstance(text, str) and not text.strip():
        raise ValueError(f"{name} is empty; describe the person, such as 'a man in a blue jacket'")
    if isinstance(text, str) and Path(text.strip(_AROUND)).suffix.lower() in IMAGE_ENDINGS:
        raise ValueError(
            f"{name} {text!r} is the name of an image, and text is always a sentence; for the image give "
            f"pathlib.Path({text!r}), or --image {text} on the command line"
        )
    if isinstance(text, str) and (problem := caption_problem(text, name=name)):
        raise ValueError(f"{problem.message}; write it in UTF-8")
    if isinstance(text, Path) and not text.exists():
        raise DatasetError(f"there is no image {text}; check the path")


def _device(model: "PromptedCLIP") -> torch.device:
    return next(model.parameters()).device


def _listed(inputs: Any) -> tuple[list[Any], bool]:
    """The inputs one by one, and whether there was only one, which was not in a list."""
    if isinstance(inputs, str | Path | Image.Image):
        return [inputs], True
    if isinstance(inputs, np.ndarray | Tensor):
        single = inputs.ndim == 3
        return ([inputs] if single or inputs.ndim < 3 else list(cast("Iterable[Any]", inputs))), single
    if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | bytes):
        return list(cast("Iterable[Any]", inputs)), False
    raise TypeError(f"inputs is {type(inputs).__name__}, expected {_KINDS}; one, or a list of one kind")


def _are_sentences(items: Sequence[Any]) -> bool:
    """Whether these are sentences and not images; refuses what is neither, and both at once."""
    for item in items:
        if not isinstance(item, str | Path | Image.Image | np.ndarray | Tensor):
            raise TypeError(f"inputs holds {type(item).__name__}, expected {_KINDS}")
        check_words(item, name="a sentence")
    number = sum(isinstance(item, str) for item in items)
    if 0 < number < len(items):
        raise TypeError(
            f"inputs mixes {number} sentences with {len(items) - number} images; encode them one after the other"
        )
    return number > 0


def _pixels(image: Any, transform: Any) -> Tensor:
    """One image as the encoder takes it, (3, H, W)."""
    if isinstance(image, str | Path):
        return transform(open_image(Path(image)))
    if isinstance(image, Image.Image):
        return transform(to_rgb(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array is {image.dtype} {image.shape}, expected uint8 (H, W, 3), red first")
        # A copy, since what Pillow hands out is read-only; laid out as torchvision does with a PIL image.
        return transform(torch.from_numpy(image.copy()).permute(2, 0, 1))
    own = (3, *transform.image_size)
    if image.is_floating_point() and tuple(image.shape) == own:
        return image.detach().cpu()
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"a tensor is {image.dtype} {tuple(image.shape)}, expected uint8 (3, H, W), or floating point {own} as "
            "model.eval_transform makes it"
        )
    return transform(image.detach().cpu())
