"""Finds the text tower of an open_clip model."""

from typing import Any

from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from promptreid.backbones.towers import TokenTower
from promptreid.errors import UnsupportedTowerError


def find_text_tower(clip: nn.Module) -> TokenTower:
    """Describe the text tower of `clip` to a prompt.

    Args:
        clip: An open_clip model.

    Returns:
        The tower; prompts go in right after the start-of-sequence token.

    Raises:
        UnsupportedTowerError: The tower is not of a kind that prompts can be put into.
    """
    text: Any = clip if isinstance(clip, CLIP) else getattr(clip, "text", None)
    pool_type = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    known = issubclass(type(text), (CLIP, TextTransformer)) and getattr(text, "cls_emb", None) is None
    if known:
        causal = text.attn_mask is not None
        return TokenTower(
            kind=f"open_clip.{type(text).__name__}",
            container=text.transformer,
            blocks=tuple(text.transformer.resblocks),
            width=text.transformer.width,
            length=int(text.positional_embedding.shape[0]),
            slot=1,
            position_owner=text,
            causal=causal,
            # Tokens after the end of the caption can reach the feature only if attention looks ahead
            # or the pooling reads the last position.
            exact_trim=causal and pool_type in ("argmax", "eos"),
        )
    raise UnsupportedTowerError(
        f"no prompts for a text tower of class {type(text).__module__}.{type(text).__qualname__} yet: "
        "this version knows open_clip's built-in text Transformer without a class token. "
        'Create such a model, for example promptreid.load_clip("ViT-B-16").'
    )


def vocabulary_size_of(clip: nn.Module) -> int:
    """Number of token ids that the text tower knows."""
    return int(clip.vocab_size)  # pyright: ignore[reportArgumentType, reportCallIssue]


def caption_end(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Position of the token that the text feature is pooled from, for each caption.

    Args:
        clip: An open_clip model whose text tower pools at the end of the caption.
        tokens: Token ids.

    Shape:
        - tokens: (B, L) int64
        - returns: (B,) int64, in [0, L)
    """
    text: Any = clip if isinstance(clip, CLIP) else clip.text
    pool_type = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    if pool_type == "eos":
        eos = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
        return (tokens == eos).int().argmax(dim=-1)
    return tokens.argmax(dim=-1)
