"""Random deletion and masking of a caption's tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

Tokenizer = Callable[[list[str]], Tensor]


class TokenDeletion:
    """Leaves out each token of a caption with a probability; start and end stay, and so does at least one token.

    What it is given is never changed: it returns a new tensor. It deletes tokens, which for rare words are parts of
    them. Random numbers are torch's.

    Args:
        tokenizer: The one the captions were tokenised with; shows which tokens are start, end and padding.
        probability: Of each token.

    Shape:
        - input and output: (L,) int64

    Raises:
        ValueError: The probability is not in [0, 1).

    Example:
        >>> import open_clip, torch
        >>> tokenizer = open_clip.get_tokenizer("ViT-B-16")
        >>> _ = torch.manual_seed(0)
        >>> shorter = TokenDeletion(tokenizer, probability=0.5)(tokenizer("a man in a red coat")[0])
        >>> tokenizer.decode(shorter.tolist()[:6])
        '<start_of_text>a red <end_of_text>!!'

    Source:
        Random deletion is one of TBPS-CLIP's augmentations (Cao et al. 2024, arXiv 2308.10045), there of words.
    """

    def __init__(self, tokenizer: Tokenizer, *, probability: float = 0.1) -> None:
        self.probability: float = _check_probability(probability)
        self.padding: int
        self.special: Tensor
        self.padding, self.special = _frame(tokenizer)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The caption with tokens left out, padded at the end."""
        dropped = _choose(tokens, self.special, self.probability, keep_one=True)
        kept = tokens[~dropped]
        out = torch.full_like(tokens, self.padding)
        out[: len(kept)] = kept
        return out


class TokenMasking:
    """Replaces each token of a caption with a probability; start and end stay.

    What it is given is never changed: it returns a new tensor. CLIP's vocabulary has no mask, so a plain word stands
    in for it [ours].

    Args:
        tokenizer: The one the captions were tokenised with.
        probability: Of each token.
        mask: A word that is one token.

    Shape:
        - input and output: (L,) int64

    Raises:
        ValueError: The probability is not in [0, 1), or the mask is not exactly one token.
    """

    def __init__(self, tokenizer: Tokenizer, *, probability: float = 0.1, mask: str = "something") -> None:
        self.probability: float = _check_probability(probability)
        self.padding: int
        self.special: Tensor
        self.padding, self.special = _frame(tokenizer)
        row = tokenizer([mask])[0]
        ids = row[~torch.isin(row, self.special)]
        if len(ids) != 1:
            raise ValueError(f"mask {mask!r} is {len(ids)} tokens, expected one; give a shorter, more common word")
        self.mask: int = int(ids[0])

    def __call__(self, tokens: Tensor) -> Tensor:
        """The caption with tokens replaced."""
        return tokens.masked_fill(_choose(tokens, self.special, self.probability, keep_one=False), self.mask)


def _check_probability(probability: float) -> float:
    if not 0 <= probability < 1:
        raise ValueError(f"probability is {probability}, expected at least 0 and less than 1")
    return probability


def _frame(tokenizer: Tokenizer) -> tuple[int, Tensor]:
    """Padding, and all that an empty caption consists of: start, end and padding."""
    frame = tokenizer([""])[0]
    return int(frame[-1]), frame.unique()


def _choose(tokens: Tensor, special: Tensor, probability: float, *, keep_one: bool) -> Tensor:
    words = ~torch.isin(tokens, special)
    chosen = words & (torch.rand(tokens.shape) < probability)
    if keep_one and bool(words.any()) and bool((chosen == words).all()):
        places = words.nonzero().flatten()
        chosen[places[int(torch.randint(len(places), ()))]] = False
    return chosen
