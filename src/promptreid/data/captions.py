"""Captions: token ids, lengths, sides and augmentation."""

import json
import re
import warnings
from collections.abc import Callable, Sequence
from hashlib import blake2b
from heapq import nlargest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from promptreid.files import read_tensors, remove_abandoned, write_tensors_atomically

CHUNK = 4096  # captions tokenised together

Tokenizer = Callable[..., Tensor]  # from captions to padded token ids (B, L), as open_clip's are

MAX_LENGTH = 16_384  # tokens; a longer caption counts as this long


def caption_lengths(captions: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], int]:
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
    for chunk in _chunks(captions):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of captions that are cut: here they are counted instead
            counted = _count(tokenizer(chunk), pad) + unseen_end
        full = [row for row, length in enumerate(counted.tolist()) if length >= context]
        if full:
            counted[full] = _count_long([chunk[row] for row in full], tokenizer, pad, context) + unseen_end
        lengths += counted.tolist()
    return lengths, context


def _count_long(captions: list[str], tokenizer: Tokenizer, pad: int, context: int) -> Tensor:
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
    ends = torch.arange(1, tokens.shape[1] + 1)
    return (ends * (tokens != pad)).amax(dim=1)


_OTHER = {"left": "right", "right": "left"}

# As separate words or before "-": "left", "left-hand", "rightmost"; not "bright", "leftover" or "upright".
_SIDE = re.compile(r"\b(left|right)(?=(?:hand|most|wards?|side)?\b)", re.IGNORECASE)

# What decides is what stands before and after, never which of the two words it is: so the mirrored caption is decided
# alike, and mirrored again it is the first one.
_PART = r"hand|arm|leg|foot|shoulder|side|wrist|ear|eye|hip|knee|elbow|thigh|ankle|pocket|sleeve|shoe"
_SURELY_SIDE = re.compile(rf"\s+(?:(?:{_PART})s?|of)\b|-(?!over|behind)|\w", re.IGNORECASE)  # "left arm", "left-handed"

# "the left", "in her right", "on the far left", "the man's left"; but "he's left" is a verb.
_OWNED = re.compile(
    r"(?:\b(?:the|his|her|their|its|my|your|our)|(?<!\bhe)(?<!\bshe)(?<!\bwho)(?<!\bit)['’]s)"
    r"(?:\s+(?:far|very|own|upper|lower|top|bottom|front|back|rear|outer))?\s+$",
    re.IGNORECASE,
)

# "from left to right", "left over right": beside one another both are sides.
_PAIR_BEFORE = re.compile(r"\b(?:left|right)\s+(?:to|and|or|over)\s+$", re.IGNORECASE)
_PAIR_AFTER = re.compile(r"\s+(?:to|and|or|over)\s+(?:left|right)\b", re.IGNORECASE)

# "on left a bag", "facing left in front of a shop", "walking left her hair loose": these stand before a side.
_AT = r"on|in|at|to|from|of|by|with|towards?|facing|faces|look(?:ing|s)|turn(?:ed|ing|s)|heading|heads|leaning|moving"
_TOWARDS = re.compile(rf"\b(?:{_AT})\s+$", re.IGNORECASE)
_WALKING = re.compile(rf"\b(?:{_AT}|walk(?:ing|s)|pointing)\s+$", re.IGNORECASE)
_OBJECT = re.compile(r"\s+(?:the|an?|his|her|their|its)\b", re.IGNORECASE)  # "left the shop"

_END = re.compile(r"\s*(?:[.,;:!?)]|$|for\b)", re.IGNORECASE)

# "right behind him", "right now", whatever stands before, and "on right over there."; but "to right there is a sign".
_STRICT = r"now|away|after|behind|next|before|at the"
_STRICT_ADVERB = re.compile(rf"\s+(?:{_STRICT}|(?:over )?there(?={_END.pattern}))\b|-over\b", re.IGNORECASE)
# And "right there", "walking right in front of a bus", "right under his arm", "left open".
_ADVERB = re.compile(
    rf"\s+(?:{_STRICT}|(?:over )?(?:here|there)|beside|above|below|under|underneath|open|in front"
    r"|in the (?:middle|cent(?:er|re)))\b|-over\b",
    re.IGNORECASE,
)

# "he left", "who just left", "a man just left"; "all right"; "has left", where the sentence ends or says for what; "is
# just right for him".
_LATELY = r"\s+(?:just|already|recently)"
_PEOPLE = r"(?:wo)?m[ae]n|person|people|boys?|girls?|lady|guy"
_VERB = re.compile(rf"\b(?:all|(?:s?he|they|who)(?:['’]s)?(?:{_LATELY})?|(?:{_PEOPLE}){_LATELY})\s+$", re.IGNORECASE)
_PERFECT = re.compile(rf"\b(?:has|have|had|having)(?:{_LATELY})?\s+$", re.IGNORECASE)
_FITS = re.compile(r"\b(?:is|are|was|were|it['’]s|looks?)\s+just\s+$", re.IGNORECASE)
_FOR = re.compile(r"\s+for\b", re.IGNORECASE)


def mirror_caption(caption: str) -> str:
    """The caption of the mirrored image: left and right exchanged, in the same case.

    Phrases that name no side, such as "right behind him" and "he left the shop", stay as they are. After an article or
    a possessive, as in "on the left" and "in her right", it is always a side.

    Example:
        >>> mirror_caption("Left hand in pocket, a bag over the right shoulder, right behind a car")
        'Right hand in pocket, a bag over the left shoulder, right behind a car'
    """

    def exchange(match: re.Match[str]) -> str:
        word = match.group()
        if not _is_side(caption[: match.start()], caption[match.end() :]):
            return word
        other = _OTHER[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE.sub(exchange, caption)


def _is_side(before: str, after: str) -> bool:
    """Whether left or right is a side, by what stands before and after it."""
    if _SURELY_SIDE.match(after) or _OWNED.search(before) or _PAIR_BEFORE.search(before) or _PAIR_AFTER.match(after):
        return True
    if _TOWARDS.search(before):
        return _STRICT_ADVERB.match(after) is None
    if _ADVERB.match(after) or _VERB.search(before) or (_PERFECT.search(before) and _END.match(after)):
        return False
    if _FITS.search(before) and _FOR.match(after):
        return False
    return _OBJECT.match(after) is None or _WALKING.search(before) is not None


_FORMAT_VERSION = 2  # since 2 with a digest

# Sentences whose tokens tell one tokenizer from another: case, punctuation, digits, accents. Short enough for any
# context, of which the rows' length tells.
_PROBES = ("A man in a RED coat, size 42; isn't he tall?", "zweireihiger Übermantel — naïve façade 行人")

_SAMPLED = 32  # captions from all over the list, and as many of the longest, that tell tokenizers apart as well


def tokenize_captions(
    captions: Sequence[str],
    tokenizer: Tokenizer,
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Tensor:
    """Turn captions into token ids, or read them from a file written earlier.

    The file's name holds a digest of the captions and of what the tokenizer makes of some sentences and of 64 of the
    captions, the longest among them. So other captions never meet the wrong file, nor does another tokenizer, unless it
    differs in none of these. A damaged file is written again.

    Args:
        captions: The sentences.
        tokenizer: From a list of captions to token ids (B, L).
        cache_dir: Folder for the file; `None` to tokenise again each time.
        progress: Show a progress bar if it takes more than a few seconds.

    Shape:
        - returns: (captions, L) int32

    Raises:
        ValueError: The tokenizer does not return (B, L) integers.
    """
    if cache_dir is None:
        return _tokenize(captions, tokenizer, progress)
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    path = folder / f"tokens-{_key(captions, tokenizer)}.safetensors"
    tokens = _read(path, len(captions))
    if tokens is None:
        tokens = _tokenize(captions, tokenizer, progress)
        write_tensors_atomically(path, {"tokens": tokens, "digest": _digest(tokens)})
    return tokens


def _tokenize(captions: Sequence[str], tokenizer: Tokenizer, progress: bool) -> Tensor:
    context = _call(tokenizer, [""]).shape[1]
    tokens = torch.empty((len(captions), context), dtype=torch.int32)
    start = 0
    for chunk in tqdm(_chunks(captions), desc="tokenising captions", disable=not progress, leave=False, delay=3):
        tokens[start : start + len(chunk)] = _call(tokenizer, chunk)
        start += len(chunk)
    return tokens


def _chunks(captions: Sequence[str]) -> list[list[str]]:
    return [list(captions[start : start + CHUNK]) for start in range(0, len(captions), CHUNK)]


def _call(tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    tokens: Any = tokenizer(captions)
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(captions) or tokens.is_floating_point():
        what = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"the tokenizer gave {what} for {len(captions)} captions, expected integers (captions, L)")
    return tokens


def _key(captions: Sequence[str], tokenizer: Tokenizer) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of captions that are cut: who tokenises them all is warned
        behaviour = _call(tokenizer, [*_PROBES, *_sample(captions)]).tolist()
    digest = blake2b(json.dumps([_FORMAT_VERSION, behaviour]).encode(), digest_size=12)
    for caption in captions:
        digest.update(caption.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _sample(captions: Sequence[str]) -> list[str]:
    """Captions at even distances, and the longest ones; always the same of the same list."""
    if len(captions) <= 2 * _SAMPLED:
        return list(captions)
    spread = [captions[number * len(captions) // _SAMPLED] for number in range(_SAMPLED)]
    return [*spread, *nlargest(_SAMPLED, captions, key=len)]


def _digest(tokens: Tensor) -> Tensor:
    return torch.tensor(list(blake2b(tokens.numpy().tobytes(), digest_size=16).digest()), dtype=torch.uint8)


def _read(path: Path, count: int) -> Tensor | None:
    """The tokens in a file, or `None` if there is none that can be used."""
    try:
        found = read_tensors(path)
        tokens, digest = found["tokens"], found["digest"]
        sound = tokens.dtype == torch.int32 and tokens.ndim == 2 and len(tokens) == count
        return tokens if sound and torch.equal(digest, _digest(tokens)) else None
    except Exception:  # any error that a damaged file causes in safetensors and torch
        return None


class _TokenChange:
    """Shared state of random token changes: the probability, padding, and the tokens of an empty caption."""

    def __init__(self, tokenizer: Tokenizer, *, probability: float = 0.1) -> None:
        if not 0 <= probability < 1:
            raise ValueError(f"probability is {probability}, expected at least 0 and less than 1")
        frame = tokenizer([""])[0]
        self.probability = probability
        self.padding: int = int(frame[-1])
        self.special: Tensor = frame.unique()

    def choose(self, tokens: Tensor, *, keep_one: bool) -> Tensor:
        """Which tokens are changed, (L,) bool: never start, end or padding."""
        words = ~torch.isin(tokens, self.special)
        chosen = words & (torch.rand(tokens.shape) < self.probability)
        if keep_one and bool(words.any()) and bool((chosen == words).all()):
            positions = words.nonzero().flatten()
            chosen[positions[int(torch.randint(len(positions), ()))]] = False
        return chosen


class TokenDeletion(_TokenChange):
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

    def __call__(self, tokens: Tensor) -> Tensor:
        """The caption with tokens left out, padded at the end."""
        kept = tokens[~self.choose(tokens, keep_one=True)]
        out = torch.full_like(tokens, self.padding)
        out[: len(kept)] = kept
        return out


class TokenMasking(_TokenChange):
    """Replaces each token of a caption with a probability; start and end stay.

    The input is never changed: it returns a new tensor. CLIP's vocabulary has no mask, so an ordinary word stands
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
        super().__init__(tokenizer, probability=probability)
        row = tokenizer([mask])[0]
        ids = row[~torch.isin(row, self.special)]
        if len(ids) != 1:
            raise ValueError(f"mask {mask!r} is {len(ids)} tokens, expected one; give a shorter, more common word")
        self.mask: int = int(ids[0])

    def __call__(self, tokens: Tensor) -> Tensor:
        """The caption with tokens replaced."""
        return tokens.masked_fill(self.choose(tokens, keep_one=False), self.mask)
