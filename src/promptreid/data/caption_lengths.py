"""How many tokens captions have, also those that a tokenizer would cut."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 4096
MAX_LENGTH = 16_384  # tokens; beyond it a caption is counted as so long


def caption_lengths(captions: Sequence[str], tokenizer: Callable[..., Tensor]) -> tuple[list[int], int]:
    """Count the tokens of captions, start and end included.

    Args:
        captions: The sentences.
        tokenizer: From captions to padded token ids (B, L), as open_clip's are: a `context_length` given with the
            captions sets L. With a tokenizer that does not take it, a caption that fills the context counts as one
            token longer.

    Returns:
        The number of tokens of each caption, and the context length.

    Example:
        >>> import open_clip
        >>> caption_lengths(["a man", "a man in a coat"], open_clip.get_tokenizer("ViT-B-16"))
        ([4, 7], 77)
    """
    frame = tokenizer([""])[0]
    pad, context = int(frame[-1]), len(frame)
    # Where padding and end are one token (SigLIP), the end is not seen as such.
    unseen_end = int(bool((frame == pad).all()))
    lengths: list[int] = []
    for start in range(0, len(captions), CHUNK):
        chunk = list(captions[start : start + CHUNK])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of captions that are cut: here they are counted instead
            counted = _count(tokenizer(chunk), pad) + unseen_end
        full = [place for place, length in enumerate(counted.tolist()) if length >= context]
        if full:
            counted[full] = _count_long([chunk[place] for place in full], tokenizer, pad, context) + unseen_end
        lengths += counted.tolist()
    return lengths, context


def _count_long(captions: list[str], tokenizer: Callable[..., Tensor], pad: int, context: int) -> Tensor:
    """Count again with more and more room, until none fills it."""
    room = context
    while True:
        room *= 4
        try:
            counted = _count(tokenizer(captions, context_length=room), pad)
        except TypeError:
            return torch.full((len(captions),), context + 1)
        if int(counted.max()) < room or room >= MAX_LENGTH:
            return counted


def _count(tokens: Tensor, pad: int) -> Tensor:
    """Tokens up to the last that is not padding, (B,)."""
    places = torch.arange(1, tokens.shape[1] + 1)
    return (places * (tokens != pad)).amax(dim=1)
