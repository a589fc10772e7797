"""Text encoders of transformers, inside open_clip's HFTextEncoder."""

from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH

from promptreid.errors import UnsupportedTowerError
from promptreid.towers.tower import TextTower


def matches(text: Any) -> bool:
    """Whether a text tower is of this family."""
    return isinstance(text, HFTextEncoder)


def describe(text: Any) -> TextTower:
    """Describe the tower to the prompts.

    Raises:
        UnsupportedTowerError: Its blocks are not found.
    """
    encoder = getattr(text.transformer, "encoder", text.transformer)
    rows = [getattr(encoder, name) for name in ("layer", "block", "layers") if hasattr(encoder, name)]
    if not rows:
        raise UnsupportedTowerError(
            f"no prompts for a Hugging Face text tower of class {type(text.transformer).__qualname__}: its encoder "
            f"{type(encoder).__qualname__} has none of the lists layer, block or layers. Choose a model whose text "
            "tower is RoBERTa, XLM-R, BERT, T5 or M2M100."
        )
    config = text.config
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    if longest and config.model_type in ("roberta", "xlm-roberta"):
        longest -= config.pad_token_id + 1  # their position table starts after the row of the padding
    context = min(longest, DEFAULT_CONTEXT_LENGTH) if longest else DEFAULT_CONTEXT_LENGTH
    return TextTower(
        kind=f"huggingface.{config.model_type}",
        module=text,
        container=encoder,
        blocks=tuple(rows[0]),
        width=int(getattr(config, "d_model", None) or config.hidden_size),
        length=context,
        slot=1,
        pooling=type(text.pooler).__name__,
        mask_arguments=("attention_mask",),
        bias_arguments=("position_bias",),
        count_arguments=("cache_position",),  # before transformers 5
        drops_blocks=bool(getattr(encoder, "layerdrop", 0.0)),
        trim="slice",
        context_length=longest or 0,
        shortest_too=True,
        vocabulary=int(text.vocab_size),
        pad_id=int(config.pad_token_id),
    )
