"""Captions as token ids, computed once and kept in a file if asked."""

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from promptreid.files import write_tensors_atomically

CHUNK = 4096
_FORMAT_VERSION = 1
# Sentences whose tokens tell one tokenizer from another: case, punctuation, digits, accents. Short enough for any
# context, of which the rows' length tells.
_PROBES = ("A man in a RED coat, size 42; isn't he tall?", "zweireihiger Übermantel — naïve façade 行人")


def tokenize_captions(
    captions: Sequence[str],
    tokenizer: Callable[[list[str]], Tensor],
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Tensor:
    """Turn captions into token ids, or read them from a file written earlier.

    The file's name holds a digest of the captions and of what the tokenizer does, so other captions or another
    tokenizer never meet the wrong one. A damaged file is written again.

    Args:
        captions: The sentences.
        tokenizer: From a list of captions to token ids (B, L).
        cache_dir: Folder for the file; `None` to tokenise anew.
        progress: Show a progress bar if it takes more than a few seconds.

    Shape:
        - returns: (captions, L) int32

    Raises:
        ValueError: The tokenizer does not return (B, L) integers.
    """
    if cache_dir is None:
        return _tokenize(captions, tokenizer, progress)
    path = Path(cache_dir) / f"tokens-{_key(captions, tokenizer)}.safetensors"
    tokens = _read(path, len(captions))
    if tokens is None:
        tokens = _tokenize(captions, tokenizer, progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors_atomically(path, {"tokens": tokens})
    return tokens


def _tokenize(captions: Sequence[str], tokenizer: Callable[[list[str]], Tensor], progress: bool) -> Tensor:
    context = _call(tokenizer, [""]).shape[1]
    tokens = torch.empty((len(captions), context), dtype=torch.int32)
    starts = range(0, len(captions), CHUNK)
    for start in tqdm(starts, desc="tokenising captions", disable=not progress, leave=False, delay=3):
        chunk = list(captions[start : start + CHUNK])
        tokens[start : start + CHUNK] = _call(tokenizer, chunk)
    return tokens


def _call(tokenizer: Callable[[list[str]], Tensor], captions: list[str]) -> Tensor:
    tokens: Any = tokenizer(captions)
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(captions) or tokens.is_floating_point():
        what = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"the tokenizer gave {what} for {len(captions)} captions, expected integers (captions, L)")
    return tokens


def _key(captions: Sequence[str], tokenizer: Callable[[list[str]], Tensor]) -> str:
    behaviour = _call(tokenizer, list(_PROBES)).tolist()
    digest = blake2b(json.dumps([_FORMAT_VERSION, behaviour]).encode(), digest_size=12)
    for caption in captions:
        digest.update(caption.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _read(path: Path, count: int) -> Tensor | None:
    """The tokens in a file, or `None` if there is none that serves."""
    if not path.is_file():
        return None
    try:
        tokens = load_file(path)["tokens"]
    except (OSError, SafetensorError, KeyError):
        return None
    return tokens if tokens.dtype == torch.int32 and tokens.ndim == 2 and len(tokens) == count else None
